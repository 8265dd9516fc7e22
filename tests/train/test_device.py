import subprocess
import sys

from setibl_ray.seti.train.device import clear_stale_lock


def in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def test_threads_are_set_once_and_another_number_is_refused():
    out = in_new_process("""
from setibl_ray.seti.train.device import acquire
from setibl_ray.core.errors import ConfigError
import tensorflow as tf
device = acquire("auto", 2)
tf.constant(1) + 1
print(device.kind, device.n_replicas, tf.config.threading.get_intra_op_parallelism_threads())
acquire("cpu", 2)
for kind, threads in (("cpu", 1), ("gpu", 2), ("tpu", 2)):
    try:
        acquire(kind, threads)
    except ConfigError as error:
        print(str(error).split(":")[0])
""")
    assert out == ["cpu 1 2", "cpus-per-fold", "device", "device"]


def test_two_logical_devices_are_two_replicas_and_scale_batch_and_learning_rate():
    out = in_new_process("""
import tempfile, warnings
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
from setibl_ray.seti.config import parse
from setibl_ray.core.jobs import Job, RunSpec, events_of
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.making.synth import write_synthetic
from setibl_ray.seti.task import TASK, rows_of
if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    recipe = Recipe(train=40, test=6, shards=2, test_shards=1, shape=(40, 36))
    index = read_index(str(write_synthetic(recipe, folder + "/data", n_processes=1)))
    config = parse(dict(folds=2, model="efficientnet-nano", weights="none", image_size="40x36", batch_size=4, epochs=1,
                        tta=2, device="cpu", cpus_per_fold=1, layout="all6"))
    spec = RunSpec(TASK, config, rows_of(index), index.train["shard"].to_numpy(), folder + "/scratch")
    _, stepped, trained = events_of(spec, Job(0))
    fitted = trained.fitted
    _, predicted = events_of(spec, Job(0, (0, 6), payload=fitted.artifact))
    print(fitted.facts["attempt"]["device"], fitted.facts["attempt"]["n_replicas"], fitted.batch)
    print(fitted.pred.shape, predicted.prediction.pred.shape, len(set(fitted.pred.tolist())) > 10)
    print(round(stepped.row["lr"] / 1.25e-4, 6))
""")
    assert out == ["cpu 2 16", "(20,) (6,) True", "8.0"]


def test_a_lock_file_goes_when_its_owner_is_gone(tmp_path):
    lock = tmp_path / "libtpu_lockfile"
    assert not clear_stale_lock(lock)
    lock.touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, sys; f = open({str(lock)!r}, 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
         "print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    assert not clear_stale_lock(lock)
    assert lock.exists()
    holder.kill()
    holder.wait()
    assert clear_stale_lock(lock)
    assert not lock.exists()
