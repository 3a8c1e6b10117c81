# Two commands set everything up on a fresh machine with Python 3.11 or newer:
#   make demo    a small real world, planned, applied and loaded again
#   make test    the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Files of tests run side by side; each brings its own loopback servers. 0 runs them one after another. Tests wait for servers
# and child processes much of the time, so that three keep two cores busy.
WORKERS ?= 3
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test slow devices lint types docs bench ci clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit("saesync needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-compile -c constraints.txt --upgrade pip setuptools wheel
	@$(BIN)/python -m pip install -qq --no-compile -c constraints.txt torch
	@$(BIN)/python -m pip install -qq --no-compile -c constraints.txt -e '.[dev]'
	@# pip compiles on one core. Files that are for another Python do not compile, and some compile with
	@# warnings: pip says nothing of them, either.
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

demo: $(STAMP)
	@$(BIN)/python tools/demo.py ./demo

test: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not slow'

# These keep a core busy each.
slow: WORKERS = 2
slow: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

# On a machine with a GPU: fails where there is none.
devices: $(STAMP)
	$(BIN)/python -c 'import sys; from benchmarks.bench_device import devices; sys.exit(not devices() and "torch finds no GPU here")'
	$(BIN)/python -m pytest tests/measure/test_real_devices.py
	$(BIN)/python -m benchmarks device

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/docs.py --check
	$(BIN)/python tools/requirements.py --check
	$(BIN)/zizmor --offline --quiet .github action.yml examples
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml examples/*/.github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions action.yml

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin saesync

docs: $(STAMP)
	$(BIN)/python tools/docs.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

ci: test lint types slow

clean:
	rm -rf $(VENV) demo build dist *.egg-info
