"""Every test process has its own HOME and Ray, and never meets a Ray that runs already."""

import contextlib
import importlib.util
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# Before anything imports Ray: it writes a token into HOME, and joins whatever RAY_ADDRESS names.
os.environ["HOME"] = tempfile.mkdtemp(prefix="setibl-ray-test-home-")
os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] + "/.cache"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Some tests import TensorFlow before they import setibl_ray.seti.train, which sets this, too.
os.environ["TF_USE_LEGACY_KERAS"] = "1" if importlib.util.find_spec("tf_keras") else "0"
# What XLA computes does not change, compiling takes a third of the time.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# With Ray's 15, workers starve beside whatever else the machine does.
os.environ.update(RAY_worker_niceness="0")
os.environ.pop("RAY_ADDRESS", None)
# An example may take as long as it likes: other tests run beside it.
settings.register_profile("setibl_ray", deadline=None)
settings.load_profile("setibl_ray")

_started = contextlib.ExitStack()


@pytest.fixture(scope="module")
def own_ray():
    """A Ray of this test process's own, two CPUs; the same one for all modules, unless one has shut it down."""
    import ray

    from setibl_ray.core.cluster import connect

    if not ray.is_initialized():
        _started.enter_context(connect.connected(None, n_cpus=2))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A small set of cadences; not to be written to."""
    from datasets import cadence_shards

    return cadence_shards(tmp_path_factory.mktemp("shards") / "cadences")


@pytest.fixture(scope="session")
def chromium():
    """One headless browser for all pages; without one, the tests that want it are skipped and say what is missing."""
    import browser

    if why := browser.missing():
        pytest.skip(why)
    with browser.browser() as own:
        yield own


def pytest_sessionfinish():
    _started.close()
    shutil.rmtree(os.environ["HOME"], ignore_errors=True)
