# Every target sets up what it needs: a fresh machine with Python, a C++17 compiler and make is enough.
# `make help` lists the targets. Variables: PYTHON, VENV, PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS, FUZZ_SECONDS, FUZZ_ARGS, and
# SIDE_BY_SIDE, empty for tests in one process.

PYTHON ?= python3
VENV ?= .venv
FEDERATED ?= .venv-federated
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Whether the package that tests install has the CUDA module: where there is a GPU to run it. Elsewhere `make cuda-module` compiles it.
CUDA ?= $(if $(wildcard /dev/nvidia0),ON,OFF)

# Two test processes; tests of a group share workers of their own, so they stay in one.
SIDE_BY_SIDE ?= -n 2 --dist loadgroup

AARCH64 ?= aarch64-linux-gnu
AARCH64_CXX ?= $(AARCH64)-g++-12
QEMU ?= qemu-aarch64 -L /usr/$(AARCH64)
FUZZ_CXX ?= clang++-19
FUZZ_SECONDS ?= 60
QEMU_OLD ?= qemu-x86_64 -cpu Nehalem  # no AVX: scalar kernels, and no instruction that they lack

CPP_FILES = $(shell find csrc tests/native tests/fuzz -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')
SOURCES := $(shell find csrc cmake python CMakeLists.txt pyproject.toml README.md LICENSE -type f \
	-not -path '*/__pycache__/*' -not -name '*.so' -not -name '.*' | LC_ALL=C sort)

.DELETE_ON_ERROR:
.PHONY: help test test-cuda demo bench bench-ddp bench-cuda lint format wheel cuda-module test-cuda-sanitize test-federated test-neon test-sanitize fuzz clean FORCE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(VENV)/package.stamp  ## build with warnings as errors, install, run the whole test suite
	$(BIN)/pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

demo: $(VENV)/package.stamp  ## train two workers on real digits, with every codec
	$(BIN)/tersegrad demo $(DEMO_ARGS)

bench: $(VENV)/package.stamp $(VENV)/bench.stamp  ## measure kernels and codecs beside their peers
	$(BIN)/python benchmarks/kernels.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/codecs.py $(BENCH_ARGS)

bench-ddp: $(VENV)/package.stamp $(VENV)/bench.stamp  ## train over slow cables between network namespaces; needs root
	$(BIN)/python benchmarks/ddp.py $(BENCH_ARGS)

test-cuda: $(VENV)/package.stamp  ## what needs a GPU: the tests marked cuda
	$(BIN)/pytest -m cuda $(PYTEST_ARGS)

bench-cuda: $(VENV)/package.stamp  ## CUDA beside the device's memory and peers, about eight minutes; without a GPU a table of dashes
	$(BIN)/python benchmarks/cuda.py $(BENCH_ARGS)

lint: $(VENV)/package.stamp  ## formatting, ruff, mypy, and the native module against its stub
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest tersegrad._core --allowlist tools/stubtest_allowlist.txt

format: $(VENV)/tools.stamp  ## format Python and C++
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP_FILES)

wheel: $(VENV)/tools.stamp  ## build dist/*.tar.gz and a manylinux wheel, and try it without a compiler
	tools/build_wheel.sh $(BIN)

test-federated: $(FEDERATED)/package.stamp  ## Flower and NVFlare, in a virtual environment of their own
	$(FEDERATED)/bin/pytest tests/test_flower.py tests/test_flower_engines.py tests/test_nvflare.py $(PYTEST_ARGS)

test-neon: $(VENV)/tools.stamp  ## the kernels of this machine, and of others under qemu, against the golden hashes
	tools/test_native.sh $(BIN)/cmake build/native
	tools/test_native.sh $(BIN)/cmake build/native '' nm "$(QEMU_OLD)"
	tools/test_native.sh $(BIN)/cmake build/aarch64 $(AARCH64_CXX) $(AARCH64)-nm "$(QEMU)"

test-sanitize: $(VENV)/tools.stamp  ## the same under the address and undefined-behaviour sanitizers
	CXXFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all' tools/test_native.sh $(BIN)/cmake build/sanitize

cuda-module: $(VENV)/tools.stamp  ## compile tersegrad._cuda for one architecture with nvcc, and import it without a driver
	tools/try_cuda_module.sh $(BIN) build/cuda

test-cuda-sanitize: $(VENV)/package.stamp  ## the same under compute-sanitizer: memcheck, racecheck, initcheck
	tools/test_cuda_sanitize.sh $(BIN)

fuzz: $(VENV)/tools.stamp  ## fuzz what reads bodies of strangers, under sanitizers, for FUZZ_SECONDS (60); FUZZ_ARGS for libFuzzer
	tools/fuzz.sh $(BIN)/cmake build/fuzz $(FUZZ_CXX) $(FUZZ_SECONDS) $(FUZZ_ARGS)

clean:  ## remove what was built; the virtual environment stays
	rm -rf build dist $(VENV)/package.stamp $(FEDERATED)/package.stamp

# The tools, pinned.
$(VENV)/tools.stamp: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/bench.stamp: requirements-bench.txt $(VENV)/tools.stamp
	$(PIP) install --quiet --no-deps -r requirements-bench.txt
	touch $@

# Flower pins some packages lower than the tools here do.
$(FEDERATED)/tools.stamp: requirements-federated.txt
	test -x $(FEDERATED)/bin/python || $(PYTHON) -m venv $(FEDERATED)
	$(FEDERATED)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements-federated.txt
	touch $@

$(FEDERATED)/package.stamp: $(FEDERATED)/tools.stamp $(VENV)/package.stamp
	rm -rf build/federated
	$(PIP) wheel --quiet --no-deps --no-build-isolation -C build-dir=build/package -C cmake.define.TERSEGRAD_CUDA=$(CUDA) \
		-C cmake.define.TERSEGRAD_BUILD_EMULATION=ON -C cmake.define.TERSEGRAD_WERROR=ON -w build/federated .
	$(FEDERATED)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --force-reinstall build/federated/*.whl
	touch $@

# The package as its users get it: a wheel, not a link to the sources. Rebuilt when a source changes, appears or goes.
$(VENV)/package.stamp: $(VENV)/tools.stamp $(VENV)/sources.txt $(SOURCES) tools/check_symbols.sh
	$(PIP) install --quiet --no-build-isolation -c requirements-dev.txt \
		-C build-dir=build/package -C cmake.define.TERSEGRAD_WERROR=ON -C cmake.define.TERSEGRAD_CUDA=$(CUDA) \
		-C cmake.define.TERSEGRAD_BUILD_EMULATION=ON '.[torch,cli,dev]'
	tools/check_symbols.sh build/package
	touch $@

$(VENV)/sources.txt: FORCE | $(VENV)/tools.stamp
	@echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@
