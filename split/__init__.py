"""Where to cut a network and how to compress what crosses the cut: algorithms only, no target formats."""
