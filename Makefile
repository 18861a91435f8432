# `make help` lists the targets; each builds what it needs.
PYTHON ?= python3
# .github/constraints has others: the oldest and the newest torch
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2
READY := $(VENV)/.ready
SOURCES := $(shell find csrc -type f)
EMULATOR := $(wildcard tests/emulator/*.cpp tests/emulator/*.h tests/sanitizers/*.cpp)
SANITIZED := build/sanitize/_cpu.so
THREADED := build/sanitize/_cpu_threads.so
WATCHED := -std=c++17 -O1 -g -fno-omit-frame-pointer -fno-math-errno -fno-trapping-math -ffp-contract=off -shared -fPIC
# a few histories end early: more than 10,000 all the same
TRANSITIONS ?= 11000
# on Linux: tagged by the oldest system that it runs on; refused where there are no kernels in it
ifeq ($(shell uname),Linux)
REPAIR = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
else
REPAIR = mv build/wheel/*.whl dist
endif
.DEFAULT_GOAL := help
ROUNDS ?= 20
.PHONY: help setup train test test-all soak sanitize bench gpu device-code docs lint format nvcc wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## build .venv with the package, its C++ and CUDA kernels and all tools

$(READY): pyproject.toml setup.py cuda_build.py $(CONSTRAINTS) $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[train,dev]'
	$(BIN)/python -m pip install --quiet --no-deps timm # its torchvision goes with no CPU build of torch
	touch $@

train: setup ## train on the fermentation spectra with fused AdamW
	$(BIN)/spectramind train optimizer=adamw optimizer.fused=true

test: setup ## run at least one test of every claim; GPU kernels run compiled, on an emulated GPU
	$(PYTEST) -m "not full"
	$(PYTEST) -m interpreted --interpret

test-all: setup ## run the rest of every product, and the kernels of other GPUs
	$(PYTEST) -m full
	$(PYTEST) -m compiled --emulate 80
	$(PYTEST) -m compiled --emulate 100

soak: setup ## run every combination, then ROUNDS times as many random ones, others at every run
	$(PYTEST) --emulate 80
	$(PYTEST) --emulate 100
	$(PYTEST) --interpret
	$(PYTEST) -m random --soak $(ROUNDS)
	$(MAKE) sanitize WORDS="--soak $(ROUNDS)"

sanitize: $(SANITIZED) $(THREADED) ## run any history of changes, with the C++ kernels under sanitizers
	rm -f build/sanitize/history.txt
	LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 HISTORY_FILE=build/sanitize/history.txt \
	$(BIN)/python -m pytest -q --kernels $(SANITIZED) --transitions $(TRANSITIONS) \
		--emulate none tests/histories tests/sanitizers tests/kernels/test_host.py \
		tests/optim/test_stale_addresses.py $(WORDS) \
	|| { cat build/sanitize/history.txt; exit 1; }

$(SANITIZED): $(READY) $(SOURCES)
	mkdir -p $(@D)
	$(CXX) $(WATCHED) -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
		csrc/cpu/step.cpp csrc/host/facts.cpp -o $@

$(THREADED): $(READY) $(SOURCES)
	mkdir -p $(@D)
	$(CXX) $(WATCHED) -fsanitize=thread csrc/cpu/step.cpp csrc/host/facts.cpp -o $@

bench: setup ## time steps beside torch's and other libraries', and write the README's figures
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[bench]'
	$(BIN)/python -m pytest benchmarks/test_throughput.py -q -o filterwarnings=default --benchmark-columns=median,iqr,rounds
	$(BIN)/python -m benchmarks.readme

gpu: ## prove and measure everything on this machine's GPU, in 10 minutes; WORDS=--deep for the rest
	$(PYTHON) -m benchmarks.gpu $(WORDS)

device-code: setup ## compile every GPU kernel for five GPUs, print what the machine code says
	$(BIN)/python -m benchmarks.device_code

docs: setup ## build the documentation site in build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees -c docs . build/docs
	@echo "build/docs/index.html"

lint: setup ## check lint, format, types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(EMULATOR)
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: setup ## put Python and C++ into the house format
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) $(EMULATOR)

nvcc: ## fetch NVIDIA's compiler for a machine without it; then CUDA_HOME=build/nvcc/nvidia/cu13
	$(PYTHON) -m pip install --quiet --upgrade --target build/nvcc -r .github/constraints/nvcc.txt
	ln -sfn lib build/nvcc/nvidia/cu13/lib64

wheel: setup ## build a source distribution and a wheel for every Python into dist
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir build/wheel
	mkdir dist
	mv build/wheel/*.tar.gz dist
	$(REPAIR)

clean: ## remove what was built and what runs wrote
	rm -rf $(VENV) build dist *.egg-info outputs multirun logs spectramind_fused/kernels/_c*.so spectramind_fused/kernels/_cuda.txt
