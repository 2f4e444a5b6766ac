# make demo    install into .venv and tune the digits preset
# make test    install into .venv and run the tests: a few minutes
# make test-slow  the other tests: faults, real training, browsers, large studies, a second PostgreSQL
# make lint    ruff and mypy
# make bench   measurements; each ends in one line of JSON. Those of LONG take hours, and are run by hand
# make chaos   ten studies of 200 trials whose workers, and database, are killed all the time; half an hour
# make faults  the longer outages, all kill points, more starts, kills of mirrors and random calls: what make test-slow
#              does a part of
# make test-compose  docker-compose.yml on a real Docker engine: builds the image
# make test-slurm    the Slurm launcher on a Slurm that answers
# make test-netns    three workers' hosts and a database in network namespaces, one cut off; as root
# make test-gpu      the training code on a GPU, and what a step costs there; needs one, and no database
# make screenshots   the pictures of the sites and the report in docs/, anew; needs Chromium
# make docs    the documentation as a site in site/; every warning is an error; needs npm for the diagrams
# make clean   remove what was built here; says what it leaves

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench chaos faults test-compose test-slurm test-netns test-gpu screenshots docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	@$(BIN)/studyhall run digits
	@echo
	@echo 'The study is kept: `make demo` again goes on where it was interrupted, or shows the result.'
	@echo 'Type next, after: source $(BIN)/activate'
	@echo '  studyhall best digits --format json    the parameters, for a script'
	@echo '  studyhall trials digits                every trial'
	@echo '  studyhall finalize digits              retrain the best and test it, once'
	@echo '  studyhall delete digits                to start afresh'

# Many tests wait: more of them at a time than there are cores. The tests start Python hundreds of times: with the
# bytecode written, whatever the environment says, a start takes two thirds of the time. The acceptance tests, which wait
# longest, begin first, as the folders' names are sorted; the quick unit tests fill the end.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $${STUDYHALL_TEST_PROCESSES:-6} --dist loadscope --no-loadscope-reorder

test: $(VENV)/.installed-dev
	@$(PYTEST) -m 'not slow' $(ARGS)

test-slow: $(VENV)/.installed-dev
	@$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

LONG := search tables winners_curse mnist

bench: $(VENV)/.installed-dev
	@for bench in $(filter-out $(LONG:%=tests/benchmarks/bench_%.py),$(wildcard tests/benchmarks/bench_*.py)); do \
		$(BIN)/python $$bench || exit 1; done

chaos: $(VENV)/.installed-dev
	$(BIN)/python tests/acceptance/chaos.py
	$(BIN)/python tests/acceptance/chaos.py --pgbouncer --seeds 0 1 2
	$(BIN)/python tests/acceptance/chaos.py --poison 10 --seeds 0 1 2

faults: $(VENV)/.installed-dev
	STUDYHALL_ALL_KILL_POINTS=1 STUDYHALL_LONG_OUTAGES=1 STUDYHALL_ROUNDS=20 STUDYHALL_MIRROR_KILLS=20 \
		$(BIN)/python -m pytest -n 2 tests/acceptance/test_kill_points.py tests/acceptance/test_outages.py \
		tests/integration/test_start_together.py tests/integration/test_mirror.py::TestKilledMirrors
	STUDYHALL_RANDOM_CALLS="24 180" $(BIN)/python -m pytest tests/integration/test_lock_order.py

test-compose: $(VENV)/.installed-dev
	$(BIN)/python tests/deployment/compose.py

test-slurm: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/deployment/slurm.py

test-netns: $(VENV)/.installed-dev
	$(BIN)/python tests/deployment/netns.py

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m tests.deployment.gpu

screenshots: $(VENV)/.installed-dev
	$(BIN)/python -m tests.screenshots

# Material would load the diagrams' library from another host: the site brings it.
MERMAID := 11.17.2

docs: $(VENV)/.installed-docs build/mermaid.tiny.js
	rm -rf build/docs
	mkdir build/docs
	cp -R *.md docs deploy build/mermaid.tiny.js build/docs
	$(BIN)/mkdocs build --strict

build/mermaid.tiny.js: Makefile
	@command -v npm >/dev/null || { echo 'make docs needs npm, which brings the library of the diagrams: install Node.js'; exit 1; }
	mkdir -p build
	npm pack --silent --pack-destination build @mermaid-js/tiny@$(MERMAID)
	tar -xzf build/mermaid-js-tiny-$(MERMAID).tgz -C build --strip-components 2 -m package/dist/mermaid.tiny.js

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'Kept: your studies and downloaded data, in STUDYHALL_HOME, else ~/.local/share/studyhall (root: /var/lib/studyhall).'
	@echo 'To remove those as well: studyhall db stop, then delete that folder.'

# Reinstalled only where pyproject.toml has changed: the package itself is installed in place.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"Studyhall needs Python 3.11 or newer, and $(PYTHON) is {v}; name another: make PYTHON=python3.12")'
	@echo 'Installing into $(VENV): about 5 GB, nearly all of it PyTorch. This takes a few minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@
