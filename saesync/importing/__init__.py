"""Adopting what exists: manifests written from SAELens's registry, or from a Hub repository of SAELens folders.

``fold`` turns a list of SAEs into a template, ``layout`` into a manifest's text; ``registry`` and ``repository`` say what the
manifest of an entry, or of a repository, holds. Nothing here writes a file.
"""
