# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
KERNELS := hatch_build.py services/common/native/build.py $(wildcard services/common/native/*.[ch])
SOURCES := hatch_build.py gateway services cli models benchmarks tests protos/generate.py

.PHONY: help demo test manifests cluster lint format protos bench exactness faults soak fuzz train-demo demo-eval clean

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo.stamp ## Starts everything with the small checkpoint, asks about real pictures, stops
	$(BIN)/diptych demo

test: $(VENV)/dev.stamp ## Runs the tests
	$(BIN)/pytest

manifests: $(VENV)/dev.stamp ## Renders and checks everything in deploy/; needs kubectl
	$(BIN)/pytest tests/deploy --every-combination

cluster: $(VENV)/dev.stamp ## Scales, rolls and hurts a cluster of processes under load
	$(BIN)/python -m tests.cluster

lint: $(VENV)/dev.stamp ## ruff, mypy and buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/python protos/generate.py --image $(VENV)/protos.binpb
	$(BIN)/buf lint $(VENV)/protos.binpb --config buf.yaml --path diptych

format: $(VENV)/dev.stamp ## Formats the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

protos: $(VENV)/dev.stamp ## Writes the committed stubs
	$(BIN)/python protos/generate.py

bench: $(VENV)/dev.stamp ## Measures speed beside its peers and writes docs/performance.md
	$(BIN)/python -m benchmarks

exactness: $(VENV)/dev.stamp ## Compares with transformers, token for token
	$(BIN)/python -m tests.exactness

faults: $(VENV)/dev.stamp ## Breaks something every two seconds under 10,000 requests
	$(BIN)/python -m tests.faults faults

soak: $(VENV)/dev.stamp ## Restarts, outages, crowds, cancels and deaths, each at full length
	$(BIN)/pytest -m soak
	$(BIN)/python -m tests.faults rolling redis herd deadlines decoder-killed decoder-stopped encoder-killed slow-reader overload cancels

fuzz: $(VENV)/dev.stamp ## A million mutated inputs for the parsers of outside bytes
	$(BIN)/python -m tests.fuzz

train-demo: $(VENV)/dev.stamp ## Trains models/demo from a fixed seed: hours; saves and resumes
	$(INSTALL) . --requirement models/demo/requirements-train.txt
	$(BIN)/python -m models.demo.train

demo-eval: $(VENV)/demo.stamp ## Measures models/demo on held-out cases, through the gateway
	$(BIN)/diptych eval

clean: ## Removes what the targets made, .venv included
	rm -rf $(VENV) build dist services/common/native/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diptych needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(INSTALL) '.[dev]'
	touch $@ $(VENV)/demo.stamp
