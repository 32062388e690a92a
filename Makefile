# Atelier's commands. `make` alone lists them. PYTHON=/path/to/python3.11 names the Python that .venv is made with.

PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$python && exit; done; \
	echo python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install open3d ray up down compose test test-cluster test-compose test-all check bench tiny build lock settings screenshots gallery

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1~\2/p' $(MAKEFILE_LIST) | awk -F'~' '{ printf "%-17s %s\n", $$1, $$2 }'

install: ## install into .venv what is missing (make up and the others do it themselves)
	@$(PYTHON) deploy/install.py

up: install ## serve all five modalities on this machine until Ctrl-C
	@$(BIN)/python -m cli up

down: ## end a `make up` that runs in another terminal
	@$(BIN)/python -m cli down

compose: ## serve everything in containers: make the secrets, build the images, wait until all is well
	@$(PYTHON) deploy/compose.py
	@docker compose up --build --wait

open3d: install ## install what reshapes meshes: Open3D (0.5 GB; tests need it, too)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement locks/open3d.txt

ray: install ## install what runs workers on many hosts: Ray (100 MB; tests need it, too)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement locks/ray.txt

test: open3d ## run all tests: the fast ones on two cores, those with live workers, then those on Ray
	@$(BIN)/python -m pytest -m "not live and not fresh and not compose and not cluster" --numprocesses 2 --dist loadfile
	@$(BIN)/python -m pytest -m "live"
	@$(MAKE) --no-print-directory test-cluster

test-cluster: ray ## try the workers on Ray, in a network and a process namespace of their own
	@unshare --map-root-user --net --pid --mount-proc --fork --kill-child $(BIN)/python -m pytest -m "cluster" tests/cluster

test-compose: install ## build the images and try docker-compose.yml on a Docker engine of the tests' own (.ci/engine installs it; root)
	@$(BIN)/python -m pytest -m "compose" tests/compose

test-all: test ## run all tests, those that take minutes, too: they install and build from nothing
	@$(BIN)/python -m pytest -m "fresh"

check: install ## format, lint, types, layers, and that the docs are true
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/mypy deploy
	@$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py

bench: install ## measure the start, the scheduler, batching against two peers, text against three, models that take turns, the gateway against two, first sounds and sketches (hours)
	@$(BIN)/python -m benchmarks.start
	@$(BIN)/python -m benchmarks.batching --overhead
	@$(BIN)/python -m benchmarks.batching --equal --model middle
	@$(BIN)/python -m benchmarks.batching
	@$(BIN)/python -m benchmarks.text
	@$(BIN)/python -m benchmarks.text --latency
	@$(BIN)/python -m benchmarks.exactness
	@$(BIN)/python -m benchmarks.forwards
	@$(BIN)/python -m benchmarks.models
	@$(BIN)/python -m benchmarks.media
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.gateway
	@$(BIN)/python -m benchmarks.gateway --soak 100000
	@$(BIN)/python -m benchmarks.jobs
	@$(BIN)/python -m benchmarks.chaos
	@$(BIN)/python -m benchmarks.cluster

tiny: install ## build the tiny checkpoints that are missing
	@$(BIN)/python -m services.tiny

build: install ## build the five bentos
	@$(BIN)/python deploy/build.py

settings: install ## write docs/settings.md from the code
	@$(BIN)/python -m tests.settings_page

screenshots: install ## take the README's pictures of the studio of a `make up` that runs
	@$(BIN)/python -m tests.screenshots

gallery: install ## write docs/gallery from what a `make up` that runs makes
	@$(BIN)/python -m tests.gallery

lock: ## write locks/*.txt from pyproject.toml; UPGRADE=1 takes newer versions
	@$(PYTHON) deploy/lock.py $(if $(UPGRADE),--upgrade)
