"""Commands of the host that belong to no single package below."""
