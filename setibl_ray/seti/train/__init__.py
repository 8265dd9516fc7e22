"""The TensorFlow part of a fold task: devices, models, one compiled trainer, the fold itself.

Importing a module of this package imports TensorFlow; the environment that TensorFlow reads is set here.
"""

import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Its start-up messages (no CUDA, no TensorRT) do not help a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On x86 without AVX-512 TensorFlow leaves oneDNN's kernels off. They halve the time of the default network, whose
# convolutions of single panels are what Eigen is slowest at, and were never slower with any other that was tried.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# In TensorFlow 2.16 and later, `tf.keras` is Keras 3 unless told to use the package tf_keras. 2.15 comes with Keras 2,
# and has none if told to use that package where it is missing.
os.environ["TF_USE_LEGACY_KERAS"] = "1" if importlib.util.find_spec("tf_keras") else "0"


@contextmanager
def _held_back() -> Iterator[None]:
    """Hide what native code writes to standard error, unless the block fails."""
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if "tensorflow" not in sys.modules:
    # 2.21 logs through absl, which ignores the log level until it is initialised.
    with _held_back():
        import tensorflow  # noqa: F401
