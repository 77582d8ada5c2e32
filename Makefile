# Two commands: `make demo` and `make test`; `make bench` measures this machine. The rest is for working on vitedge.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml

.PHONY: demo test test-arm64 has-arm64 bench lint clean

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/vitedge demo

# Two processes, each with one thread for PyTorch. A file stays in one of them: its tests share what its fixtures make.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# A bundle's self-test on two emulated ARM64 CPUs; part of `make test` too, which leaves it out where something is missing.
test-arm64: has-arm64 $(VENV)/.installed
	$(BIN)/python -m pytest tests/commands/test_bundle_arm64.py

has-arm64:
	@for command in qemu-aarch64-static apt-get; do command -v $$command >/dev/null || { \
	    echo "test-arm64: found no $$command; it needs Debian's apt, and qemu-user-static (apt-get install qemu-user-static)"; \
	    exit 1; }; done >&2

# A real encoder and photographs of your own: make bench BENCH="--model DIR --images DIR --eval DIR"
bench: $(VENV)/.installed
	$(BIN)/python -m vitedge.benchmarks.suite $(BENCH)

# mypy and import-linter read the tree as it gets installed, because the folders carry other names in the repository.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/installed && mkdir -p build/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/installed .
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p vitedge
	cd build/installed && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info
