# make demo    sets everything up, builds for the CPU, runs the main job, leaves ./out/demo/
# make test    sets everything up and runs the whole suite
# What set-up picks can be overridden:
#   PYTHON=...      interpreter for .venv (default: tools/choose-python)
#   TORCH_SPEC=...  what pip installs as torch: a version, or the path of a wheel (PyPI's is a CUDA build of gigabytes;
#                   a CPU wheel is 200 MB)
#   BUILD=...       what to compile: cpu, cuda, auto or 0 (AVIS_STREAM_BUILD; default: as last time, cpu at first)
PYTHON ?= $(shell tools/choose-python)
TORCH_SPEC ?= $(shell grep '^torch==' constraints.txt)
VENV := .venv
BUILT := $(shell cat $(VENV)/.build 2>/dev/null)
BUILD ?= $(or $(BUILT),cpu)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

# Architectures that `make gate` compiles for, such as "80 90"; empty: all that are shipped.
ARCHS ?=
empty :=
ARCH_LIST := $(subst $(empty) $(empty),;,$(strip $(ARCHS)))

.PHONY: packages setup demo test lint type format bench gate gpu-test ci clean FORCE
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

$(VENV)/.torch: constraints.txt
	@command -v c++ >/dev/null || [ "$(BUILD)" = 0 ] || { echo "a C++ compiler is missing: install g++ (apt-get install g++), or set BUILD=0 for the slower pure PyTorch form" >&2; exit 1; }
	@test -x $(BIN)/python || [ -z "$(PYTHON)" ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or later: set PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || [ -n "$(PYTHON)" ] || { echo "no Python 3.11 or later is on the PATH: install one (apt-get install python3.11 python3.11-venv), or set PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV) || { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv, or set PYTHON=" >&2; exit 1; }
	$(PIP) "$(TORCH_SPEC)"
	$(PIP) -c constraints.txt setuptools wheel pybind11 ninja "cmake>=3.24" numpy
	@touch $@

# Another BUILD than last time compiles anew.
$(VENV)/.build: $(if $(filter $(BUILD),$(BUILT)),,FORCE) | $(VENV)/.torch
	@echo $(BUILD) >$@

# What another BUILD left would be loaded all the same.
$(VENV)/.installed: $(VENV)/.torch $(VENV)/.build $(SOURCES)
	rm -f avis_stream/_host*.so avis_stream/ops/*.so
	AVIS_STREAM_BUILD=$(BUILD) PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -c constraints.txt pytest pytest-benchmark hypothesis ruff mypy clang-format tensorboard
	$(PIP) -c constraints.txt starlette uvicorn websockets
	@$(PIP) -c constraints.txt pyaudio || echo "PyAudio cannot be built without portaudio19-dev: tests with a microphone will be skipped" >&2
	@# The reference that our metrics are held to; what it declares beyond ours (OpenCV) its metrics do not use.
	$(PIP) --no-deps -c constraints.txt trackeval
	@touch $@

# Before the environment is made: only the system's Python finds the system's GStreamer.
packages:
	@tools/test-packages

demo: $(VENV)/.installed
	$(BIN)/avis-stream demo --out out/demo

test: packages $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh')
	$(BIN)/mypy

type: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh')

bench: $(VENV)/.dev
	$(BIN)/avis-stream bench --out out/bench --docs docs/benchmarks.md

# Compiles the CUDA kernels and holds their machine code to tools/sass_limits.toml. Needs nvcc, but no GPU.
gate: $(VENV)/.dev
	@command -v nvcc >/dev/null || { echo "no nvcc on the PATH: install the CUDA toolkit, 12.8 or later" >&2; exit 1; }
	$(PIP) -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/cuda -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" \
	  -DAVIS_PACKAGE_DIR="$(CURDIR)/build/cuda/avis_stream" -DAVIS_CUDA=ON \
	  $(if $(ARCHS),"-DAVIS_CUDA_ARCHS=$(ARCH_LIST)",-UAVIS_CUDA_ARCHS)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/cuda --target avis_cuda
	$(BIN)/python tools/check_sass.py build/cuda/avis_stream/ops/libavis_cuda.so $(if $(ARCHS),--archs $(ARCHS))

# On a machine with a GPU: kernels against the CPU, compute-sanitizer, figures. Any torch with CUDA from 2.10 on will do,
# in .venv if that is there, else that of $(PYTHON), or where GPU_PYTHON says.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-test:
	$(GPU_PYTHON) tools/gpu_test.py

ci: lint test

clean:
	rm -rf build out *.egg-info avis_stream/_host*.so avis_stream/ops/*.so $(VENV)/.installed
