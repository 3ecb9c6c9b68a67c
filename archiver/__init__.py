"""Copies call recordings from a Voice Calls API into S3, and keeps a signed manifest of them."""

__version__ = "0.1.0"
