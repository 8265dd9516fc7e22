"""The TPU, the GPUs or the share of the CPU that a fold was given, as a TensorFlow strategy."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.terminal import headline
from setibl_ray.seti.train import gpus as nvidia

TPU_LOCK_FILE = Path("/tmp/libtpu_lockfile")
# Of a GPU's memory: an allowance for what CUDA, cuDNN and cuBLAS take beside TensorFlow's pool.
CUDA_CONTEXT = 700 << 20


@dataclass(frozen=True)
class Device:
    kind: str  # "cpu", "gpu" or "tpu"
    strategy: tf.distribute.Strategy
    threads: int
    memory_bytes: int | None = None  # what TensorFlow may take of a GPU that folds share

    @property
    def n_replicas(self) -> int:
        return self.strategy.num_replicas_in_sync


def acquire(kind: str, threads: int, share: float = 1.0) -> Device:
    """Set this process up for one fold.

    Args:
      kind: `auto` takes the TPU, otherwise the GPUs, otherwise the CPU, of those visible to this process.
      threads: CPU cores of the task. TensorFlow ignores what Ray grants a task and would use every core of the
        node, so its pools are set from this. A CPU run's bytes depend on it, as sums are split by threads.
      share: less than 1 for a part of a GPU, to which TensorFlow's memory is then limited.

    Raises:
      ConfigError: `tpu` or `gpu` was requested and this process has none, the share is too small, or TensorFlow
        already runs with another number of threads or another share.
    """
    _set_threads(threads, n_replicas=len(tf.config.list_physical_devices("GPU")) or _n_logical_cpus())
    if kind in ("auto", "tpu"):
        strategy = _tpu_strategy(required=kind == "tpu")
        if strategy is not None:
            return Device("tpu", strategy, threads)
    gpus = tf.config.list_physical_devices("GPU") if kind in ("auto", "gpu") else []
    if gpus:
        limit = None
        if share < 1:
            limit = memory_limit(share, nvidia.memory_bytes())
            _limit_memory(gpus[0], limit)
        else:
            for gpu in gpus:
                # Without memory growth the first fold would take all the memory of a GPU that others may use.
                with suppress(RuntimeError):  # already initialised by an earlier fold of this process
                    tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.experimental.enable_op_determinism()
        names = [f"/gpu:{number}" for number in range(len(gpus))]
        one = tf.distribute.OneDeviceStrategy(names[0])
        return Device("gpu", tf.distribute.MirroredStrategy(names) if len(gpus) > 1 else one, threads, limit)
    if kind == "gpu":
        why = nvidia.why_none(tf.sysconfig.get_build_info().get("cuda_version"))
        raise ConfigError(f"device: gpu was asked for, but TensorFlow {tf.__version__} sees none: {why}")
    # Devices cannot be hidden once TensorFlow runs; then it runs on the CPU already.
    with suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    logical = tf.config.list_logical_devices("CPU")
    if len(logical) > 1:  # CPUs split into logical devices, to test replicas without an accelerator
        return Device("cpu", tf.distribute.MirroredStrategy([device.name for device in logical]), threads)
    return Device("cpu", tf.distribute.get_strategy(), threads)


def memory_limit(share: float, total_bytes: int) -> int:
    """Bytes for TensorFlow's pool in a process that has a share of a GPU.

    Raises:
      ConfigError: the share is no more than CUDA itself takes.
    """
    limit = int(share * total_bytes) - CUDA_CONTEXT
    if limit <= 0:
        raise ConfigError(
            f"devices-per-fold: {share:g} of a GPU with {total_bytes / 1e9:.1f} GB is less than CUDA itself takes in "
            f"every process ({CUDA_CONTEXT / 1e9:.1f} GB); expected more than {CUDA_CONTEXT / total_bytes:.2f}"
        )
    return limit


def _limit_memory(gpu: tf.config.PhysicalDevice, limit_bytes: int) -> None:
    wanted = [tf.config.LogicalDeviceConfiguration(memory_limit=limit_bytes >> 20)]
    try:
        tf.config.set_logical_device_configuration(gpu, wanted)
    except RuntimeError:  # already initialised by an earlier fold of this process
        if tf.config.get_logical_device_configuration(gpu) != wanted:
            raise ConfigError(
                "devices-per-fold: this process's TensorFlow already runs with another share of its GPU. "
                "Start a new process, or ask for the same share."
            ) from None


def _n_logical_cpus() -> int:
    cpus = tf.config.list_physical_devices("CPU")
    return len(tf.config.get_logical_device_configuration(cpus[0]) or cpus)


def _set_threads(threads: int, n_replicas: int) -> None:
    config = tf.config.threading
    try:
        config.set_intra_op_parallelism_threads(threads)
        # Replicas wait for each other in an all-reduce: with fewer threads than replicas they would wait forever.
        config.set_inter_op_parallelism_threads(max(threads, 2 * n_replicas if n_replicas > 1 else 1))
    except RuntimeError:
        running = config.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))  # 0: all cores
        if running != threads:
            raise ConfigError(
                f"cpus-per-fold: this process's TensorFlow already runs with {running} threads and cannot change to "
                f"{threads}. Set cpus-per-fold to {running}, restart the process (a notebook's kernel), or leave out "
                "runner local."
            ) from None


def _tpu_strategy(*, required: bool) -> tf.distribute.Strategy | None:
    if not required and not _sees_tpu():
        return None
    clear_stale_lock(TPU_LOCK_FILE)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.NotFoundError) as error:
        raise ConfigError(
            f"device: tpu was asked for, but this process finds none: {headline(error)}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _sees_tpu() -> bool:
    return any(Path("/dev").glob("accel[0-9]*")) or (
        "TPU_ACCELERATOR_TYPE" in os.environ and any(Path("/dev/vfio").glob("[0-9]*"))
    )


def clear_stale_lock(path: Path) -> bool:
    """Remove a TPU lock file that a killed process left behind; True if one was removed.

    libtpu holds a lock on the open file as long as its process lives, so a file that can be locked has no
    owner. A killed task leaves it behind, and every retry on that host fails until it is removed.
    """
    try:
        with path.open("r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except OSError:  # missing, locked, or not permitted: libtpu will report what is wrong
        return False
