"""Plug-in methods. Importing this package makes them available by name."""

from itr.methods.base import Method, MethodModule
from itr.methods.cusa import CUSA
from itr.methods.d2s import D2S

__all__ = ["CUSA", "D2S", "Method", "MethodModule"]
