# Every target works on a fresh clone: the ones that need an environment make .venv first.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test soak test-cluster bench lint sweep-demo search-demo lock clean

setup: $(INSTALLED)

# uv where it is there; else a Python 3.10 or 3.11 that is; else say what to install.
$(INSTALLED): pyproject.toml requirements-dev.lock
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python '>=3.10,<3.12' $(VENV) && \
	  uv pip install --quiet --compile-bytecode --python $(PYTHON) --no-deps --require-hashes -r requirements-dev.lock && \
	  uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation -e . ; \
	else \
	  for python in python3.11 python3.10 python3 python; do \
	    $$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null && break; python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "make setup needs uv (https://docs.astral.sh/uv) or Python 3.10 or 3.11; TensorFlow 2.15 has no other." >&2; exit 1; \
	  fi; \
	  $$python -m venv --clear $(VENV) && \
	  $(PYTHON) -m pip install --quiet --no-deps --require-hashes -r requirements-dev.lock && \
	  $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e . ; \
	fi
	@touch $@

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
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not cluster and not soak'

soak: $(INSTALLED)
	$(PYTHON) -m pytest -m soak

test-cluster: $(INSTALLED)
	$(PYTHON) -m pytest -m cluster tests/cluster

bench: $(INSTALLED)
	$(PYTHON) benchmarks/run.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Both locks from pyproject.toml: pinned and hashed, for Python 3.10 and 3.11, without any index's address.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-emit-index-url
lock:
	$(LOCK) --extra s3 --extra gcs -o requirements.lock
	$(LOCK) --extra s3 --extra gcs --extra dev -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
