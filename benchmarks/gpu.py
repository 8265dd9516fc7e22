"""What the promises are worth on a real GPU, in under eight minutes on one.

    python benchmarks/gpu.py [--only demo,frameworks,share,repeat,kill,speed,job] [--out benchmarks] [--seconds 480]
    python benchmarks/gpu.py --rehearse        # everything, small, on the CPU: shows that the script works and no more

Each part runs the commands that a user would. Writes gpu.json and gpu.md, with the card's name and the date; a row that
falls short says so, and so does a part for which there was no time left. Without a GPU it measures nothing.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from run import Row, png_shards

from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

HERE = Path(__file__).parent
# JAX would take three quarters of a device for itself, whoever shares it.
ENVIRONMENT = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": str(HERE.parent)}


class Sizes(NamedTuple):
    """How large each part is."""

    device: str
    small: Mapping[str, str]  # nano, for sharing, repeating and killing
    small_data: Recipe
    models: tuple[str, ...]  # against the bare model
    image_size: str
    batch: int
    speed_data: Recipe
    epochs: int
    views: int

    @classmethod
    def gpu(cls) -> Sizes:
        small = {"image-size": "91x85", "batch-size": "32", "epochs": "6", "tta": "2"}
        return cls(
            "gpu",
            small,
            Recipe(train=1200, test=200, shards=10, test_shards=2, shape=(91, 85)),
            ("efficientnet-b0", "efficientnet-b4"),
            "273x256",
            32,
            Recipe(train=1600, test=8, shards=4, test_shards=1),
            3,
            3,
        )

    @classmethod
    def rehearsal(cls) -> Sizes:
        small = {"image-size": "32x32", "batch-size": "8", "epochs": "3", "tta": "1"}
        return cls(
            "cpu",
            small,
            Recipe(train=100, test=20, shards=10, test_shards=2, shape=(32, 32), positive=0.5),
            ("efficientnet-nano",),
            "32x32",
            8,
            Recipe(train=80, test=8, shards=4, test_shards=1, shape=(32, 32), positive=0.5),
            2,
            1,
        )


class Bench:
    def __init__(self, work: Path, sizes: Sizes) -> None:
        self.work, self.sizes = work, sizes
        self._data: dict[Recipe, Path] = {}

    def data(self, recipe: Recipe) -> Path:
        if recipe not in self._data:
            self._data[recipe] = write_synthetic(recipe, self.work / f"data-{len(self._data)}")
        return self._data[recipe]

    def command(self, out: str, **flags: object) -> list[str]:
        """A `cv` command on this benchmark's device."""
        named = {"device": self.sizes.device, "weights": "none", "out": self.work / out} | flags
        if self.sizes.device == "cpu":
            named["cpus-per-fold"] = 1
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in named.items()]
        return [sys.executable, "-m", "setibl_ray.cv", *(word for pair in pairs for word in pair)]

    def small(self, out: str, share: float = 1) -> list[str]:
        """Five folds of the smallest model, each with a share of the device."""
        # CPUs are not shared out: folds run one after another, or five at once.
        shared = {"devices-per-fold": share} if self.sizes.device == "gpu" else {"workers": round(1 / share)}
        data = self.data(self.sizes.small_data)
        return self.command(out, data=data, folds=5, model="efficientnet-nano", **self.sizes.small, **shared)

    def run(self, command: list[str]) -> float:
        """Seconds that it takes.

        Raises:
          CalledProcessError: it fails; with its last words.
        """
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
        return time.perf_counter() - start

    def demo(self) -> Iterator[Row]:
        flags: dict[str, Any] = {"folds": 5}
        if self.sizes.device == "cpu":
            flags |= {
                "data": self.data(self.sizes.small_data),
                "model": "efficientnet-nano",
                **self.sizes.small,
            }
        else:
            flags |= {"model": "efficientnet-b0", "image-size": "91x85", "epochs": 8, "tta": 3}
        done = subprocess.run(self.command("demo", **flags), capture_output=True, text=True)
        if done.returncode:
            yield Row("demo: exit code", "0", f"{done.returncode}: {done.stderr.strip()[-300:]}", False)
            return
        auc = json.loads((self.work / "demo/metrics.json").read_text())["oof_auc"]
        attempts = last_attempts(self.work / "demo")
        yield Row("demo: exit code", "0", "0", True)
        yield Row("demo: AUC of out-of-fold predictions", "at least 0.8", f"{auc:.3f}", auc >= 0.8)
        where = "; ".join(
            f"fold {fold}: {each['device']} {each.get('visible') or ''}" for fold, each in attempts
        )
        on_device = all(each["device"] == self.sizes.device for _, each in attempts)
        yield Row("demo: where each fold ran", f"all on a {self.sizes.device}", where, on_device)

    def share(self) -> Iterator[Row]:
        alone_s = self.run(self.small("alone"))
        together_s = self.run(self.small("together", 0.2))
        alone, together = (train_seconds(self.work / name) for name in ("alone", "together"))
        ratio = together / alone
        text = f"{ratio:.2f} x ({together:.1f} s, {alone:.1f} s)"
        yield Row(
            "training five folds on one device at once, against one alone",
            "at most 1.3 x",
            text,
            ratio <= 1.3,
        )
        text = f"{together_s:.0f} s against {alone_s:.0f} s"
        what = "the same run, a fifth of a device a fold against a whole one"
        yield Row(what, "less", text, together_s < alone_s)

    def repeat(self) -> Iterator[Row]:
        for name in ("first", "second"):
            self.run(self.small(name, 0.2))
        same = digest(self.work / "first") == digest(self.work / "second")
        what = "two runs of five folds at once: oof.csv and submission.csv"
        yield Row(what, "same bytes", "same" if same else "other", same)

    def kill(self) -> Iterator[Row]:
        if not (self.work / "first/oof.csv").exists():
            self.run(self.small("first", 0.2))
        yield self.killed("a worker killed in training", self.small("killed", 0.2), "first")

    def killed(self, what: str, command: list[str], same_as: str) -> Row:
        """A worker of this run, whose folder is `killed`, dies in training; the bytes must be those of another run."""
        out = self.work / "killed"
        shutil.rmtree(out, ignore_errors=True)
        nowhere = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=ENVIRONMENT) as driver:
            while driver.poll() is None:
                entries = [json.loads(file.read_text()) for file in out.glob("fold-*/fold.json")]
                running = [
                    own for entry in entries for own in entry["attempts"] if own["outcome"] == "running"
                ]
                if running and running[0].get("pid"):
                    os.kill(running[0]["pid"], signal.SIGKILL)
                    break
                time.sleep(0.2)
        hit = any(len(fold["attempts"]) > 1 for fold in manifest(out)["folds"].values())
        same = digest(self.work / same_as) == digest(out)
        text = f"exit code {driver.returncode}, {'same' if same else 'other'} bytes"
        text += "" if hit else ", but nothing was hit"
        return Row(what, "exit code 0, same bytes", text, hit and same and driver.returncode == 0)

    def frameworks(self) -> Iterator[Row]:
        """The example tasks of other frameworks: pinned, two to a device, one killed, memory given back."""
        for name, module in (("digits_torch", "torch"), ("digits_keras", "jax")):
            if importlib.util.find_spec(module) is None:
                yield Row(f"examples/{name}.py", "it runs", f"not measured: no {module} here", False)
                continue
            device, cpus = self.sizes.device, os.cpu_count() or 1
            flags = [
                "--device",
                device,
                "--folds",
                "4",
                "--workers",
                "2",
                "--cpus-per-fold",
                str(max(1, cpus // 2)),
            ]
            flags += ["--devices-per-fold", "0.5"] if device == "gpu" else []
            command = [sys.executable, str(HERE.parent / "examples" / f"{name}.py"), *flags, "--out"]
            before = used_mb()
            took_s = self.run([*command, str(self.work / name)])
            attempts = last_attempts(self.work / name)
            where = "; ".join(
                f"fold {fold}: {own['device']} {own.get('visible') or ''}" for fold, own in attempts
            )
            on_device = all(own["device"] == device for _, own in attempts)
            yield Row(
                f"{module}: where each fold ran ({took_s:.0f} s)", f"all on a {device}", where, on_device
            )
            what = f"{module}: a worker killed in training"
            yield self.killed(what, [*command, str(self.work / "killed")], name)
            if before is not None:
                kept = (used_mb() or 0) - before
                yield Row(f"{module}: device memory kept after the run", "none", f"{kept:.0f} MB", kept < 100)

    def speed(self) -> Iterator[Row]:
        sizes = self.sizes
        data = self.data(sizes.speed_data)
        for model in sizes.models:
            common = {"model": model, "image-size": sizes.image_size, "batch-size": sizes.batch}
            command = self.command(model, data=data, folds=2, epochs=sizes.epochs, tta=0, workers=1, **common)
            self.run(command)
            histories = [pd.read_csv(file) for file in sorted((self.work / model).glob("fold-*/history.csv"))]
            fold = max(
                history["images_per_s"].iloc[1:].max() for history in histories
            )  # the first epoch traces
            flags = [word for name, value in common.items() for word in (f"--{name}", str(value))]
            done = subprocess.run(
                [sys.executable, HERE / "gpu.py", "--bare", sizes.device, *flags],
                check=True,
                capture_output=True,
                text=True,
            )
            bare = float(done.stdout.split()[-1])
            text = f"{fold / bare:.2f} ({fold:.0f} of {bare:.0f} images/s)"
            what = f"a fold's speed over the bare model's: {model}, {sizes.image_size}"
            yield Row(what, "at least 0.9", text, fold >= 0.9 * bare)

    def job(self) -> Iterator[Row]:
        views, epochs = str(self.sizes.views), str(self.sizes.epochs)
        data = png_shards(self.work)
        plain = [
            sys.executable,
            str(HERE / "notebook_loop.py"),
            "--data",
            str(data),
            "--out",
            str(self.work / "plain"),
        ]
        plain_s = self.run([*plain, "--epochs", epochs, "--tta", views])
        flags = {
            "data": data,
            "folds": 5,
            "model": "efficientnet-b0",
            "image-size": "91x85",
            "batch-size": 32,
        }
        ours_s = self.run(self.command("job", **flags, epochs=epochs, tta=views))
        text = f"{plain_s / ours_s:.1f} x ({plain_s:.0f} s, {ours_s:.0f} s)"
        yield Row(
            "whole 5-fold job (B0, 91x85) against the notebook's loop", "5 x", text, plain_s >= 5 * ours_s
        )


def manifest(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / "manifest.json").read_text())
    except FileNotFoundError:
        return {"folds": {}}


def last_attempts(out: Path) -> list[tuple[str, dict[str, Any]]]:
    folds = manifest(out)["folds"]
    return [(number, fold["attempts"][-1]) for number, fold in folds.items() if fold.get("attempts")]


def train_seconds(out: Path) -> float:
    """Mean over folds of the seconds of all epochs but the first, which traces."""
    files = sorted(out.glob("fold-*/history.csv"))
    return sum(pd.read_csv(file)["duration_s"].iloc[1:].sum() for file in files) / len(files)


def digest(out: Path) -> str:
    files = [out / "oof.csv", out / "submission.csv"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


def bare(device: str, model: str, image_size: str, batch: int) -> float:
    """Images per second of the plain Keras model on batches that lie in the device's memory."""
    import efficientnet.model
    import numpy as np

    import setibl_ray.seti.train  # noqa: F401  (sets TensorFlow up)

    # isort: split
    import efficientnet.tfkeras as efn
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if device == "gpu":
        tf.config.experimental.enable_op_determinism()  # as a fold does
        tf.keras.utils.set_random_seed(0)
    height, width = map(int, image_size.split("x"))
    image = tf.keras.Input((height, width, 6))
    if model == "efficientnet-nano":
        build = efn.inject_tfkeras_modules(efficientnet.model.EfficientNet)
        backbone = build(0.35, 0.35, 91, include_top=False, weights=None, input_tensor=image)
    else:
        build = getattr(efn, f"EfficientNet{model[-2:].upper()}")
        backbone = build(include_top=False, weights=None, input_tensor=image)
    x = tf.keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = tf.keras.layers.Dense(1, activation="sigmoid")(tf.keras.layers.Dense(32, activation="relu")(x))
    net = tf.keras.Model(image, x)
    net.compile(
        tf.keras.optimizers.legacy.Adam(1e-3), "binary_crossentropy", metrics=[tf.keras.metrics.AUC()]
    )
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(batch, height, width, 6)).astype(np.float32))
    targets = tf.constant(rng.integers(2, size=(batch, 1)).astype(np.float32))
    steps = 4 if device == "cpu" else 40
    data = tf.data.Dataset.from_tensors((images, targets)).cache().repeat(steps).prefetch(2)
    net.fit(data, verbose=0)  # traces, and chooses convolutions
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        net.fit(data, verbose=0)
        seconds.append(time.perf_counter() - start)
    return steps * batch / min(seconds)


def card() -> str | None:
    """The GPUs here with driver and memory, as the driver names them; None without any."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return "; ".join(done.stdout.splitlines()) if done.returncode == 0 and done.stdout.strip() else None


def used_mb() -> float | None:
    """Memory that is in use on all GPUs here."""
    if card() is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(map(float, subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()))


def measure(bench: Bench, only: list[str], seconds: float) -> list[Row]:
    parts: dict[str, Callable[[], Iterator[Row]]] = {name: getattr(bench, name) for name in PARTS}
    rows: list[Row] = []
    start = time.perf_counter()
    for name in only:
        if time.perf_counter() - start > seconds:
            rows.append(Row(name, f"within {seconds:g} s", "not measured: no time left", False))
            continue
        if name != "frameworks" and importlib.util.find_spec("tensorflow") is None:
            rows.append(Row(name, "measured", "not measured: no TensorFlow here", False))
            continue
        try:
            for row in parts[name]():
                rows.append(row)
                print(f"{row.what}: {row.reached} (goal: {row.goal})", flush=True)
        except subprocess.CalledProcessError as error:
            words = str(error.stderr or "").strip().splitlines()[-1:]
            rows.append(Row(name, "exit code 0", f"{error.returncode}: {' '.join(words)}", False))
            print(f"{name} failed: {error.stderr}", file=sys.stderr, flush=True)
    return rows


PARTS = ("demo", "frameworks", "share", "repeat", "kill", "speed", "job")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=480.0, help="begin no part after this long")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU; writes gpu-rehearsal.*")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    for flag in ("--model", "--image-size"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(bare(options.bare, options.model, options.image_size, options.batch_size))
        return
    here = card()
    if here is None and not options.rehearse:
        sys.exit(
            "no GPU here (nvidia-smi finds none), nothing was measured; --rehearse runs everything on the CPU"
        )
    from setibl_ray.core.run.manifest import versions
    from setibl_ray.seti.task import TASK

    name = "gpu-rehearsal" if options.rehearse else "gpu"
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), Sizes.rehearsal() if options.rehearse else Sizes.gpu())
        rows = measure(bench, options.only.split(","), options.seconds)
    about = {
        "card": "none (rehearsal on the CPU: its figures mean nothing)" if options.rehearse else here,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": versions() | versions(TASK.packages),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    result = {**about, "rows": [row._asdict() for row in rows]}
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [f"{about['card']}, {about['date']}, Python {about['python']}", ""]
    lines += ["| what | goal | reached | holds |", "|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.goal} | {row.reached} | {'yes' if row.holds else '**no**'} |" for row in rows
    ]
    (options.out / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
