"""Other projects' plug-in points: one module each, imported without importing the project it serves."""

from . import transformers

__all__ = ["transformers"]
