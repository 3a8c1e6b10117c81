"""``python -m saesync`` is the same program as ``saesync``."""

from saesync.cli import main

if __name__ == "__main__":
    main()
