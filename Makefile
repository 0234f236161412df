# Everything happens in .venv, .venv-tox and .tox below this directory; nothing is installed elsewhere.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# pip and tox keep caches below HOME; with none set they would try the root directory.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/.home
endif

SOURCES := pyproject.toml LICENSE README.md $(shell find src share -type f ! -name '*.pyc')
TOX = PATH="$$(tools/pythons)$$PATH" .venv-tox/bin/tox run
ARGS =

.PHONY: help demo test soak bench clean

help:  ## show this list
	@sed -En 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/installed  ## install into .venv and show what sockstream does
	.venv/bin/sockstream demo

test: .venv-tox/installed  ## lint, types, layers; all tests on Python 3.11, the quick ones on 3.12 and 3.13 (ARGS="-e py311 -- -k name")
	$(TOX) $(ARGS)

soak: .venv-tox/installed  ## the tests at full size, for hours rather than minutes
	$(TOX) -e soak $(ARGS)

bench: .venv/installed  ## run every benchmark; fails when one misses its bar
	@status=0; \
	for file in benchmarks/[!_]*.py; do \
	    echo "== $$file"; \
	    .venv/bin/python "$$file" || status=1; \
	done; \
	exit "$$status"

clean:  ## remove what the other targets made
	rm -rf .venv .venv-tox .tox .home .ci/log .hypothesis .pytest_cache .mypy_cache .ruff_cache \
	    .import_linter_cache

.venv/installed: $(SOURCES)
	"$$(tools/pythons first)" -m venv .venv
	.venv/bin/python -m pip install --quiet .
	touch $@

.venv-tox/installed: Makefile
	"$$(tools/pythons first)" -m venv .venv-tox
	.venv-tox/bin/python -m pip install --quiet 'tox>=4.21'
	touch $@
