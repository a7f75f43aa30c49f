# make train      set up and train with CONFIG
# make test       set up and run the tests            make slow      the tests that take minutes
# make check      format, lint, types, tests          make test-gpu  the tests that need a GPU
# make results    all runs and tests of docs/results.md, and the page: hours; it goes on where it was stopped
# make setup-gpu  pycuda, on a machine with a GPU     make bench     time the simulation
# make setup-ray  Ray, to run sweeps on it; without it `make slow` runs what is installed and skips the tests of Ray
# make test-browser   the report in a real browser: apt-get install chromium, or BROWSER_PATH=one
# Needs Python 3.11 or newer (PYTHON=python3.12), a C++ compiler, make and a package index, or WHEELS=folder without one.

PYTHON ?= python3
CONFIG ?= configs/rbc.yaml
WHEELS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install --quiet --no-warn-conflicts $(if $(WHEELS),--no-index --find-links "$(WHEELS)")
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
STAMP_GPU := $(VENV)/.installed-gpu
STAMP_RAY := $(VENV)/.installed-ray
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.DELETE_ON_ERROR:
.PHONY: train results setup setup-dev setup-gpu setup-ray test test-gpu test-browser slow check bench clean

train: setup
	$(RUN) run_training.py --config $(CONFIG)

results: setup
	$(RUN) -m rbc_warp results

setup: $(STAMP)

setup-dev: $(STAMP_DEV)

test: setup-dev
	$(RUN) -m pytest

test-gpu: setup-dev setup-gpu
	$(RUN) -m pytest -m gpu

test-browser: setup-dev
	$(RUN) -m pytest -m browser

slow: setup-dev
	$(RUN) -m pytest -m slow

check: setup-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest

bench: setup
	$(RUN) -m rbc_warp bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment without pip, or with an older Python, is left over from a broken set-up: it is made anew.
$(STAMP): requirements.txt requirements-warpdrive.txt
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || \
	  { echo "setup: '$(PYTHON)' is not Python 3.11 or newer; name one, as in: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "setup: '$(PYTHON)' cannot make virtual environments; install its venv package (python3-venv)" >&2; exit 1; }
	@command -v "$(CXX)" >/dev/null || \
	  { echo "setup: no C++ compiler '$(CXX)'; install g++, or name one, as in: make setup CXX=clang++" >&2; exit 1; }
	@test -z "$(WHEELS)" || test -d "$(WHEELS)" || \
	  { echo "setup: WHEELS=$(WHEELS) is not a folder; give the one that holds the wheels" >&2; exit 1; }
	@{ $(RUN) $(NEW_ENOUGH) && $(RUN) -m pip --version; } >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "setup: installing into $(VENV)"
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-warpdrive.txt
	@touch $@

$(STAMP_DEV): $(STAMP) requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

setup-ray: $(STAMP_RAY)

$(STAMP_RAY): $(STAMP) requirements-ray.txt
	$(PIP) -r requirements-ray.txt
	@touch $@

setup-gpu: $(STAMP_GPU)

# pycuda takes the CUDA root from the first nvcc on PATH, so that must be the real one: nvcc itself says where it is, also
# through a wrapper script. Without the curand headers pycuda is built without curand, which is switched off in a file in
# the home folder: hence a home of its own.
$(STAMP_GPU): $(STAMP) requirements-gpu.txt
	@command -v nvcc >/dev/null || \
	  { echo "setup-gpu: no nvcc on PATH; install the CUDA toolkit, or do without a GPU (make train needs none)" >&2; exit 1; }
	@$(RUN) -c 'import ctypes; cuda, n = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(); \
	  assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(n)) == 0 and n.value > 0' 2>/dev/null || \
	  { echo "setup-gpu: the driver (libcuda.so.1) finds no GPU here; run this on a machine with one" >&2; exit 1; }
	@set -eu; \
	bin=$$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$$ _HERE_=//p'); \
	bin=$${bin:-$$(dirname "$$(readlink -f "$$(command -v nvcc)")")}; \
	PATH="$$bin:$$PATH"; export PATH; \
	if ! echo '#include <curand.h>' | "$(CXX)" -E -x c++ -I "$$bin/../include" - >/dev/null 2>&1; then \
	  echo "setup-gpu: no curand.h, building pycuda without curand"; \
	  mkdir -p $(VENV)/build-home; \
	  echo 'CUDA_ENABLE_CURAND = False' > $(VENV)/build-home/.aksetup-defaults.py; \
	  XDG_CONFIG_HOME=$${XDG_CONFIG_HOME:-$$HOME/.config}; XDG_CACHE_HOME=$${XDG_CACHE_HOME:-$$HOME/.cache}; \
	  HOME=$$PWD/$(VENV)/build-home; export XDG_CONFIG_HOME XDG_CACHE_HOME HOME; \
	fi; \
	echo "setup-gpu: building pycuda against $$bin/.. (minutes)"; \
	$(PIP) -r requirements-gpu.txt
	$(RUN) -c 'import pycuda.driver as cuda; cuda.init(); print("setup-gpu:", cuda.Device(0).name())'
	@touch $@
