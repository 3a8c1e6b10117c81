"""Publish sparse autoencoders like infrastructure: write a manifest, read the plan, apply."""

__version__ = "0.1.0"
