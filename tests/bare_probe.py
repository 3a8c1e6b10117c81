"""A worker that does nothing to cut itself off: what its parent does is all there is. For ``tests/test_workers.py``."""

from __future__ import annotations

import os
import sys

from saesync.isolation import NetworkGuard
from saesync.worker_main import Job, serve

if __name__ == "__main__":
    serve(sys.stdin.buffer, os.fdopen(1, "wb"), NetworkGuard(), {"peek": Job("worker_probe", "peek", dict)})
