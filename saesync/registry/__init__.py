"""SAELens's registry file ``pretrained_saes.yaml`` as text: its entries, minimal edits, upstream's rules and a linter.

Pure: no network, no GitHub, no planner. ``entry`` says what a release's entry is, ``document`` reads the file and changes one
release in it, ``rules`` is what upstream asks of a change, ``lint`` judges a whole file.
"""
