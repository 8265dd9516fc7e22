"""What the promises are worth on a real GPU: all in some fifteen minutes, the most important parts in eight.

    python benchmarks/gpu.py [--only repeat,kill,speed-b0,speed-nano,…] [--out DIR] [--seconds 480]
    python benchmarks/gpu.py --rehearse        # everything, small, on the CPU: shows that the script works and no more

Each part runs the commands that a user would. Writes gpu.json and gpu.md, with the card's name and the date; a row that
falls short says so, and so does a part for which there was no time left. Parts measured earlier with the same card stay
in the files, each with its date. Without a GPU it measures nothing.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from run import JOB, Row, png_shards

from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    # JAX would take three quarters of a device for itself, whoever shares it, and compute in another order each time.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), "--xla_gpu_deterministic_ops=true"])),
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # likewise PyTorch
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
}

# Ways to train that a fold does not take: it computes in float32, deterministically, operation by operation, and on an
# accelerator sixteen steps in one execution.
WAYS = {
    "mixed": "in mixed precision",
    "free": "without determinism",
    "xla": "compiled by XLA",
    "single": "a step at a time",
}
WAY_S = 120.0  # no way may take longer


class Speed(NamedTuple):
    """A model whose fold is measured against the bare model, and the other ways to train that are measured with it."""

    model: str
    image_size: str
    data: Recipe
    ways: tuple[str, ...]


class Sizes(NamedTuple):
    """How large each part is."""

    device: str
    small: Mapping[str, str]  # nano, for sharing, repeating and killing
    small_data: Recipe
    speed: Mapping[str, Speed]
    job_data: Recipe
    epochs: int
    views: int

    @classmethod
    def gpu(cls) -> Sizes:
        small = {"image-size": "91x85", "batch-size": "32", "epochs": "6", "tta": "2"}
        few, many = Recipe(train=800, shards=8), Recipe(train=2400, shards=8)
        return cls(
            "gpu",
            small,
            Recipe(train=1200, test=200, shards=10, test_shards=2, shape=(91, 85)),
            {
                "speed-b0": Speed("efficientnet-b0", "273x256", many, ("mixed", "free", "xla")),
                "speed-nano": Speed(
                    "efficientnet-nano", "91x85", Recipe(train=9600, shape=(91, 85)), ("single", "xla")
                ),
                "speed-b4": Speed("efficientnet-b4", "273x256", few, ()),
            },
            JOB,
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
            {
                "speed-nano": Speed(
                    "efficientnet-nano", "32x32", Recipe(train=80, shards=4, shape=(32, 32)), tuple(WAYS)
                )
            },
            Recipe(train=80, test=20, shards=20, test_shards=10, shape=(91, 85), snr=(30, 100)),
            2,
            1,
        )


class Bench:
    def __init__(self, work: Path, sizes: Sizes) -> None:
        self.work, self.sizes = work, sizes
        self._data: dict[Recipe, Path] = {}
        self._together_s: float | None = None

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
        data = self.data(self.sizes.small_data)
        return self.command(
            out, data=data, folds=5, model="efficientnet-nano", **self.sizes.small, **self.shared(share)
        )

    def run(self, command: list[str]) -> float:
        """Seconds that it takes.

        Raises:
          CalledProcessError: it fails; with its last words.
        """
        start = time.perf_counter()
        self.said(command)
        return time.perf_counter() - start

    def said(self, command: list[str], timeout_s: float | None = None) -> str:
        """What it prints; errors as for `run`."""
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=timeout_s
        )
        return done.stdout

    def shared(self, share: float) -> dict[str, float]:
        """Flags for folds that have a share of the device each; CPUs are not shared out, so as many folds at once."""
        return {"devices-per-fold": share} if self.sizes.device == "gpu" else {"workers": round(1 / share)}

    def demo(self) -> Iterator[Row]:
        flags: dict[str, Any] = {"folds": 5, **self.shared(0.2), "image-size": "91x85", "epochs": 8, "tta": 3}
        flags["model"] = "efficientnet-b0"
        if self.sizes.device == "cpu":
            flags |= {
                "data": self.data(self.sizes.small_data),
                "model": "efficientnet-nano",
                **self.sizes.small,
            }
        self.run(self.command("demo", **flags))
        yield Row("demo: exit code", "0", "0", True)
        auc = oof_auc(self.work / "demo")
        yield Row("demo: AUC of out-of-fold predictions", "at least 0.8", f"{auc:.3f}", auc >= 0.8)
        attempts = last_attempts(self.work / "demo")
        where = "; ".join(
            f"fold {fold}: {own['device']} {own.get('visible') or ''}" for fold, own in attempts
        )
        on_device = all(own["device"] == self.sizes.device for _, own in attempts)
        yield Row("demo: where each fold ran", f"all on a {self.sizes.device}", where, on_device)

    def share(self) -> Iterator[Row]:
        alone_s = self.run(self.small("alone"))
        together_s = self.together()
        what = "training five folds on one device at once"
        yield self.slower("together", f"{what}, against one alone")
        with mps(self.work) as running:
            if running:
                self.run(self.small("mps", 0.2))
                yield self.slower("mps", f"{what} under NVIDIA's MPS, against one alone without")
                yield self.same("together", "mps", "a run under MPS and one without")
        text = f"{together_s:.0f} s against {alone_s:.0f} s"
        what = "the same run, a fifth of a device a fold against a whole one"
        yield Row(what, "less", text, together_s < alone_s)

    def slower(self, out: str, what: str) -> Row:
        """A row: how much longer than alone each fold of a run trained."""
        shared_s, alone_s = (train_seconds(self.work / name) for name in (out, "alone"))
        text = f"{shared_s / alone_s:.2f} x ({shared_s:.1f} s, {alone_s:.1f} s)"
        return Row(what, "at most 1.3 x", text, shared_s <= 1.3 * alone_s)

    def together(self) -> float:
        """Seconds of the run of five folds at once, which several parts compare with."""
        if self._together_s is None:
            self._together_s = self.run(self.small("together", 0.2))
        return self._together_s

    def repeat(self) -> Iterator[Row]:
        seconds = self.together()
        laps = pd.DataFrame([fold["timings"] for fold in manifest(self.work / "together")["folds"].values()])
        text = ", ".join(f"{lap.removesuffix('_s')} {mean:.1f} s" for lap, mean in laps.mean().items())
        yield Row(f"where a fold's time goes, of a run of {seconds:.0f} s", "for the record", text, True)
        self.run(self.small("again", 0.2))
        yield self.same("together", "again", "two runs of five folds at once")

    def same(self, one: str, other: str, what: str) -> Row:
        same = digest(self.work / one) == digest(self.work / other)
        text = "same" if same else "other"
        return Row(f"{what}: oof.csv and submission.csv", "same bytes", text, same)

    def kill(self) -> Iterator[Row]:
        self.together()
        yield self.killed("a worker killed in training", self.small("killed", 0.2), "together")

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

    def speed(self, name: str) -> Iterator[Row]:
        """What a fold reaches on the whole device, and what other ways to compute would reach."""
        model, size, recipe, ways = self.sizes.speed[name]
        flags = ["--device", self.sizes.device, "--model", model, "--image-size", size]
        flags += ["--data", str(self.data(recipe))]
        as_a_fold = None
        for way in ("fold", *ways):
            what = f"{model}, {size}: {WAYS.get(way, 'a fold')}"
            command = [sys.executable, str(HERE / "gpu.py"), "--speed", way, *flags]
            try:
                found = json.loads(self.said(command, timeout_s=WAY_S).splitlines()[-1])
            except subprocess.SubprocessError as error:
                yield Row(what, "measured", f"not measured: {last_words(error)}", False)
                continue
            bare = found["bare"]
            if way == "fold":
                as_a_fold = bare
                text = f"{found['fold'] / bare:.2f} ({found['fold']:.0f} of {bare:.0f} images/s; "
                text += f"first steps after {found['first_s']:.0f} s)"
                holds = found["fold"] >= 0.9 * bare
                yield Row(f"{what}, over the bare model", "at least 0.9", text, holds)
                text = f"{found['input']:.0f} images/s with {found['threads']} threads"
                holds = found["input"] > bare
                yield Row(f"{what}, its input alone", "more than the model takes", text, holds)
            elif as_a_fold:
                text = f"{bare / as_a_fold:.2f} x (first steps after {found['first_s']:.0f} s)"
                yield Row(f"{what}, over the bare model as a fold trains it", "for the record", text, True)

    def memory(self) -> Iterator[Row]:
        """A batch that a tenth of the device does not hold."""
        _, size, recipe, _ = next(iter(self.sizes.speed.values()))
        batch = 512 if self.sizes.device == "gpu" else 16
        flags = ["--device", self.sizes.device, "--model", "efficientnet-nano", "--image-size", size]
        flags += ["--data", str(self.data(recipe)), "--share", "0.1", "--batch-size", str(batch)]
        said = self.said([sys.executable, str(HERE / "gpu.py"), "--speed", "memory", *flags])
        parts = json.loads(said.splitlines()[-1])["parts"]
        text = f"in {parts} parts" if parts > 1 else "it held all of it"
        what = f"efficientnet-nano, {size}: a batch of {batch} in 0.1 of the device"
        yield Row(what, "in parts", text, parts > 1)

    def job(self) -> Iterator[Row]:
        views, epochs = str(self.sizes.views), str(self.sizes.epochs)
        data = png_shards(self.work, self.sizes.job_data)
        flags = {
            "data": data,
            "folds": 5,
            "model": "efficientnet-b0",
            "image-size": "91x85",
            "batch-size": 32,
        }
        flags |= self.shared(0.2) if self.sizes.device == "gpu" else {}
        ours_s = self.run(self.command("job", **flags, epochs=epochs, tta=views))
        loop = [sys.executable, str(HERE / "notebook_loop.py"), "--data", str(data)]
        loop += ["--out", str(self.work / "plain"), "--epochs", epochs, "--tta", views]
        start, more = time.perf_counter(), ""
        try:
            self.said(loop, timeout_s=5 * ours_s)  # then the goal is reached: longer says little more
        except subprocess.TimeoutExpired:
            more = "more than "
        ratio = (time.perf_counter() - start) / ours_s
        text = f"{more}{ratio:.1f} x (ours {ours_s:.0f} s)"
        yield Row("whole 5-fold job (B0, 91x85) against the notebook's loop", "5 x", text, ratio >= 5)


@contextmanager
def mps(work: Path) -> Iterator[bool]:
    """NVIDIA's multi-process service, under which kernels of several processes run at the same time, where it is."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        yield False
        return
    own = {f"CUDA_MPS_{name}_DIRECTORY": str(work / f"mps-{name.lower()}") for name in ("PIPE", "LOG")}
    ENVIRONMENT.update(own)
    subprocess.run([control, "-d"], check=True, env=ENVIRONMENT)
    try:
        yield True
    finally:
        subprocess.run([control], input="quit\n", text=True, env=ENVIRONMENT)
        for name in own:
            del ENVIRONMENT[name]


def manifest(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / "manifest.json").read_text())
    except FileNotFoundError:
        return {"folds": {}}


def oof_auc(out: Path) -> float:
    return float(json.loads((out / "metrics.json").read_text())["oof_auc"])


def last_attempts(out: Path) -> list[tuple[str, dict[str, Any]]]:
    folds = manifest(out)["folds"]
    return [(number, fold["attempts"][-1]) for number, fold in folds.items() if fold.get("attempts")]


def train_seconds(out: Path) -> float:
    """Mean over folds of the seconds of all epochs but the first, which traces."""
    files = sorted(out.glob("fold-*/history.csv"))
    return float(sum(pd.read_csv(file)["duration_s"].iloc[1:].sum() for file in files)) / len(files)


def digest(out: Path) -> str:
    files = [out / "oof.csv", out / "submission.csv"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


def measure_speed(options: argparse.Namespace) -> dict[str, float]:
    """Images per second in training: `bare`, of the model on a batch in memory; of a fold also `fold` and its `input`.

    With the way `memory`, only the number of `parts` that a step is done in.
    """
    way, device = options.speed, options.device
    import setibl_ray.seti.train  # noqa: F401  (sets TensorFlow up)

    # isort: split
    import tensorflow as tf

    from setibl_ray.core.jobs import Place
    from setibl_ray.core.task import Work
    from setibl_ray.seti.config import parse
    from setibl_ray.seti.formats.shards import read_index
    from setibl_ray.seti.task import rows_of
    from setibl_ray.seti.train import device as devices
    from setibl_ray.seti.train.fold import FoldData
    from setibl_ray.seti.train.parts import within_memory
    from setibl_ray.seti.train.trainer import trainer_for

    if way == "free":
        tf.config.experimental.enable_op_determinism = lambda: None
    if way == "single":
        compile_many = tf.keras.Model.compile
        tf.keras.Model.compile = lambda model, **how: compile_many(model, **how | {"steps_per_execution": 1})
    index, threads = read_index(options.data), len(os.sched_getaffinity(0))
    config = parse(
        {"folds": 2, "weights": "none", "layout": "all6", "model": options.model}
        | {
            "device": device,
            "cpus_per_fold": threads,
            "image_size": options.image_size,
            "batch_size": options.batch_size,
            "mixed_precision": way == "mixed",
            "jit_compile": way == "xla",
        }
    )
    fold_of_row = index.train["shard"].to_numpy() % 2
    work = Work(config, rows_of(index), 0, fold_of_row, Place.here(config), tempfile.gettempdir())
    acquired = devices.acquire(device, threads, options.share)
    fold = FoldData(work, threads, acquired.n_replicas)
    trainer = trainer_for(work, config.for_fold(0), fold.image_shape, acquired, {})
    n_images = fold.n_steps * trainer.global_batch

    def train(batches: tf.data.Dataset) -> None:
        trainer.train_epoch(batches, learning_rate=1e-4, key=0)

    def speed(turn: Callable[[], object]) -> float:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            turn()
            seconds.append(time.perf_counter() - start)
        return n_images / min(seconds)

    batch = next(iter(fold.epoch(0)))
    if way == "memory":
        within_memory(trainer, lambda: None, lambda: train(tf.data.Dataset.from_tensors(batch)))
        fold.close()
        return {"parts": trainer.n_parts}
    in_memory = tf.data.Dataset.from_tensors(batch).cache().repeat(fold.n_steps).prefetch(2)
    start = time.perf_counter()
    train(in_memory.take(16))  # traces, and chooses convolutions
    found = {"first_s": time.perf_counter() - start, "threads": threads}
    found["bare"] = speed(lambda: train(in_memory))
    if way == "fold":
        found |= {
            "fold": speed(lambda: train(fold.epoch(1))),
            "input": speed(lambda: [None for _ in fold.epoch(1)]),
        }
    fold.close()
    return found


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


def measure(bench: Bench, only: list[str], seconds: float) -> Iterator[tuple[str, Row]]:
    """(part, row) of everything that there is time for."""
    start = time.perf_counter()
    for name in only:
        if time.perf_counter() - start > seconds:
            yield name, Row(name, f"begun within {seconds:g} s", "not measured: no time left", False)
            continue
        if name != "frameworks" and importlib.util.find_spec("tensorflow") is None:
            yield name, Row(name, "measured", "not measured: no TensorFlow here", False)
            continue
        try:
            for row in bench.speed(name) if name in SPEED else getattr(bench, name)():
                print(f"{row.what}: {row.reached} (goal: {row.goal})", flush=True)
                yield name, row
        except subprocess.SubprocessError as error:
            print(f"{name} failed: {getattr(error, 'stderr', error)}", file=sys.stderr, flush=True)
            yield name, Row(name, "exit code 0", last_words(error), False)
        print(f"{name}: {time.perf_counter() - start:.0f} s since the beginning", flush=True)


def write(file: Path, about: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """As JSON, and as a table beside it."""
    file.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    lines = [f"{about['card']}, Python {about['python']}", ""]
    lines += ["| what | goal | reached | holds | on |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: PARTS.index(row["part"])):
        cells = [row["what"], row["goal"], row["reached"], "yes" if row["holds"] else "**no**", row["date"]]
        lines.append(f"| {' | '.join(cells)} |")
    file.with_suffix(".md").write_text("\n".join(lines) + "\n")


def last_words(error: subprocess.SubprocessError) -> str:
    said = str(getattr(error, "stderr", None) or "").strip().splitlines()
    return f"took over {WAY_S:g} s" if isinstance(error, subprocess.TimeoutExpired) else " ".join(said[-1:])


SPEED = ("speed-b0", "speed-nano", "speed-b4")
PARTS = ("repeat", "kill", *SPEED, "memory", "job", "share", "demo", "frameworks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=480.0, help="begin no part after this long")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU; writes gpu-rehearsal.*")
    for flag in ("--speed", "--device", "--model", "--image-size", "--data"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=32, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed:
        print(json.dumps(measure_speed(options)))
        return
    here = card()
    if here is None and not options.rehearse:
        sys.exit(
            "no GPU here (nvidia-smi finds none), nothing was measured; --rehearse runs everything on the CPU"
        )
    from setibl_ray.core.run.manifest import versions
    from setibl_ray.seti.task import TASK

    name = "gpu-rehearsal" if options.rehearse else "gpu"
    about = {
        "card": "none (rehearsal on the CPU: its figures mean nothing)" if options.rehearse else here,
        "python": platform.python_version(),
        "versions": versions() | versions(TASK.packages),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file, today = options.out / f"{name}.json", datetime.date.today().isoformat()
    sizes = Sizes.rehearsal() if options.rehearse else Sizes.gpu()
    only = [part for part in options.only.split(",") if part not in SPEED or part in sizes.speed]
    rows: list[dict[str, Any]] = []
    if file.exists() and (before := json.loads(file.read_text()))["card"] == about["card"]:
        rows = [row for row in before["rows"] if row["part"] not in only]
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), sizes)
        for part, row in measure(bench, only, options.seconds):
            rows.append({"part": part, "date": today, **row._asdict()})
            # After each: whoever stops this, or has no time left, keeps what there is.
            write(file, about, rows)


if __name__ == "__main__":
    main()
