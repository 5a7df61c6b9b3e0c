# Two commands do all the set-up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
HOST ?= 127.0.0.1
PORT ?= 8000
FAULTS ?= 2000
JOBS ?= 3

.PHONY: run install test check fix bench bench-gpu bench-takeover bench-cancel bench-hostile bench-million bench-replay soak chaos clean

run: install ## install what a laptop needs and serve the demo on http://127.0.0.1:8000
	FLUEMAN_LOG_FORMAT=$${FLUEMAN_LOG_FORMAT:-console} $(BIN)/flueman serve --host $(HOST) --port $(PORT)

install: .venv/installed ## .venv with .venv/bin/flueman in it

test: .venv/installed-dev ## lint, types and all tests, against real parts
	tests/conformance/setup.sh
	$(MAKE) check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder

check: .venv/installed-dev ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	npm run --silent check

fix: .venv/installed-dev ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed-dev ## speed and memory as ratios in one run; appends to tests/benchmarks/RESULTS.md
	$(BIN)/python -m tests.benchmarks

bench-gpu: .venv/installed-dev ## the same against bare vLLM on a GPU; skipped where there is none
	$(BIN)/python -m tests.benchmarks.gpu

bench-takeover: .venv/installed-dev ## nodes killed in the middle of answers: who goes on, and how soon; appends to RESULTS.md
	$(BIN)/python -m tests.benchmarks.takeover

bench-cancel: .venv/installed-dev ## cancels at random moments among 200 busy sessions: how soon, and what goes on after; appends to RESULTS.md
	$(BIN)/python -m tests.benchmarks.cancel

bench-hostile: .venv/installed-dev ## 500 good sessions with and without hostile clients, in turn; appends to RESULTS.md
	$(BIN)/python -m tests.benchmarks.hostile

bench-million: .venv/installed-dev ## a million sessions: every question of the console by an index, and how fast; appends to RESULTS.md
	$(BIN)/python -m tests.benchmarks.million

bench-replay: .venv/installed-dev ## archived sessions are watched at 1x: how true the pace is, and how soon the first event; appends to RESULTS.md
	$(BIN)/python -m tests.benchmarks.replay

soak: .venv/installed-dev ## half an hour of sessions that come and go: memory, files, tasks and keys stay flat; appends to RESULTS.md
	$(BIN)/python -m tests.benchmarks.soak

chaos: .venv/installed-dev ## bugs planted in real processes are found; then faults in real processes while clients talk: make chaos FAULTS=2000 SEED=7; no seed, any seed
	$(BIN)/python -m pytest -m chaos tests/faults
	$(BIN)/python -m tests.faults --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

clean: ## forget the installation; `var/` stays
	rm -rf .venv node_modules tests/conformance/node_modules tests/conformance/.venv-*

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Flueman needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local]'
	touch $@

# The lock has all that vLLM's CPU build needs and leaves out what breaks its import; so no resolver is asked.
.venv/installed-dev: pyproject.toml constraints.txt package.json tests/setup.sh | .venv/bin/python
	tests/setup.sh
	$(BIN)/python -m pip install --quiet --no-deps --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	npm install --silent --no-audit --no-fund --no-package-lock
	touch $@ .venv/installed
