# `make demo` and `make test` need python >= 3.11 and nothing else.
#
#   PYTHON=python3.12 make test     another interpreter (its own environment: VENV=.venv312)
#   TESTS=tests/ops make test       these alone
#   DEMO_STEPS=40 make demo         a shorter demo

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# The first interpreter that runs and is new enough; version managers leave names that do not run.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; \
	done)
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
TESTS ?=
SOURCES := jaxlm configs docs/conf.py docs/_ext experiments notebooks recipes scripts tests setup.py
export MPLBACKEND := Agg
# Tests start many processes: what is compiled for the first is read by the others, whatever the
# caller's shell says (importing the training loop: 2.6 s of CPU in place of 7.8).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: check demo test lint slow parity test-newest docs lock clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo $(if $(DEMO_STEPS),--steps $(DEMO_STEPS))

# tests/conftest.py groups the tests and puts the longest first.
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup \
	--no-loadscope-reorder -q

test: $(VENV)/.dev
	$(PYTEST) $(TESTS)

# `make slow parity` runs both in one pair of processes.
ifeq ($(filter slow parity,$(MAKECMDGOALS)),slow parity)
slow: $(VENV)/.parity
	$(PYTEST) -m 'slow or parity'

parity: slow
else
slow: $(VENV)/.dev
	$(PYTEST) -m slow

parity: $(VENV)/.parity
	$(PYTEST) -m parity
endif

# What a change has to pass before it is sent.
check: lint test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ty check --python $(VENV)

# The newest interpreter that is not the one of `make test`, with the newest JAX it resolves to, on
# what depends on them (NEWEST of tests/conftest.py). All of it: `PYTHON=python3.12 make test`.
test-newest:
	newest=$$(.ci/newest-python); \
	if [ -z "$$newest" ]; then echo "test-newest: no Python newer than 3.11 here"; exit 0; fi; \
	$(MAKE) test PYTHON="$$newest" VENV=.venv-newest \
		TESTS="-m 'newest and not slow and not parity'"

# The site, from docs/ and the docstrings, into build/docs; warnings are errors.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

# --- environments: one stamp per extra, redone when setup.py or the lock changes ---------------

LOCK = requirements/py$(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
# Exact versions where there is a lock for this Python, setup.py's ranges elsewhere.
PINS = $(if $(wildcard $(LOCK)),-c $(LOCK))
# Python compiles what it imports; compiling all that is installed would take a quarter of the time.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# uv takes less than a third of pip's time, and does not read pip's settings: where they name an index that
# must be used, pip does it.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(PINS) $(1) || $(PIP) $(PINS) $(1)

$(BIN)/uv:
	@[ -n "$(PYTHON)" ] || { echo "no Python >= 3.11 found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'uv==0.13.9'

$(VENV)/.installed: setup.py $(wildcard requirements/*.txt) | $(BIN)/uv
	$(call install,-e .)
	touch $@

$(VENV)/.dev: setup.py $(wildcard requirements/*.txt) | $(BIN)/uv
	$(call install,-e '.[dev]')
	touch $@ $(VENV)/.installed

$(VENV)/.docs: $(VENV)/.installed
	$(call install,-e '.[docs]')
	touch $@

# torch by pip, and first: from an index that has them, its CPU wheels are the small ones.
$(VENV)/.parity: $(VENV)/.dev
	$(PIP) $(PINS) 'torch==2.13.0'
	$(call install,-e '.[parity]')
	touch $@

# Write the lock of this Python from a fresh environment of the newest versions that setup.py allows.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	{ echo '# Versions known to work together; `make lock` writes this file.'; \
		build/lock/bin/python -m pip list --format freeze --exclude-editable \
		| grep -v -i -E '^(pip|setuptools|wheel)=='; } > $(LOCK)
	rm -rf build/lock

clean:
	rm -rf .venv .venv-newest build *.egg-info
