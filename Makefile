# `make train` and `make test` set up what they need in .venv on first use and reuse it after.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE_SOURCES := $(shell find csrc -name "*.cpp" -o -name "*.h" -o -name "*.cu" 2>/dev/null) CMakeLists.txt setup.py

# What the two commands run; override to run less: make test TESTS=tests/ops
TRAIN ?= digits
TESTS ?=
# A test has one thread. Each core gets a stretch of the tests, so that neighbours share what they need, and takes over
# from the others at its end.
CORES := -n auto --dist worksteal --benchmark-disable

.PHONY: help setup train test fast test-slow attack lint types sanitize valgrind benchmark evidence evidence-quick docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv and install into it

# torch first and by its exact version: what comes after then finds it there.
$(STAMP): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@echo "setting up $(VENV), once: torch first, some minutes and 2.4 GB in all"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "torch$$(sed -n 's/^torch==/==/p' constraints.txt)"
	@echo "then ansn: its other dependencies, and the C++ module, which is compiled"
	ANSN_NATIVE=ON $(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

train: $(STAMP) ## train on the digits, then look at runs/digits/*.png
	$(BIN)/ansn-train $(TRAIN)

test: $(STAMP) lint ## what CI runs: lint, types, the fast tests
	@$(MAKE) --no-print-directory -j 2 types fast

fast: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" $(CORES) $(TESTS)

attack: $(STAMP) ## kills, crashes, full disks, damaged files: a table of how the commands take them, under 10 minutes
	$(BIN)/python -m tests.attack

test-slow: $(STAMP) ## the tests that take longer
	$(BIN)/python -m pytest -q -m slow $(CORES)

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

sanitize: $(STAMP) ## the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/python -m tests.native.sanitize

valgrind: $(STAMP) ## the native kernels under valgrind's memcheck
	$(BIN)/python -m tests.native.memcheck

benchmark: $(STAMP) ## measures what docs/performance.md says of the kernels and writes it, some four minutes on idle cores
	$(BIN)/python -m pytest benchmarks -q -m "not slow" --benchmark-columns=median,iqr,ops,rounds \
		--save-table benchmarks/results/cpu.csv
	$(BIN)/python -m benchmarks.table --write

evidence: $(STAMP) ## every claim anew, planned for three hours of two cores (DATA=folder of mnist, fashion-mnist, cifar10)
	$(BIN)/python -m experiments.evidence $(if $(DATA),--data $(DATA))

evidence-quick: $(STAMP) ## the same in small, three to five minutes: shows that everything runs, proves nothing
	$(BIN)/python -m experiments.evidence --quick

docs: $(STAMP) ## the site, into site/; installs mkdocs and its theme into .venv the first time
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || { \
		echo "installing mkdocs and its theme into $(VENV), once: some 120 MB"; \
		$(BIN)/python -m pip install -q -c constraints.txt $$($(BIN)/python -c "import tomllib; \
			print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])"); }
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "site/index.html"

clean: ## remove what was built, but no run
	rm -rf $(VENV) build site ansn/_native*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
