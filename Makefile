# `make demo` and `make test` need Python 3.11 or later, make and a package index, and nothing else.
# All they write lies inside this folder: the environment in .venv, caches and temporary files in .cache, results in runs.

CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
VENV := .venv/bin/python
INSTALL := $(VENV) -m pip install --disable-pip-version-check --no-cache-dir

export XDG_CACHE_HOME := $(CURDIR)/.cache
export HF_HOME := $(CURDIR)/.cache/huggingface
export TMPDIR := $(CURDIR)/.cache/tmp
export HF_HUB_OFFLINE := 1

.PHONY: help demo test check bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    set up, then go from text to a searched, trained and fine-tuned encoder (about 6 minutes on 2 cores)'
	@echo 'make test    set up, then run the tests; ARGS="-k space" runs some of them'
	@echo 'make check   set up, then check format, lint, types, import ranks and the examples in docstrings'
	@echo 'make bench   set up, then measure speed against the same model built from the classes of transformers'
	@echo 'make clean   remove the environment and the caches; runs stay'
	@echo
	@echo 'PYTHON=python3.12 chooses an interpreter for the set-up; TORCH_OPTIONS="--index-url URL" another index for torch.'

demo: .venv/ready | .cache/tmp
	$(VENV) -m layerwright demo $(ARGS)

test: .venv/ready | .cache/tmp
	$(VENV) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

check: .venv/ready | .cache/tmp
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m mypy
	$(VENV) -m pytest -q tests/test_imports.py
	$(VENV) -m pytest -q --doctest-modules --doctest-ignore-import-errors layerwright  # triton_convolution.py needs triton

bench: .venv/ready | .cache/tmp
	$(VENV) -m benchmarks.speed $(ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find layerwright tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Torch comes first and alone: what it needs to run on this machine depends on the build the index offers, and the rest must not replace it.
.venv/ready: pyproject.toml constraints.txt | .cache/tmp
	@$(VENV) -m pip --version >/dev/null 2>&1 || { \
	    for python in $(CANDIDATES); do \
	        if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	            echo "making .venv with $$($$python --version)"; exec $$python -m venv --clear .venv; \
	        fi; \
	    done; \
	    echo 'Layerwright needs Python 3.11 or later with its venv module (on Debian: apt install python3-venv); none of these is one: $(CANDIDATES)' >&2; \
	    exit 1; }
	$(INSTALL) $(TORCH_OPTIONS) torch==2.13.0
	$(INSTALL) --constraint constraints.txt setuptools setuptools-scm  # the second builds seqeval, which comes without a wheel
	$(INSTALL) --constraint constraints.txt --no-build-isolation --editable '.[data,onnx,trackers,test,check]'
	@touch $@

.cache/tmp:
	@mkdir -p $@
