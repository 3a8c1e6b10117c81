"""Loopback servers that tests talk to instead of hosted services."""
