# make train      set up and train with CONFIG
# make test       set up and run the tests            make slow      the tests that take minutes
# make check      format, lint, types, tests          make test-gpu  the tests that need a GPU
# make results    all runs and tests of docs/results.md, and the page: hours; it goes on where it was stopped
# make sanitize-gpu   our kernels under compute-sanitizer, on a machine with a GPU (two minutes)
# make setup-gpu  pycuda, on a machine with a GPU     make bench     time the simulation; bench-gpu: on a GPU
# make wheels-gpu a folder of wheels, for setup-gpu on a machine without an index (docs/gpu.md)
# make setup-ray  Ray, to run sweeps on it; without it `make slow` runs what is installed and skips the tests of Ray
# make reliability    what the tests leave out: kills, faults, damaged files (20 minutes; ROW=kills for one row of it)
# make soak   an hour of training, and how memory grows (SECONDS=180 for less)
# make docs       the documentation as a site, build/docs/index.html
# make test-browser   the report in a real browser: apt-get install chromium, or BROWSER_PATH=one
# make setup-extras  Stable-Baselines3 and OpenSpiel; without them the tests that use them are skipped
# make test-pycuda    pycuda without a GPU, against a stand-in for the driver, which it builds (needs the CUDA toolkit)
# Needs Python 3.11 or newer (PYTHON=python3.12), a C++ compiler, make and a package index, or WHEELS=folder without one.

PYTHON ?= python3
CONFIG ?= configs/rbc.yaml
WHEELS ?=
PYTHON_GPU ?= 3.12
MORE ?=
BENCH ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install --quiet --no-warn-conflicts $(if $(WHEELS),--no-index --find-links "$(WHEELS)")
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
STAMP_GPU := $(VENV)/.installed-gpu
STAMP_RAY := $(VENV)/.installed-ray
STAMP_DOCS := $(VENV)/.installed-docs
STAMP_EXTRAS := $(VENV)/.installed-extras
# Where a GPU is set up, training and the benchmark need no more.
READY := $(if $(wildcard $(STAMP_GPU)),$(STAMP_GPU),$(STAMP))
# What training, the benchmark and the tests of the GPU import, beyond torch and what it brings; LEAN_SDIST has no wheels.
LEAN := numpy pydantic pydantic_core annotated-types typing-inspection typing_extensions PyYAML filelock rich \
  markdown-it-py mdurl Pygments gym-notices cloudpickle MarkupSafe platformdirs packaging pytest pluggy iniconfig \
  rl-warp-drive $(MORE)
LEAN_SDIST := gym
LEAN_PINS := $(addprefix -c ,requirements.txt requirements-dev.txt requirements-warpdrive.txt requirements-gpu.txt)
# requirements-gpu.txt without pycuda, which is built once these are there, and pycuda.
GPU_NEEDS = $$(sed 's/ *\#.*//; /^pycuda==/d' requirements-gpu.txt)
PYCUDA = $$(grep '^pycuda==' requirements-gpu.txt)
# pycuda as it was built here: in WHEELS of a machine like this one it need not be built again.
BUILT := $(VENV)/built
# The package is imported from this folder, by scripts and notebooks anywhere, and by examples/.
IMPORTABLE = $(RUN) -c 'import os, sysconfig; print(os.getcwd(), file=open(sysconfig.get_path("purelib") + "/rbc_warp.pth", "w"))'
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.DELETE_ON_ERROR:
.PHONY: train results setup setup-dev setup-gpu setup-ray setup-extras wheels-gpu test test-gpu sanitize-gpu test-pycuda test-browser slow check bench bench-gpu docs reliability soak clean

train: $(READY)
	$(RUN) run_training.py --config $(CONFIG)

results: setup
	$(RUN) -m rbc_warp results

setup: $(STAMP)

setup-dev: $(STAMP_DEV)

test: setup-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

test-gpu: setup-gpu
	$(RUN) -m pytest -m gpu $$(grep -l 'mark\.gpu$$' tests/test_*.py)

sanitize-gpu: setup-gpu
	$(RUN) -m pytest -m gpu tests/test_sanitizer.py

# pycuda stays out of the virtual environment: what is built against a stand-in must never meet a GPU.
STANDIN := $(CURDIR)/$(VENV)/standin
test-pycuda: setup-dev
	PYTHONPATH=. $(RUN) tests/standin.py build $(STANDIN)
	RBC_WARP_STANDIN=1 LD_LIBRARY_PATH=$(STANDIN) PYTHONPATH=$(STANDIN)/site:$(CURDIR)/tests:$(CURDIR) \
	  $(RUN) -m pytest -p standin -m 'standin or (gpu and not slow)'

test-browser: setup-dev
	$(RUN) -m pytest -m browser

slow: setup-dev
	$(RUN) -m pytest -m 'slow and not gpu'

check: setup-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

reliability: setup-dev
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(RUN) -m reliability $(ROW)

soak: setup-dev
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(RUN) -m reliability soak $(if $(SECONDS),--count $(SECONDS))

bench: $(READY)
	$(RUN) -m rbc_warp bench

bench-gpu: SHELL := bash
bench-gpu: setup-gpu
	set -o pipefail; $(RUN) -u -m rbc_warp bench --backend pycuda --json bench-gpu.json $(BENCH) | tee bench-gpu.txt

docs: $(STAMP_DOCS)
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/docs
	@echo "docs: build/docs/index.html"

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
	@$(IMPORTABLE)
	@touch $@

$(STAMP_DEV): $(STAMP) requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

setup-ray: $(STAMP_RAY)

$(STAMP_RAY): $(STAMP) requirements-ray.txt
	$(PIP) -r requirements-ray.txt
	@touch $@

setup-extras: $(STAMP_EXTRAS)

$(STAMP_EXTRAS): $(STAMP) requirements-extras.txt
	$(PIP) -r requirements-extras.txt
	@touch $@

$(STAMP_DOCS): $(STAMP) requirements-docs.txt
	$(PIP) -r requirements-docs.txt
	@touch $@

setup-gpu: $(STAMP_GPU)

# pycuda takes the CUDA root from the first nvcc on PATH, so that must be the real one: nvcc itself says where it is, also
# through a wrapper script. It reads where headers and the driver lie from a file in the home folder: hence a home of its
# own. It is linked to the driver that is here, and built without curand, which nothing uses.
# With WHEELS there is no index: the environment stands on the torch of PYTHON, and holds only what that lacks. PYTHON may
# be of a virtual environment itself, whose packages --system-site-packages would not show: hence the .pth file.
$(STAMP_GPU): requirements.txt requirements-dev.txt requirements-warpdrive.txt requirements-gpu.txt
	@set -eu; PATH="$$PATH:$${CUDA_HOME:-/usr/local/cuda}/bin"; export PATH; \
	say() { echo "setup-gpu: $$1" >&2; exit 1; }; \
	$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || say "'$(PYTHON)' is not Python 3.11 or newer; name one: PYTHON=python3.12"; \
	command -v nvcc >/dev/null || \
	  say "no nvcc on PATH; install the CUDA toolkit, or do without a GPU (make train needs none)"; \
	command -v "$(CXX)" >/dev/null || say "no C++ compiler '$(CXX)'; install g++, or name one: CXX=clang++"; \
	headers=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	test -f "$$headers/Python.h" || \
	  say "no Python.h in $$headers, and pycuda is compiled; install the headers of $(PYTHON) (python3-dev), or name another"; \
	bin=$$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$$ _HERE_=//p'); \
	bin=$${bin:-$$(dirname "$$(readlink -f "$$(command -v nvcc)")")}; \
	for include in "$$bin"/../include "$$bin"/../targets/*/include; do test -f "$$include/cuda.h" && break; done; \
	test -f "$$include/cuda.h" || say "no cuda.h beside $$bin/nvcc; install the CUDA headers (cuda-cudart-dev)"; \
	driver=$$($(PYTHON) -c 'import ctypes; cuda, n = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(); \
	  assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(n)) == 0 and n.value > 0; \
	  print(next(line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/libcuda.so" in line))' \
	  2>/dev/null) || say "the driver (libcuda.so.1) finds no GPU here; run this on a machine with one"; \
	if test -z "$(WHEELS)"; then \
	  $(MAKE) --no-print-directory setup-dev; \
	else \
	  test -d "$(WHEELS)" || say "WHEELS=$(WHEELS) is not a folder; give the one that make wheels-gpu filled"; \
	  $(PYTHON) -c 'import torch, sys; sys.exit(torch.version.cuda is None)' 2>/dev/null || \
	    say "'$(PYTHON)' has no torch built for CUDA, and WHEELS holds none; name an interpreter that has one: PYTHON="; \
	  $(PYTHON) -m pip --version >/dev/null 2>&1 || say "'$(PYTHON)' has no pip; install python3-pip"; \
	  echo "setup-gpu: installing into $(VENV), on the torch of $(PYTHON)"; \
	  $(PYTHON) -m venv --clear --without-pip $(VENV); \
	  site=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  $(PYTHON) -c 'import sys; [print(f"import site; site.addsitedir({path!r})") for path in sys.path \
	    if path.rstrip("/").endswith("-packages")]' > "$$site/below.pth"; \
	  $(PIP) --no-deps $(LEAN_PINS) $(LEAN) $(LEAN_SDIST); \
	  $(IMPORTABLE); \
	fi; \
	$(PIP) $(if $(WHEELS),--no-deps) $(GPU_NEEDS); \
	home=$$PWD/$(VENV)/build-home; mkdir -p "$$home"; \
	ln -sf "$$driver" "$$home/libcuda.so"; \
	printf 'CUDA_ENABLE_CURAND = False\nCUDA_INC_DIR = ["%s"]\nCUDADRV_LIB_DIR = ["%s"]\n' "$$include" "$$home" \
	  > "$$home/.aksetup-defaults.py"; \
	XDG_CONFIG_HOME=$${XDG_CONFIG_HOME:-$$HOME/.config}; XDG_CACHE_HOME=$${XDG_CACHE_HOME:-$$HOME/.cache}; \
	HOME=$$home; PATH="$$bin:$$PATH"; export XDG_CONFIG_HOME XDG_CACHE_HOME HOME PATH; \
	echo "setup-gpu: building pycuda against $$include (minutes)"; \
	$(RUN) -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --no-cache-dir \
	  $(if $(WHEELS),--no-index --find-links "$(WHEELS)") -w $(BUILT) $(PYCUDA); \
	$(PIP) --no-deps $(BUILT)/pycuda-*.whl
	$(RUN) -c 'import pycuda.driver as cuda; cuda.init(); print("setup-gpu:", cuda.Device(0).name())'
	@touch $@

# Wheels for Python PYTHON_GPU on Linux x86-64, torch not among them; pycuda as its source. MORE=scipy adds to them.
wheels-gpu: FOLDER := wheels-gpu
wheels-gpu: FETCH = $(or $(wildcard $(RUN)),$(PYTHON)) -m pip --disable-pip-version-check
wheels-gpu: PLATFORMS = manylinux1_x86_64 manylinux2010_x86_64 manylinux2014_x86_64 \
  $(foreach minor,$(shell seq 5 35),manylinux_2_$(minor)_x86_64)
wheels-gpu:
	rm -rf $(FOLDER)
	$(FETCH) download --quiet --no-deps --only-binary=:all: --python-version $(PYTHON_GPU) --implementation cp \
	  $(addprefix --platform ,$(PLATFORMS)) $(LEAN_PINS) -d $(FOLDER) $(LEAN) $(GPU_NEEDS)
	$(FETCH) wheel --quiet --no-deps $(LEAN_PINS) -w $(FOLDER) $(LEAN_SDIST)
	$(FETCH) download --quiet --no-deps --no-binary=pycuda -d $(FOLDER) $(PYCUDA)
	@du -ab $(FOLDER) | sort -n
	@test $$(du -sm $(FOLDER) | cut -f 1) -lt 64 || { echo "wheels-gpu: more than 64 MB" >&2; exit 1; }
