"""banger: a real Linux machine (a microVM) in one command, on your own Linux host."""

__version__ = "0.1.0"
