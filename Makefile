# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test lint format fidelity tiny bench-fashion clean
install: $(STAMP)

# The constraints pin the tested set: an open range would fetch gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/openfino demo --out demo --overwrite

# Two processes of one thread each; more make it faster where there are more cores.
TEST_PROCESSES ?= 2
test: install
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fidelity: install
	$(BIN)/python tests/fidelity/page.py

# Hours; goes on where it was stopped. Needs Debian's dataset-fashion-mnist, on which training is watched.
tiny: install
	$(BIN)/python benchmarks/build_tiny.py

bench-fashion: install
	$(BIN)/python benchmarks/fashion.py runs/fashion --overwrite
	$(BIN)/openfino compare recipes/compare-fashion.yaml --jobs 2

clean:
	rm -rf .venv demo
