# Every target works on a fresh clone: the ones that need an environment make .venv first.
VENV := .venv
PYTHON := $(VENV)/bin/python
# Two stacks (pyproject.toml): TensorFlow 2.15 with TensorFlow Addons, on which everything is tested, where its Pythons are
# found; else the current one. STACK=2.15 or STACK=current decides otherwise.
PYTHONS_2.15 := 3.11 3.10
PYTHONS_current := 3.13 3.12
PYTHONS := $(if $(STACK),$(PYTHONS_$(STACK)),$(PYTHONS_2.15) $(PYTHONS_current))
INSTALLED := $(VENV)/.installed$(STACK)
TESTS := tests

.PHONY: setup demo test soak docs test-docs test-cluster bench science lint sweep-demo search-demo dist wheelhouse lock clean

setup: $(INSTALLED)

# uv where it is there, which can fetch a Python, too; else pip. With WHEELHOUSE=DIR from the files of `make wheelhouse`,
# and without a network.
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links $(abspath $(WHEELHOUSE)))
$(INSTALLED): pyproject.toml requirements-dev.lock requirements-current-dev.lock
	@set -e; \
	if [ -z "$(PYTHONS)" ]; then echo "STACK=$(STACK): expected 2.15 or current" >&2; exit 2; fi; \
	uv=$$(command -v uv || true); python=; \
	for version in $(PYTHONS); do \
	  for python in $$([ -z "$$uv" ] || uv python find --system --no-python-downloads $$version 2>/dev/null) python$$version python3 python; do \
	    [ "$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = $$version ] && break 2; python=; \
	  done; \
	done; \
	if [ -z "$$python" ]; then \
	  version=$(firstword $(PYTHONS)); python=$$version; \
	  [ -n "$$uv" ] || { echo "make setup needs one of Python $(PYTHONS), or uv (https://docs.astral.sh/uv)" >&2; exit 1; }; \
	fi; \
	case $$version in 3.10|3.11) stack=2.15; lock=requirements-dev.lock;; *) stack=current; lock=requirements-current-dev.lock;; esac; \
	echo "make setup: Python $$version, stack $$stack ($$(grep -o '^tensorflow==[^ ]*' $$lock)), into $(VENV)"; \
	if [ -n "$$uv" ]; then \
	  uv venv --quiet --clear --python $$python $(VENV); \
	  uv pip install --quiet --compile-bytecode $(OFFLINE) --python $(PYTHON) --no-deps --require-hashes -r $$lock; \
	  uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation -e .; \
	else \
	  $$python -m venv --clear $(VENV); \
	  $(PYTHON) -m pip install --quiet $(OFFLINE) --no-deps --require-hashes -r $$lock; \
	  $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .; \
	fi; \
	touch $(VENV)/.installed $(VENV)/.installed$$stack

# Everything that the lock names for this machine's platform and Python, in one folder to carry to machines without a
# network. There: WHEELHOUSE=DIR make setup.
wheelhouse: $(INSTALLED)
	$(PYTHON) -m pip download --quiet --no-deps --no-build-isolation --require-hashes --dest wheelhouse \
	  -r $$($(PYTHON) -c 'import sys; print("requirements-dev.lock" if sys.version_info < (3, 12) else "requirements-current-dev.lock")')

demo: $(INSTALLED)
	$(PYTHON) -m setibl_ray.cv --folds 5

# Eight trials of three folds, then the best config as cv takes it.
sweep-demo: $(INSTALLED)
	rm -rf sweeps/demo
	$(PYTHON) -m setibl_ray.sweep --trials 8 --folds 3 --tta 2 --out sweeps/demo/sweep
	$(PYTHON) -m setibl_ray.cv --config sweeps/demo/sweep/best.yaml --out sweeps/demo/best

# Two simulated observations as .h5 files: needles injected into the first to train on, the second searched.
search-demo: $(INSTALLED)
	rm -rf searches/demo
	$(PYTHON) -m setibl_ray.data simulate --out searches/demo/first --seed 1 --session first
	$(PYTHON) -m setibl_ray.data simulate --out searches/demo/second --seed 2 --session second --snr 8,10,15,20,30,50,100
	$(PYTHON) -m setibl_ray.data inject --list searches/demo/first/observation.csv --out searches/demo/shards \
	  --train 4000 --bins 1,8 --coarse-channels 3
	$(PYTHON) -m setibl_ray.cv --config benchmarks/search.yaml --data searches/demo/shards --out searches/demo/run
	$(PYTHON) -m setibl_ray.search searches/demo/run --list searches/demo/second/observation.csv \
	  --out searches/demo/candidates --coarse-channels 3 --recover 60
	$(PYTHON) benchmarks/search.py searches/demo/candidates --truth searches/demo/second/truth.csv

# Two at a time, as most tests wait for processes; each file in one of them, as fixtures are a file's. In the order of
# their names: reordered, the longest single tests would come last and alone.
test: $(INSTALLED)
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not cluster and not soak and not docs' $(TESTS)

soak: $(INSTALLED)
	$(PYTHON) -m pytest -m soak

docs: $(INSTALLED)
	$(PYTHON) docs/site/build.py
	@echo build/site/index.html

# Executes the notebooks of docs/ (with WRITE_DOCS=1 they are stored as executed); builds the site and looks at its pages.
test-docs: $(INSTALLED)
	$(PYTHON) -m pytest -m docs

test-cluster: $(INSTALLED)
	$(PYTHON) -m pytest -m cluster tests/cluster

bench: $(INSTALLED)
	$(PYTHON) benchmarks/run.py

# What each part of the recipe brings, on three sets; finished rows are kept in runs/science.
science: $(INSTALLED)
	$(PYTHON) benchmarks/science.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/typos

# The sdist and, from it, the wheel, which is then installed and used away from here.
dist: $(INSTALLED)
	rm -rf dist
	$(PYTHON) -m build --no-isolation --outdir dist .
	PYTHON=$(PYTHON) .ci/wheel

# The locks from pyproject.toml: pinned and hashed, without any index's address, and of nothing newer than two weeks, which
# may yet be withdrawn. uv resolves for all Pythons from one on, so the first stack's lock is made from its own lines alone.
LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --exclude-newer '2 weeks' --extra s3 --extra gcs
FIRST := build/first-stack
lock:
	mkdir -p $(FIRST)
	sed "/python_version >= '3.12'/d; s/; python_version < '3.12'//" pyproject.toml >$(FIRST)/pyproject.toml
	cp README.md LICENSE $(FIRST)
	$(LOCK) --python-version 3.10 $(FIRST)/pyproject.toml -o requirements.lock
	$(LOCK) --python-version 3.10 --extra dev -c requirements.lock $(FIRST)/pyproject.toml -o requirements-dev.lock
	$(LOCK) --python-version 3.12 pyproject.toml -o requirements-current.lock
	$(LOCK) --python-version 3.12 --extra dev -c requirements-current.lock pyproject.toml -o requirements-current-dev.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
