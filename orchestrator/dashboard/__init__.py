"""The fleet as a person sees it: a page with live figures, and the same figures for Prometheus."""
