# make demo: the whole story on built-in data.   make test: the whole test suite.
# Both make .venv first, with the pinned set; nothing else is needed.
# make test JOBS=8 takes eight cores, and about 1 GB of memory for each.
# What is not here is skipped, and said at the end: TRL and Postgres' driver come with
# EXTRAS=dev,bench,postgres, the site's tools with EXTRAS=dev,docs, what runs notebooks with EXTRAS=dev,notebooks; .ci/run installs Chromium and starts a Postgres besides.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRAS)

.PHONY: demo test lint site clean

demo: $(READY)
	$(BIN)/visgrpo demo

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(READY)
	$(BIN)/python -m mkdocs build --strict --quiet

# torch first: asked for together with others, the newest CUDA build would come instead.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $(READY)

clean:
	rm -rf $(VENV)
