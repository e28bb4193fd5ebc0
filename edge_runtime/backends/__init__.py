"""One engine a file, imported only when asked for."""
