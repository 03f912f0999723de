# Everything one does with the project. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# A GPU picks the CUDA engine; `make demo ENGINE=cpu` overrules.
ENGINE ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
# Extra arguments for pip, for example an index with CPU builds of torch (see README.md)
PIP_ARGS ?=
# Two processes or more; what needs the real engine is one group, which one of them runs
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup
# Compiling every module takes nearly half of an install's time; Python compiles those that it imports, when it does, and
# keeps them: without, each process would compile vLLM and torch again (12 of 23 seconds)
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo demo-full test test-fast test-engine test-whole test-all test-thinking test-cluster test-page browser families fuzz check format lint type lab-model careful-model lab-report bench bench-grading bench-golds theory measured-loss gpu-check kills hosts faults soak docs pictures docs-commands claims measurements \
	probe train-phase1 train-phase2 eval two-phase clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# A mark of its own: what was cut off while it was made is made again
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("conclip needs Python 3.11 or newer; give one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: requirements/cpu.txt requirements/cuda.txt pyproject.toml | $(VENV)/.made
ifeq ($(ENGINE),cuda)
	$(PIP) -r requirements/cuda.txt
else
	$(PIP) --no-deps -r requirements/cpu.txt
endif
	$(PIP) --no-deps -e .
	@touch $@

# The tools have no package in common with cpu.txt, so that the two may be installed at the same time; cuda.txt brings others
$(VENV)/.installed-tools: requirements/dev.txt | $(VENV)/.made $(if $(filter cuda,$(ENGINE)),$(VENV)/.installed)
	$(PIP) --no-deps -r requirements/dev.txt
	@touch $@

DEV = $(VENV)/.installed $(VENV)/.installed-tools

install: $(VENV)/.installed ## make .venv and install everything a run needs

install-dev: $(DEV) ## and the tools of tests and checks (twice as fast with make -j2)

# Ray comes with the tools
ifneq ($(findstring cluster=ray,$(ARGS)),)
demo demo-full: $(VENV)/.installed-tools
endif

demo: $(VENV)/.installed ## the whole two-phase recipe on the embedded model (4 minutes on 2 cores; 6 with a busy process beside)
	$(BIN)/conclip two-phase $(ARGS)

demo-full: $(VENV)/.installed ## the larger demo: 1,000 held-out problems, three seeds (half an hour on 2 cores; an hour on slow ones)
	$(BIN)/conclip two-phase -m experiment=full seed=0,1,2 $(ARGS)

probe: $(VENV)/.installed ## conclip probe ARGS="..."
	$(BIN)/conclip probe $(ARGS)

train-phase1: $(VENV)/.installed ## conclip train-phase1 ARGS="..."
	$(BIN)/conclip train-phase1 $(ARGS)

train-phase2: $(VENV)/.installed ## conclip train-phase2 ARGS="..."
	$(BIN)/conclip train-phase2 $(ARGS)

eval: $(VENV)/.installed ## conclip eval ARGS="..."
	$(BIN)/conclip eval $(ARGS)

two-phase: $(VENV)/.installed ## conclip two-phase ARGS="..."
	$(BIN)/conclip two-phase $(ARGS)

lab-model: $(VENV)/.installed ## remake the embedded model's weights (about 15 minutes on 2 cores)
	$(BIN)/python -m benchmarks.lab_model.pretrain --out conclip/lab/weights

careful-model: $(VENV)/.installed ## a lab model whose re-checks repair, for a claim: outputs/careful-model (minutes)
	$(BIN)/python -m benchmarks.lab_model.pretrain --start conclip/lab/weights --repairing --pools 6 --lr 0.003 --out outputs/careful-model

lab-report: $(VENV)/.installed ## measure the embedded model: accuracy and length by level, and what re-checks are worth
	$(BIN)/python benchmarks/lab_report.py $(ARGS)

bench: $(DEV) ## speed of sampling, update and step, against bare vLLM, a bare forward and backward pass, and TRL (an hour or more)
	$(BIN)/python -m benchmarks.performance $(ARGS)

bench-golds: $(DEV) ## golds of known value: what the grader takes for equal (ten minutes)
	$(BIN)/python benchmarks/grading_golds.py $(ARGS)

bench-grading: $(VENV)/.installed ## gradings a second, symbolic and cached
	$(BIN)/python benchmarks/grading_speed.py $(ARGS)

kills: $(VENV)/.installed ## kill runs at 40 random moments and compare what their second start leaves (about an hour)
	$(BIN)/python benchmarks/kills.py $(ARGS)

hosts: $(DEV) ## a run over four hosts (network namespaces; root): kill processes and hosts, compare what is left (long)
	$(BIN)/python -m benchmarks.hosts $(ARGS)

gpu-check: $(VENV)/.installed ## on a machine with a CUDA GPU: what holds there, as a table (eight minutes; without a GPU a rehearsal)
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

faults: $(DEV) ## full disks, lost processes, lack of memory and more: the table of docs/reliability.md (half an hour)
	$(BIN)/python benchmarks/faults.py $(ARGS)

soak: $(DEV) ## train for an hour and watch memory, processes and file handles
	$(BIN)/python benchmarks/soak.py $(ARGS)

docs: $(DEV) ## the pages of docs/ as a site, in site/index.html
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

pictures: $(DEV) ## the pictures of docs/ and README, from the demo's run (needs make browser)
	$(BIN)/python docs/pictures.py $(ARGS)

docs-commands: $(DEV) ## run every command of README and docs/, made small (about twenty minutes)
	$(BIN)/python benchmarks/docs_commands.py $(ARGS)

claims: $(VENV)/.installed ## try every claim of conf/claims/, and write docs/claims.md (a day; continues where it was cut)
	[ -d outputs/careful-model ] || $(MAKE) careful-model
	$(BIN)/conclip claims --jobs 2 --page docs $(ARGS)

measurements: demo-full lab-report bench bench-grading bench-golds theory measured-loss claims ## the measurements behind the lab's figures, one after another (a day)
	$(BIN)/conclip two-phase -m seed=0,1,2,3,4
	$(BIN)/conclip two-phase experiment=no_hidden_penalty

theory: $(VENV)/.installed ## the table of docs/theory.md: exact pressure on length
	$(BIN)/python benchmarks/theory_table.py

measured-loss: $(VENV)/.installed ## the losses that four runs measured beside the closed form of docs/theory.md (ten minutes)
	$(BIN)/python benchmarks/measured_loss.py $(ARGS)

test: $(DEV) ## unit tests, and what samples with the real engine (minutes)
	$(PYTEST) -m "not whole and not browser and not thinking and not families and not cluster" $(ARGS)

test-fast: $(DEV) ## unit tests only: no engine, no whole phase or command, no browser
	$(PYTEST) -m "not engine and not whole and not browser and not thinking and not families and not cluster" $(ARGS)

test-engine: $(DEV) ## what samples with the real engine
	$(PYTEST) -m "engine and not whole and not families and not cluster" $(ARGS)

test-whole: $(DEV) ## whole phases and commands, signals, servers, trackers, other libraries, the page in a browser
	$(PYTEST) -m "(whole or browser) and not cluster" $(ARGS)

test-all: $(DEV) ## what CI runs: test, test-whole and test-page in one go
	$(PYTEST) -m "not thinking and not families and not cluster" $(ARGS)

test-thinking: $(DEV) ## models that think, behind published chat templates, in process and behind vLLM's server (minutes)
	$(BIN)/python -m pytest -m thinking $(ARGS)

test-cluster: $(DEV) ## runs that are divided among several processes: learner ranks, engines, what happens when one dies (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster $(ARGS)

browser: ## install Debian's chromium, for the tests of the report page (needs root)
	apt-get update -qq && apt-get install -y -qq chromium

test-page: $(DEV) ## the report page in a real browser
	$(BIN)/python -m pytest -m browser $(ARGS)

families: $(DEV) ## every model family of docs/models.md through engine and learner, as tiny random models (about ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m "" tests/test_families.py $(ARGS)

fuzz: $(DEV) ## 12,000 random configs, data files and files of earlier runs (about ten minutes)
	CONCLIP_FUZZ=4000 $(BIN)/python -m pytest tests/test_fuzz.py $(ARGS)

format: $(DEV) ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(DEV)
	$(BIN)/pyright --threads 2

check: lint type test-fast ## format, lint, types, unit tests: before each commit

clean: ## remove the environment and what was built; run folders stay
	rm -rf $(VENV) build dist site
