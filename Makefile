# Both targets set up their own virtual environment in .venv and need Python 3.10 or newer, pip and make alone.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test docs

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/01_one_image.py

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OPEN_CLIP_3=$(abspath $(VENV))/open_clip_3 $(BIN)/pytest
	$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site

docs: $(VENV)/test.stamp
	$(BIN)/mkdocs serve

$(VENV)/demo.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e .
	touch $@

$(VENV)/test.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[test,docs]'
	# medvae pins open_clip 2.24; a test compares it with the newest
	$(BIN)/pip install --no-deps --target $(VENV)/open_clip_3 'open_clip_torch>=3'
	touch $@
