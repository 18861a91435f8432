"""The version, in the one place the package and its records read it from."""

__version__ = "0.2.0"
