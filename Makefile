# make demo   install into .venv and run the quickstart comparison
# make test   install the test extra and run the whole test suite
# make plugin install the example plug-in beside the package and run its tests
# make browser  open reports and the page of `simcluster ui` in headless Chromium, where there is one (Debian's package chromium, or CHROMIUM=path)
# make docs   the documentation site, into build/docs: warnings are errors, internal links are checked
# make notebooks  run those of examples/notebooks, and keep what they show
# make package  source distribution and wheel into build/dist, checked, installed apart and tried there
# make gate   compare simulated with measured times, where SIMCLUSTER_DATA is: worse by two points fails
# make fast   compile the modules of simcluster/_compiled.py here (about two CPU-minutes); make pure takes them away
# make compiled  compile into build/compiled, and check there that both ways agree to the bit
# make paper-tables   EcoServe's evaluation, paper against simulated, into docs/ecoserve.md and docs/ecoserve-studies.md (goes on where it was stopped)
PYTHON ?= python3
VENV ?= .venv
SIMCLUSTER_DATA ?= ../shared/data
BIN = $(VENV)/bin

.PHONY: demo test docs notebooks package plugin browser fast pure compiled lint gate paper-tables clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python scenarios/quickstart.py -o results/quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto

# Into a folder of its own: the rest of the suite must not find its entry points.
plugin: $(VENV)/.installed-dev
	rm -rf build/plugin examples/plugin/build
	$(BIN)/python -m pip install --quiet --no-deps --target build/plugin examples/plugin
	PYTHONPATH=$(CURDIR)/build/plugin $(BIN)/python -m pytest -n auto examples/plugin

# Playwright drives it; its own download of a browser is not needed.
browser: $(VENV)/.installed-dev
	@if command -v "$${CHROMIUM:-chromium}" >/dev/null; then \
	  $(BIN)/python -m pip install --quiet -e ".[browser,ui]" && $(BIN)/python -m pytest -q tests/report/test_browser.py tests/ui/test_page.py; \
	else \
	  echo "browser: skipped, there is no chromium (CHROMIUM)"; \
	fi

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "docs: build/docs/index.html"

# Outside the checkout: what is missing in the wheel is missing there.
package: $(VENV)/.installed-dev
	rm -rf build/dist build/apart build/lib
	$(BIN)/python -m pip install --quiet -e ".[release]"
	$(BIN)/python -m build --outdir build/dist . >/dev/null
	$(BIN)/python -m twine check --strict build/dist/*
	$(BIN)/python -m pip install --quiet --no-deps --target build/apart build/dist/*.whl
	mkdir build/apart/work
	cd build/apart/work && export PYTHONPATH=$(CURDIR)/build/apart SIM="$(abspath $(BIN))/python -P -m simcluster" \
	  && $$SIM doctor && $$SIM examples copy && $$SIM check scenarios/first.toml >/dev/null \
	  && $$SIM compare scenarios/first.toml -o results/first >/dev/null && $$SIM report results/first

notebooks: $(VENV)/.installed-dev
	$(BIN)/python examples/notebooks/execute.py

fast: $(VENV)/.installed-dev pure
	SIMCLUSTER_COMPILE=1 $(BIN)/python setup.py --quiet build_ext --inplace --parallel 2
	$(BIN)/simcluster --version

pure:
	find simcluster -name '*.so' -delete
	rm -f simcluster/compiled.json

# What compiled modules must not change: results to the bit, and what code from elsewhere relies on.
COMPILED = $(CURDIR)/build/compiled
SAME = tests/test_compiled.py tests/test_golden.py tests/testing tests/test_laws.py \
  tests/engine/test_resolutions.py tests/roofline/test_steptime.py tests/test_plugins.py

compiled: $(VENV)/.installed-dev
	rm -rf build/compiled build/plugin examples/plugin/build
	SIMCLUSTER_COMPILE=1 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/compiled .
	$(BIN)/python -m pip install --quiet --no-deps --target build/plugin examples/plugin
	PYTHONPATH=$(COMPILED) $(BIN)/python -P -m simcluster --version | grep -x 'simcluster .*, compiled'
	PYTHONPATH=$(COMPILED) $(BIN)/python benchmarks/digests.py --check tests/golden/digests.txt
	PYTHONPATH=$(COMPILED) $(BIN)/pytest -n auto -q $(SAME)
	PYTHONPATH=$(COMPILED):$(CURDIR)/build/plugin $(BIN)/pytest -n auto -q examples/plugin

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict examples/plugin/simcluster_example
	$(BIN)/codespell simcluster scenarios examples plots tests benchmarks docs README.md CHANGELOG.md

# One thread: small matrices, on which more threads wait for each other (26 CPU-seconds, 110 with two).
gate: $(VENV)/.installed
	@if [ -d "$(SIMCLUSTER_DATA)" ]; then \
	  OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/simcluster validate "$(SIMCLUSTER_DATA)" --gate; \
	else \
	  echo "gate: skipped, no measured sets at $(SIMCLUSTER_DATA) (SIMCLUSTER_DATA)"; \
	fi

paper-tables: $(VENV)/.installed
	$(BIN)/python scenarios/ecoserve/run.py -o results/ecoserve
	$(BIN)/python scenarios/ecoserve/elastic.py -o results/ecoserve
	$(BIN)/python scenarios/ecoserve/tables.py results/ecoserve docs/ecoserve.md docs/ecoserve-studies.md
	for study in slo comparison ablations inputs readings slack scaling burstiness pipeline; do \
	  $(BIN)/python plots/fig_ecoserve_goodput.py results/ecoserve/$$study.csv -o docs/img/ecoserve_$$study.png || exit 1; \
	done
	for study in rising day; do \
	  $(BIN)/python plots/fig_ecoserve_elastic.py results/ecoserve --study $$study -o docs/img/ecoserve_$$study.png || exit 1; \
	done

clean:
	rm -rf $(VENV) results build *.egg-info
	$(MAKE) pure
