"""Commands of the host that end in artefacts."""
