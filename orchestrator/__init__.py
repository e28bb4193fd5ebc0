"""The host: broker, deploy, tail serving, command line."""
