"""Manners teaches a language model that merely completes text to answer, then to have manners, and shows what that changed."""

__version__ = "0.1.0"
