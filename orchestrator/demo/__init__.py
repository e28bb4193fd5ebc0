"""The demo: headtail's own commands, run as child processes on photographs that come with Python packages."""
