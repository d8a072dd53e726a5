# `make demo` and `make test` do all their own set-up: they need Python 3.11+ with venv, and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= outputs/demo

.PHONY: demo ablations test conformance check oldest dist style bench docs

# The demo needs less than the tests; what only these need says much on standard error when it is imported.
$(VENV)/.installed-%: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet -e ".[$*]"
	touch $@

demo: $(VENV)/.installed-demo  ## the main job: three stages over image, speech and video, then questions
	$(BIN)/xllm demo --output $(OUTPUT)

ablations: $(VENV)/.installed-demo  ## the paper's questions by experiment; docs/ablations.md, its plot and its figures
	$(BIN)/xllm ablate --paper --output outputs/ablations
	cp -R outputs/ablations/docs/. docs/

test: $(VENV)/.installed-dev  ## lint, types and every test, slow ones and transformers' own suites too
	sh .ci/browser.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/types.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tests/conformance/suites.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--timeout 900 --durations 25

conformance: $(VENV)/.installed-dev  ## transformers' own common test suites on our classes (RUN_SLOW=1: slow ones too)
	$(BIN)/python tests/conformance/suites.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest tests/conformance -n 2 --dist loadfile --timeout 900

check: $(VENV)/.installed-dev  ## lint, types and the quick tests
	$(BIN)/ruff check .
	$(BIN)/python .ci/types.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not slow" -n 2 --ignore tests/conformance

oldest:  ## the quick tests over the oldest versions of all that pyproject.toml allows, in an environment of their own
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(VENV)-oldest/bin/pip install --quiet -c .ci/oldest.txt -e ".[dev,microphone,tensorboard]"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)-oldest/bin/pytest -m "not slow" -n 2 --ignore tests/conformance

dist: $(VENV)/.installed-dev  ## wheel and source distribution; the wheel is asked in a new environment
	rm -rf dist build/new
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/new
	build/new/bin/pip install --quiet dist/*.whl
	cd build && new/bin/xllm --version && new/bin/xllm env && new/bin/xllm init new/tiny --preset tiny && \
		new/bin/xllm chat new/tiny "What is this?"

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-dev  ## ratios against peers in the same run
	for file in benchmarks/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done
