# Two commands on a machine that has Python and make: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?= +quant=int8_mixed
WORKERS ?= 2

.PHONY: help install train test sanitize chip chip-test chip-tools lint format tables clean
.DEFAULT_GOAL := help

help:  ## Show these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: $(VENV)/installed  ## Make the environment in .venv

# uv installs in a fraction of pip's time; it is told to trust whom the system trusts, and to look where pip looks
$(VENV)/installed: setup.py pyproject.toml constraints.txt $(wildcard qgru/ops/cpu/*.cpp qgru/ops/cpu/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-$$($(BIN)/pip config get global.find-links 2>/dev/null)}" \
		UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt \
		--reinstall-package qgru -e '.[onnx,recipes,test]'
	touch $@

train: install  ## Train, calibrate, train quantized, export, compare (ARGS='recipe=mackey_glass +quant=int8')
	$(BIN)/python train.py $(ARGS)

test: install lint  ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -q --durations=10

# Python itself is not instrumented, so the runtimes come first by hand
SANITIZERS = $(foreach name,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))

sanitize: install  ## Run the CPU kernels' tests under the address and undefined-behaviour sanitizers
	QGRU_SANITIZE=1 $(BIN)/python setup.py -q build_ext --force --inplace
	LD_PRELOAD='$(SANITIZERS)' ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q tests/ops/test_cpu.py; \
		result=$$?; $(BIN)/python setup.py -q build_ext --force --inplace && exit $$result

chip: install chip-tools  ## Train a small model, export it as C, and run it on a Cortex-M4 in QEMU
	$(BIN)/python train.py $(ARGS) trainer.max_epochs=20 'callbacks.quantization.export_formats=[c]' hydra.run.dir=outputs/chip
	$(MAKE) --no-print-directory -C examples/chip MODEL=$(CURDIR)/outputs/chip/model_c

chip-test: install chip-tools  ## Run exported C on eight chips in QEMU, compare its integers, count its instructions
	$(BIN)/python -m benchmarks.chips

CHIP_TOOLS := gcc-arm-none-eabi picolibc-arm-none-eabi qemu-system-arm gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf \
	qemu-system-misc qemu-user gcc-riscv64-linux-gnu libc6-dev-riscv64-cross
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

chip-tools:  # Debian's and Ubuntu's packages
	dpkg-query -W $(CHIP_TOOLS) >/dev/null 2>&1 || \
		{ $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends $(CHIP_TOOLS); }

lint: install  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## Apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: install  ## Rebuild the READMEs' tables from benchmarks/results
	$(BIN)/python -m benchmarks.tables

clean:  ## Remove the environment and what runs wrote
	rm -rf $(VENV) build dist outputs multirun *.egg-info qgru/ops/cpu/*.so
