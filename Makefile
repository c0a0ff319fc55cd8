# One command each; every one creates .venv with the locked packages and builds the compiled core first, if need be.
#   make demo    the three stages on the bundled model and images      make test    C++ and Python tests
#   make bench   the benchmark suites                                  make lint    format, lint, types
#   make test-oldest  the tests with the oldest versions that sdfast takes, in .venv-oldest
#   make stress  attacks on the commands (docs/stress.md; STRESS=quick: 6 minutes), then the long tests
#   make docs    the documentation's site, in build/site
#   make build   the packages and the compiled core alone              make clean   remove what was built (distclean: and .venv)
# PYTHON names the interpreter that .venv is made with: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip may install.
CONSTRAINTS := constraints.txt
NATIVE := build/native
PYTEST_ARGS ?=
# quick, full or all, and what else tests/stress takes: make stress STRESS="all --only 'kill texts'"
STRESS ?= full
# Test processes; each then computes on one thread. A file's tests stay together, so that its fixtures are made once.
TEST_JOBS ?= 2
# SDFAST_NO_EXT=1 in the environment: no compiled core, no C++ tests.
NO_EXT := $(filter-out 0,$(SDFAST_NO_EXT))

.PHONY: help venv build demo test test-cpp test-python test-oldest stress bench lint docs clean distclean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(VENV)/.locked
build: $(VENV)/.built

# The packages. torch and the build tools come first: sdfast and deepspeed are built against them, without isolation.
# The stamp is older than its inputs after a change of the lock or of what pyproject.toml asks for.
$(VENV)/.locked: $(CONSTRAINTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "sdfast needs Python 3.10 or newer; '$(PYTHON)' is older or missing: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python's venv module does not work here (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing the locked packages into $(VENV) (about 6 GB, a few minutes the first time)"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) setuptools wheel cmake ninja torch
	SDFAST_NO_EXT=1 $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --no-build-isolation -e '.[all,docs,dev]'
	@touch $@

# The compiled core, through setup.py and CMakeLists.txt; ninja rebuilds only what changed.
$(VENV)/.built: $(VENV)/.locked setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
	$(if $(NO_EXT),rm -rf sdfast/lib)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/.built
	$(BIN)/sdfast study compare --preset demo --jobs 2 --out runs/demo \
	  --methods "fine-tuning,further pre-training,self-distillation"

test: $(if $(NO_EXT),,test-cpp) test-python

test-cpp: $(VENV)/.built
	$(BIN)/cmake --build $(NATIVE) --target sdfast_tests
	$(BIN)/ctest --test-dir $(NATIVE) --output-on-failure

test-python: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not slow" -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

test-oldest:
	PYTHON=$(PYTHON) scripts/test_oldest.sh

stress: $(VENV)/.built
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m stress $(STRESS)
	$(if $(filter quick --only,$(STRESS)),,OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m slow $(PYTEST_ARGS))

bench: $(VENV)/.built
	$(BIN)/python -m pytest benchmarks --benchmark-only $(PYTEST_ARGS)

lint: $(VENV)/.locked
	@failed=; for tool in "ruff format --check ." "ruff check ."; do \
	  echo "$(BIN)/$$tool"; $(BIN)/$$tool || failed=yes; \
	done; echo "$(BIN)/mypy --platform linux, win32, darwin"; \
	printf '%s\n' linux win32 darwin | \
	  xargs -P 3 -I{} $(BIN)/mypy --platform {} --cache-dir .mypy_cache/{} || failed=yes; \
	test -z "$$failed"

# Strict: a broken link or anchor fails. A folder to read from the disk or to serve as it is; nothing is fetched.
docs: $(VENV)/.locked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/site/index.html"

clean:
	rm -rf build dist *.egg-info sdfast/lib .pytest_cache .ruff_cache .mypy_cache .benchmarks $(VENV)/.built
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-oldest
