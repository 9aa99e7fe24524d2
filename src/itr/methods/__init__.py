"""Plug-in methods. Importing this package makes them selectable by name."""

from itr.methods.base import Method, MethodModule

__all__ = ["Method", "MethodModule"]
