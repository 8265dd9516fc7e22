#!/usr/bin/env bash
# Makes a node ready: one Python environment at ~/setibl-env, from the lock for its Python, with this project in it.
#
#   bash clusters/install.sh [cuda]      `cuda` adds the CUDA libraries that TensorFlow names (about 2.5 GB)
#
# `ray up` runs it on every node, and again whenever a mounted file changes; what is already right is left
# alone, so a second run takes seconds. PYTHON chooses the interpreter [python3.10: Ubuntu 22.04 and Cloud TPU's
# TensorFlow images carry it; all nodes of a cluster must have the same]. 3.12 and later take
# requirements-current.lock, which then belongs in the cluster file's file_mounts too.
set -euo pipefail

extra=${1:-}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$HOME/setibl-env
python=$environment/bin/python
stamp=$environment/.setibl-lock
PYTHON=${PYTHON:-python3.10}
lock=$project/requirements$("$PYTHON" -c 'import sys; print("-current" if sys.version_info >= (3, 12) else "")').lock
wanted="$(sha256sum <"$lock") $extra"

if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
  # --system-site-packages: on a TPU VM the TensorFlow that can drive TPUs is the image's own. Its version is the
  # lock's, so pip finds the requirement met and leaves it; elsewhere there is nothing to see and pip installs all.
  "$PYTHON" -m venv --clear --system-site-packages "$environment"
  "$python" -m pip install --quiet --no-deps --require-hashes --requirement "$lock"
  if [[ $extra == cuda ]]; then
    # Not in the lock, so not hashed; TensorFlow itself names every one of them by exact version.
    version=$("$python" -c 'from importlib.metadata import version; print(version("tensorflow"))')
    "$python" -m pip install --quiet "tensorflow[and-cuda]==$version"
  fi
  echo "$wanted" >"$stamp"
fi
"$python" -m pip install --quiet --no-deps --no-build-isolation --force-reinstall "$project"

# A TPU VM whose environment holds the public TensorFlow would train on its CPUs without a word.
if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
  "$python" - <<'PYTHON'
import os, sys, importlib.util
found = importlib.util.find_spec("tensorflow").origin
if found.startswith(os.path.realpath(sys.prefix) + os.sep):
    sys.exit(
        f"expected the TPU image's TensorFlow, found {found}. The image's TensorFlow is of another version than "
        "requirements.lock: choose the runtimeVersion tpu-vm-tf-<the lock's version>-pjrt."
    )
PYTHON
fi
