"""``python -m saesync.schema`` prints the schema; it writes no file."""

from __future__ import annotations

import json
import sys

from saesync.schema import build

sys.stdout.write(json.dumps(build(), indent=2, ensure_ascii=False) + "\n")
