import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.config import parse
from setibl_ray.seti.memory import check_share, device_bytes
from setibl_ray.seti.sizes import sizes
from setibl_ray.seti.train import device, gpus
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


def test_a_tensorflow_that_runs_already_is_taken_with_the_threads_it_has():
    assert tf.constant(1) + 1 == 2
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    device._set_threads(threads, n_replicas=1)
    with pytest.raises(ConfigError, match=f"Set cpus-per-fold to {threads}, restart the process"):
        device._set_threads(threads + 1, n_replicas=1)


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


def test_tensorflow_starts_without_a_word_and_with_keras_2_whatever_the_environment_says():
    code = """
import setibl_ray.seti.train.trainer
from setibl_ray.seti.train import keras2
print(keras2.PACKAGE)
"""
    for said in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=240,
            env={**os.environ, "TF_USE_LEGACY_KERAS": said},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() in ("keras", "tf_keras")


def test_a_keras_json_in_the_users_home_decides_nothing(tmp_path):
    (tmp_path / "keras.json").write_text(
        '{"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1, "backend": "tensorflow"}'
    )
    out = in_new_process(f"""
import os
os.environ["KERAS_HOME"] = {str(tmp_path)!r}
from types import SimpleNamespace
import tensorflow as tf
from setibl_ray.seti.config import parse
from setibl_ray.seti.train.device import acquire
from setibl_ray.seti.train.trainer import Trainer
print(tf.keras.backend.image_data_format())
config = parse(dict(model="efficientnet-nano", weights="none"))
work = SimpleNamespace(config=config, files=dict())
trainer = Trainer(work, config.for_fold(0), (32, 40, 3), acquire("cpu", 1), dict())
backend = tf.keras.backend
print(backend.image_data_format(), backend.floatx(), backend.epsilon(), trainer.model.input_shape[1:])
""")
    assert out == ["channels_first", "channels_last float32 1e-07 (32, 40, 3)"]


class FakeCuda:
    """libcuda's functions, as far as they are asked."""

    def __init__(self, init=0, version=12040, memory=80 << 30):
        self.init, self.version, self.memory = init, version, memory

    def cuInit(self, flags):  # noqa: N802
        return self.init

    def cuDriverGetVersion(self, out):  # noqa: N802
        out._obj.value = self.version
        return 0

    def cuDeviceGet(self, out, number):  # noqa: N802
        return 0 if number == 0 else 101

    def cuDeviceTotalMem_v2(self, out, device):  # noqa: N802
        out._obj.value = self.memory
        return 0


@pytest.mark.parametrize(
    ("cuda", "visible", "needed", "said"),
    [
        (FakeCuda(), None, None, "built without CUDA"),
        (OSError("no libcuda.so.1"), None, "12.2", "no NVIDIA driver"),
        (FakeCuda(init=100), "", "12.2", "CUDA_VISIBLE_DEVICES=''"),
        (FakeCuda(init=100), None, "12.2", "the NVIDIA driver finds none"),
        (FakeCuda(init=803), None, "12.2", "different versions"),
        (FakeCuda(init=999), None, "12.2", "CUDA error 999"),
        (FakeCuda(version=11040), None, "12.2", "ends at CUDA 11.4, TensorFlow needs 12.2"),
        (FakeCuda(), None, "12.2", "setibl-ray[cuda]"),
    ],
)
def test_why_there_is_no_gpu_is_said_in_one_line(cuda, visible, needed, said, monkeypatch):
    def load():
        if isinstance(cuda, OSError):
            raise cuda
        return cuda

    monkeypatch.setattr(gpus, "_libcuda", load)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    why = gpus.why_none(needed)
    assert said in why
    assert "\n" not in why


def test_a_share_of_a_gpu_is_a_memory_limit(monkeypatch):
    monkeypatch.setattr(gpus, "_libcuda", lambda: FakeCuda(memory=16 << 30))
    gpu = SimpleNamespace(name="/physical_device:GPU:0", device_type="GPU")
    limits = []
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: [gpu] if kind == "GPU" else [SimpleNamespace()]
    )
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda device, to: limits.append((device, to))
    )
    monkeypatch.setattr(device, "_set_threads", lambda *_, **__: None)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    monkeypatch.setattr(tf.distribute, "OneDeviceStrategy", lambda name: SimpleNamespace(name=name))
    got = device.acquire("gpu", 1, 0.25)
    assert got.memory_bytes == (4 << 30) - device.CUDA_CONTEXT
    ((where, (logical,)),) = limits
    assert where is gpu
    assert logical.memory_limit == got.memory_bytes >> 20
    with pytest.raises(ConfigError, match=r"devices-per-fold: 0\.04 of a GPU with 17\.2 GB"):
        device.acquire("gpu", 1, 0.04)


def test_the_estimate_is_held_against_the_share_before_training():
    config = parse({"model": "efficientnet-b4", "weights": "none", "batch_size": 32})
    model = sizes(config, 0, {})
    wanted = device_bytes(config, 0, model)
    check_share(config, 0, 0.5, wanted, model)
    with pytest.raises(
        ConfigError, match=r"--batch-size 32, and 0\.2 of its GPU .* largest batch that fits is 16"
    ):
        check_share(config, 0, 0.2, device_bytes(config, 0, model, 16), model)
    with pytest.raises(ConfigError, match="not even one image fits"):
        check_share(config, 0, 0.2, 1 << 20, model)
