# Everything runs in $(VENV), which is made on the way. VENV=0 uses the Python that is given instead
# and installs nothing: for machines without network, and for trying another torch.
VENV ?= .venv
PYTHON ?=
WORKERS ?= auto
TEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
GPU_CHECK_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

SITE := build/site
ifeq ($(VENV),0)
PY := $(or $(PYTHON),python3)
BIN :=
READY := $(SITE)
export PYTHONPATH := $(CURDIR)/$(SITE)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
BIN := $(VENV)/bin/
READY := $(VENV)/.stamp
endif

# Not `python -m pytest`: that puts the checkout on sys.path, where it hides what is installed.
PYTEST = "$(PY)" -c 'import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())'
# A bare machine may lack either plugin.
PLUGINS = $(shell "$(PY)" -c "from importlib.util import find_spec as has; print( \
    '-n $(WORKERS) --dist loadfile' if has('xdist') else '', \
    '--timeout 600' if has('pytest_timeout') else '')")
CUDA_SOURCES := $(wildcard $(foreach dir,csrc csrc/* tests/support tests/support/*,\
    $(foreach ext,cpp cu cuh h hpp,$(dir)/*.$(ext))))

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	    printf '%-14s%s\n' "$$name" "$$text"; done
	@echo "Variables: VENV PYTHON WORKERS TEST_ARGS BENCH_ARGS DEMO_ARGS GPU_CHECK_ARGS"

.PHONY: venv
venv: $(READY) ## install the package, editable, with its tools at the pinned versions

$(VENV)/.stamp: pyproject.toml constraints.txt setup.py
	@set -e; python=; \
	for name in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11 python3.10); do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	        python=$$name; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python 3.10 or newer$(if $(PYTHON), at $(PYTHON)); name one with PYTHON=..." >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$python has no ensurepip and can't make a virtual environment: install its venv" >&2; \
	    echo "make: package (Debian, Ubuntu: python3-venv), name another Python with PYTHON=..., or" >&2; \
	    echo "make: pass VENV=0 to use the packages that $$python already has" >&2; exit 1; \
	fi; \
	if ! "$(PY)" -m pip --version >/dev/null 2>&1; then \
	    "$$python" -m venv --clear "$(VENV)"; \
	fi
	@echo "make: installing what constraints.txt pins into $(VENV); the first time this takes minutes"
	"$(PY)" -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools wheel ninja pybind11
	"$(PY)" -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test,bench,demo,docs,dev]'
	@touch "$@"

# Always rebuilt: a copy that lags behind the checkout would test yesterday's code.
.PHONY: $(SITE)
$(SITE):
	@rm -rf build/lib $(SITE)
	@"$(PY)" setup.py -q build --build-lib $(SITE)

.PHONY: build
build: $(READY) ## rebuild the CUDA extension in place, where there is nvcc; with VENV=0, build into build/site
ifneq ($(VENV),0)
	"$(PY)" setup.py -q build_ext --inplace
endif

# Tests read the code of every architecture, and a wheel is for every machine.
test test-all dist wheel: export FUSED_OPTIM_CUDA_ARCHS ?= all

.PHONY: wheel
wheel: $(READY) ## build the wheel, with kernels for every GPU, into dist/
	"$(PY)" -m build --wheel --no-isolation

.PHONY: dist
dist: $(READY) ## build the sdist and the wheel into dist/
	rm -rf build/lib
	"$(PY)" -m build --no-isolation

.PHONY: test
test: build ## run the tests, but for the long ones
	$(PYTEST) $(PLUGINS) $(TEST_ARGS)

.PHONY: test-all
test-all: build ## run all the tests
	$(PYTEST) $(PLUGINS) -m "" $(TEST_ARGS)

.PHONY: lint
lint: $(READY) ## check style, formatting and type hints
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy
	$(if $(CUDA_SOURCES),$(BIN)clang-format --dry-run -Werror $(CUDA_SOURCES))

.PHONY: format
format: $(READY) ## repair style and formatting where a tool can
	"$(PY)" -m ruff check --fix-only .
	"$(PY)" -m ruff format .
	$(if $(CUDA_SOURCES),$(BIN)clang-format -i $(CUDA_SOURCES))

.PHONY: docs
docs: $(READY) ## build the site into build/html, with warnings as errors
	NO_MKDOCS_2_WARNING=1 "$(PY)" -m mkdocs build --strict

.PHONY: demo
demo: build ## train a small GPT; DEMO_ARGS=--help lists its options
	"$(PY)" examples/demo/train_gpt.py $(DEMO_ARGS)

.PHONY: bench
bench: build ## time every optimizer for some minutes; `python -m bench` compares them
	$(PYTEST) bench --benchmark-only $(BENCH_ARGS)

# Builds by itself, for the GPU that is there; a machine that has one may have no network.
.PHONY: gpu-check
gpu-check: ## build, test, sanitize and measure on a GPU; GPU_CHECK_ARGS=--help lists options
	@"$(or $(PYTHON),$(if $(wildcard .venv/bin/python),.venv/bin/python,python3))" \
	    -m tools.gpu_check $(GPU_CHECK_ARGS)

.PHONY: clean
clean: ## remove what was built, but not the virtual environment
	rm -rf build dist *.egg-info .benchmarks .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
