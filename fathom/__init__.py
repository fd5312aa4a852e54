"""Fathom: train, explain and serve DeepSeek-style reasoning models."""

__version__ = "0.1.0"
