# The verbs of this project; `make help` lists them. Python 3.11 or newer and make are all that must be there before.

WORKERS ?= 4
DEPTH ?= 2
SEED ?= 0
ROUTER_SYNC ?= both
OUT ?= demo-out
PRESET ?= cpu
RUNS ?= 1000000
REPORT_OUT ?= report-out

# The first Python on this machine that is new enough; `make PYTHON=/path/to/python3` chooses another.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$python >/dev/null 2>&1 && $$python -c "$(NEW_ENOUGH)" 2>/dev/null && echo $$python && break; done)

# The ordinary Linux wheel of torch carries several GB of CUDA. Without an NVIDIA driver the CPU build is asked for first;
# where its index cannot be reached, plain pip decides.
TORCH := $(shell sed -n 's/^torch==.*/&/p' constraints.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

BIN := .venv/bin
WEB := coordinator/web
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(wildcard tinylora coordinator worker tests benchmarks examples docs)

QUICK := not slow and not gpu and not web and not deploy and not docs

# A docstring need not have Args and Returns (DOC101, DOC201, DOC402); what it says of arguments must be true (DOC103, and
# ruff's D417 where some are left out).
WRONG_DOCSTRING := (/DOC[0-9]+:|Traceback|Error/ && !/DOC(101|201|402):/ && \
	!(/DOC103:/ && !/in the docstring but not in the function signature/)) { print; wrong = 1 } END { exit wrong }

.DEFAULT_GOAL := help
.PHONY: help install demo test slow chaos fuzz web-test deploy-test docs reference docs-test dist check style imports docstrings types bench report web pictures stubs base clean

help: ## list the verbs
	@echo "TinyLoRA: make VERB [WORKERS=4] [DEPTH=2] [SEED=0] [ROUTER_SYNC=both|statistics|weights] [OUT=demo-out]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1#\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '#' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1  \2/p' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## create .venv with all that the other verbs need

demo: $(INSTALLED) ## a real federation on this machine: bundle, report and pictures in demo-out/
	@$(BIN)/python -m tinylora.cli demo --workers $(WORKERS) --depth $(DEPTH) --seed $(SEED) \
		--router-sync $(ROUTER_SYNC) --out $(OUT)

test: $(INSTALLED) ## the tests, without those that take minutes; two processes, each with whole files
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "$(QUICK)"

slow: $(INSTALLED) ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m "slow and not gpu and not web and not deploy and not docs"

chaos: $(INSTALLED) ## kill runs at every durable step and at random, compare what came of it; some minutes
	@$(BIN)/python -m tests.chaos
	@$(BIN)/python -m tests.chaos.random_kills
	@$(BIN)/python -m tests.chaos.worker_kills

fuzz: $(INSTALLED) ## a million bundles changed at random, guided by what the reader does with them; most of an hour
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(PIP) install -qq -e ".[fuzz]" -c constraints.txt
	@$(BIN)/python -m tests.fuzz.bundle --runs $(RUNS)

web-test: $(INSTALLED) $(WEB)/node_modules ## the dashboard in a real browser against real runs; some twenty minutes, needs Chromium
	@$(BIN)/python -m tests.web.chromium
	@$(BIN)/python -m pytest -q -m web tests/web

deploy-test: $(INSTALLED) ## images, nginx, name spaces, systemd, a wheel in a fresh environment; some minutes, Debian and root
	@$(BIN)/python -m tests.deploy.programs
	@$(BIN)/python -m pytest -q -m deploy --timeout 1800 tests/deploy

docs: $(INSTALLED) ## the pages as a site in docs/_build/html, every warning an error
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky -b html docs docs/_build/html

reference: $(INSTALLED) ## make the pages of docs/reference anew from the code
	@$(BIN)/python -m tests.docs.reference

docs-test: $(INSTALLED) ## every command in README and docs/, run as it stands there; some minutes
	@$(BIN)/python -m pytest -q -m docs --timeout 1800 tests/docs

dist: $(INSTALLED) ## wheel and source archive in dist/
	@$(BIN)/python -m build --outdir dist .

check: $(INSTALLED) ## style, types, docstrings, the direction of imports, and the pages
	@$(MAKE) --no-print-directory --keep-going style imports docstrings types docs

style: $(INSTALLED)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --quiet --diff $(SOURCES)

imports: $(INSTALLED)
	@$(BIN)/lint-imports --no-logo

docstrings: $(INSTALLED)
	@$(BIN)/pydoclint --show-filenames-in-every-violation-message=True $(filter-out tests,$(SOURCES)) 2>&1 \
		| awk '$(WRONG_DOCSTRING)'

types: $(INSTALLED)
	@$(BIN)/pyright

bench: $(INSTALLED) ## measure against PEFT and against a plain copy; results in benchmarks/results/
	@$(BIN)/python -m benchmarks

report: $(INSTALLED) ## every method against its baselines, an hour or two; docs/quality/ and benchmarks/results/
	@$(BIN)/tinylora report --config benchmarks/quality.toml --preset $(PRESET) --out $(REPORT_OUT)
	@mkdir -p docs/quality && cp $(REPORT_OUT)/quality.json benchmarks/results/ && \
		cp $(REPORT_OUT)/quality.md $(REPORT_OUT)/*.png docs/quality/

web: $(WEB)/node_modules ## build the dashboard's page anew; needs Node 20.19 or newer
	@cd $(WEB) && npm run --silent types && npm run --silent check && npm run --silent test && npm run --silent build

pictures: $(INSTALLED) ## make the README's pictures of the dashboard anew; needs Chromium
	@$(BIN)/python -m tests.web.pictures

$(WEB)/node_modules: $(WEB)/package-lock.json
	@cd $(WEB) && npm ci --silent --no-audit --no-fund && touch node_modules

stubs: $(INSTALLED) ## make the worker's gRPC stubs anew from worker/tinylora_worker/wire/worker.proto
	@cd worker && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		tinylora_worker/wire/worker.proto

base: $(INSTALLED) ## train the demo's base model anew (an hour or more on a CPU)
	@$(BIN)/python -m tinylora.demo.make_base

clean: ## remove what the verbs made, the environment included
	@rm -rf .venv demo-out report-out build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: TinyLoRA needs Python 3.11 or newer and found none;" \
		"install one or say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c "$(NEW_ENOUGH)" 2>/dev/null || { echo "error: TinyLoRA needs Python 3.11 or newer;" \
		"$(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there)"; exit 1; }
	@test -x $(BIN)/python || { echo "Creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; } || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -c "import torch" 2>/dev/null || $(MAKE) --no-print-directory torch
	@echo "Installing TinyLoRA and its tools"
	@$(PIP) install -qq -e ".[dev]" -c constraints.txt
	@$(PIP) check >/dev/null || $(PIP) check
	@touch $@

.PHONY: torch
torch:
	@index="$(TORCH_INDEX_URL)"; \
	if [ -z "$$index" ] && [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then index=$(TORCH_CPU_INDEX); fi; \
	if [ -n "$$index" ]; then \
		echo "Installing $(TORCH) from $$index"; \
		$(PIP) install -qq --no-deps --retries 0 --timeout 15 --index-url "$$index" "$(TORCH)" 2>/dev/null \
			|| echo "That index does not answer: the ordinary package is taken"; \
	fi
