"""``python -m saesync.overlay [--file FILE] -- CMD ...``: the same as ``saesync registry run``."""

import sys

from saesync.cli import main

if __name__ == "__main__":
    main(["registry", "run", *sys.argv[1:]])
