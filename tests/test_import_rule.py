"""The direction of imports, and what `saesync plan` must never import. Read from the AST, so that lazy imports count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "saesync"

# Lower layers never import higher ones. A module stands in the first layer whose prefix matches.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("saesync.__init__", "saesync"),
    (
        "saesync.errors",
        "saesync.digest",
        "saesync.events",
        "saesync.jobs",
        "saesync.isolation",
        "saesync.hooks",
        "saesync.carets",
        "saesync.inert",
        "saesync.redaction",
        "saesync.nothing",
        "saesync.streams",
        "saesync.garbage",
        "saesync.lanes",
        "saesync.restraint",
        "saesync.reason",
        "saesync.folders",
        "saesync.splits",
        "saesync.record_json",
        "saesync.scratch",
    ),
    ("saesync.record",),
    ("saesync.model",),
    ("saesync.keys",),
    ("saesync.measure.metrics",),
    ("saesync.registry", "saesync.verdict", "saesync.cache", "saesync.tags", "saesync.system"),
    ("saesync.card",),
    ("saesync.planning",),
    ("saesync.planner", "saesync.review"),
    ("saesync.render", "saesync.planfile", "saesync.hub", "saesync.forge"),
    ("saesync.formats", "saesync.targets", "saesync.convert", "saesync.measure", "saesync.writers"),
    ("saesync.schema",),
    ("saesync.manifest", "saesync.pin", "saesync.inspection"),
    (
        "saesync.observe",
        "saesync.observe_registries",
        "saesync.resolve",
        "saesync.source_history",
        "saesync.importing",
        "saesync.policy",
        "saesync.checkout",
        "saesync.ci",
        "saesync.presence",
        "saesync.overlay",
    ),
    ("saesync.executors", "saesync.workers", "saesync.worker_main"),
    ("saesync.preflight", "saesync.room", "saesync.apply", "saesync.progress", "saesync.demo"),
    ("saesync.cli",),
    ("saesync.__main__", "saesync.overlay.__main__"),
)
EXACT_ROOT = "saesync"
HEAVY = ("torch", "sae_lens", "transformers", "transformer_lens", "datasets", "pyarrow")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("saesync", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def layer_of(module: str) -> int:
    if module == EXACT_ROOT:
        return 0
    best = [
        (len(prefix), level)
        for level, layer in enumerate(LAYERS)
        for prefix in layer
        if prefix != EXACT_ROOT and (module == prefix or module.startswith(f"{prefix}."))
    ]
    assert best, f"{module} stands in no layer: add it to LAYERS"
    return max(best)[1]


def imports(path: Path, known: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names}
    return {name for name in found if name.split(".")[0] == "saesync"}


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down(module: str) -> None:
    known = modules()
    mine = layer_of(module)
    for other in imports(known[module], set(known)):
        assert layer_of(other) <= mine, f"{module} (layer {mine}) imports {other} (layer {layer_of(other)})"


def test_light_modules_import_nothing_heavy() -> None:
    """Every module that plan, check, show, inspect and init may load, formats and targets all discovered."""
    program = (
        "import sys, pkgutil, importlib, saesync.formats as f, saesync.targets as t\n"
        "import saesync.cli, saesync.schema, saesync.manifest, saesync.planner, saesync.resolve, saesync.observe\n"
        "import saesync.inspection, saesync.pin, saesync.apply, saesync.presence, saesync.overlay, saesync.cli.registry\n"
        "assert {'saelens', 'goodfire'} <= set(f.formats()), f.formats()\n"
        "assert {'huggingface', 'local'} <= set(t.targets())\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
