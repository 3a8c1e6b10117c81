"""Turning a source's canonical form into a SAELens folder, and proving that the function is still the authors'."""
