# Set-up, the main job and the tests. `make PYTHON=python3.12 ...` picks the Python to start from.

PYTHON ?= python3
# The only place that pins PyTorch, for these commands and .ci/run. pyproject.toml admits 2.11 on.
TORCH := torch==2.15.0 torchvision==0.29.2

PIP := .venv/bin/python -m pip --disable-pip-version-check
COMPILED := setup.py pyproject.toml fastmtt/toolchain.py $(shell find csrc -type f)

.PHONY: demo docs methods sanitize test setup
demo: setup
	@run=demo_$$(date +%Y%m%d-%H%M%S) && \
	.venv/bin/python -m fastmtt.distill --cfg configs/mtt/digits_ipc1.yaml --run_name $$run && \
	.venv/bin/python -m fastmtt.evaluate logged_files/digits/1/ConvNetD2W32/$$run --compare

# Every method on handwritten digits, in some minutes; the table goes to bench/results/methods.md.
methods: setup
	.venv/bin/python -m bench.methods

# Bytecode is kept whatever the environment says: without, every process that collects compiles the
# tests anew, for some seconds.
test: setup
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest tests -n auto --maxprocesses 4 --dist worksteal

# The documentation site, into site/; a warning is an error. The variable spares an advertisement.
docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs --quiet build --strict

# The ops' tests on kernels that check addresses and undefined behaviour; ten minutes, with gcc.
SANITIZERS = $(foreach name,asan stdc++,$(shell g++ -print-file-name=lib$(name).so))
sanitize: setup
	@rm -rf build/sanitized && mkdir -p build/sanitized
	@cp -r setup.py pyproject.toml README.md LICENSE csrc kernels fastmtt tests build/sanitized
	cd build/sanitized && FASTMTT_SANITIZE=1 FASTMTT_REQUIRE_EXT=1 \
	  ../../.venv/bin/python setup.py -q build_ext --inplace
	cd build/sanitized && LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 \
	  FASTMTT_REQUIRE_EXT=1 ../../.venv/bin/python -m pytest tests/ops

setup: .venv/installed
	@if [ -f fastmtt/_C_missing.txt ]; then \
	  echo "fastmtt: pure Python, slower: $$(cat fastmtt/_C_missing.txt)"; fi

# An installation without the extension is tried again each time: a compiler may have come.
ifneq ($(wildcard fastmtt/_C_missing.txt),)
.PHONY: .venv/installed
endif

.venv/installed: Makefile $(COMPILED) | .venv/bin/pip
	$(PIP) install $(TORCH) "setuptools>=77" ninja
	$(PIP) install --no-build-isolation -e ".[dev]"
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  2>/dev/null || { \
	  echo "fastmtt: $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo not there), but Python 3.11," \
	    "3.12 or 3.13 is needed: name one, as in make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "fastmtt: $(PYTHON) has no venv: install it (Debian, Ubuntu: python3-venv)"; exit 2; }
	$(PYTHON) -m venv .venv
