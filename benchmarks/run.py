"""`make bench`: every measurement, side by side on this machine, against its goal.

    python benchmarks/run.py [--only start,pipeline,fold,data,memory,plan,report,scale,job] [--out benchmarks]

Writes results.json and results.md. A row that falls short says so.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from setibl_ray.core.run.manifest import versions
from setibl_ray.seti.formats.shards import iter_records, read_index, shard_name
from setibl_ray.seti.formats.tfrecord import encode_example, frame
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic
from setibl_ray.seti.task import TASK

HERE = Path(__file__).parent
JOB = Recipe(train=600, test=200, shards=20, test_shards=10, shape=(91, 85), snr=(30, 100))
EPOCHS, VIEWS = 2, 3


class Row(NamedTuple):
    what: str
    goal: str
    reached: str
    holds: bool


def script(name: str, *arguments: str, out: Path) -> dict[str, Any]:
    subprocess.run([sys.executable, HERE / name, "--out", out, *arguments], check=True, cwd=HERE)
    return json.loads(out.read_text())


def timed(*command: str | Path) -> float:
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def png_shards(folder: Path, recipe: Recipe = JOB) -> Path:
    """A synthetic set as three-channel PNG shards, which the notebook's loop reads."""
    index = read_index(str(write_synthetic(recipe, folder / "cadences")))
    out = folder / "png"
    out.mkdir()
    for shard in index.shards:
        frames = []
        for record in iter_records(shard):
            png = io.BytesIO()
            Image.fromarray(np.moveaxis(record.panels[::2], 0, -1)).save(png, "PNG")
            features: dict[str, Any] = {"image": png.getvalue(), "image_id": record.image_id}
            if record.target is not None:
                features["target"] = record.target
            frames.append(frame(encode_example(features)))
        (out / shard_name(shard.split, shard.index, len(frames))).write_bytes(b"".join(frames))
    return out


def pipeline(work: Path) -> list[Row]:
    found = script("pipeline.py", out=work / "pipeline.json")
    rows = []
    for unit, label in (("images_per_core_s", "processor time"), ("images_per_s", "wall")):
        rates = found[unit]
        ratio = rates["ours, 273x256x3"] / rates["per image, 273x256x3"]
        rows.append(Row(f"augmented images per second of {label}", "10 x", f"{ratio:.1f} x", ratio >= 10))
    return rows


def job(work: Path) -> list[Row]:
    data = png_shards(work)
    common = ["--epochs", str(EPOCHS), "--tta", str(VIEWS)]
    plain = timed(sys.executable, HERE / "notebook_loop.py", "--data", data, "--out", work / "plain", *common)
    flags = [
        "--folds",
        "5",
        "--model",
        "efficientnet-b0",
        "--weights",
        "none",
        "--image-size",
        "91x85",
        "--batch-size",
        "32",
    ]
    command = [sys.executable, "-m", "setibl_ray.cv", *flags, *common, "--data", str(data)]
    ours = timed(*command, "--out", work / "ours")
    text = f"{plain / ours:.2f} x ({plain:.0f} s, {ours:.0f} s)"
    return [Row("whole 5-fold job (B0, 91x85) against the plain loop", "3 x", text, plain >= 3 * ours)]


def fold(work: Path) -> list[Row]:
    found = script("fold.py", out=work / "fold.json")
    rows = []
    for batch, ratios in found["batches"].items():
        speed, cost = ratios["training_speed"], ratios["cost_per_view"]
        bare = "over the bare model's, one core"
        rows += [
            Row(f"training speed {bare}, batch {batch}", "at least 0.95", f"{speed:.3f}", speed >= 0.95),
            Row(
                f"cost of a view {bare}, batch {2 * int(batch)}", "at most 1.15", f"{cost:.3f}", cost <= 1.15
            ),
        ]
    second = found["second_fold"]
    traces = f"{second['second_traces'] - second['first_traces']:.0f}"
    return [*rows, Row("traces by the second fold of a process", "0", traces, traces == "0")]


def scale(work: Path) -> list[Row]:
    found = script("scale.py", out=work / "scale.json")
    seconds, peak, per_fold = found["gather_s"], found["gather_peak_gb"], found["run_driver_ms"]
    growth, runner, held = found["run_growth_mb"], found["runner_driver_ms"], found["runner_growth_mb"]
    return [
        Row("gathering 10 million rows x 5 folds", "60 s", f"{seconds:.1f} s", seconds < 60),
        Row("peak memory of that", "2 GB", f"{peak:.2f} GB", peak < 2),
        Row("driver time per empty fold, 1,000 folds on 20 nodes", "20 ms", f"{runner:.1f} ms", runner <= 20),
        Row("driver memory held, over their second half", "flat", f"{held:+.1f} MB", held < 10),
        Row("the same with each fold's files", "20 ms", f"{per_fold:.1f} ms", per_fold <= 20),
        Row("driver memory held, with all results", "flat", f"{growth:+.1f} MB", growth < 10),
        Row("and drawing training.png", "–", f"{found['picture_ms']:.0f} ms", True),
    ]


def start(work: Path) -> list[Row]:
    seconds = min(timed(sys.executable, "-m", "setibl_ray.cv", "--help") for _ in range(5))
    data = write_synthetic(JOB, work / "start-data")
    flags = ["--folds", 2, "--workers", 1, "--epochs", 2, "--tta", 0, "--model", "efficientnet-nano"]
    flags += ["--weights", "none", "--image-size", "91x85", "--data", data, "--out", work / "start"]
    begun_s = time.time()
    timed(sys.executable, "-m", "setibl_ray.cv", *flags)
    folds = json.loads((work / "start" / "manifest.json").read_text())["folds"]
    waits = []
    for fold in ("0", "1"):
        # The first epoch is longer than the second by the tracing of its first step.
        epochs = pd.read_csv(work / "start" / f"fold-{fold}" / "history.csv")["duration_s"]
        timings = folds[fold]["timings"]
        waits.append(timings["open_s"] + timings["build_s"] + epochs[0] - epochs[1])
    first_s = folds["0"]["attempts"][0]["started_s"] - begun_s + waits[0]
    return [
        Row("cv --help", "0.5 s", f"{seconds:.2f} s", seconds < 0.5),
        Row("command to first training step (nano)", "20 s", f"{first_s:.1f} s", first_s < 20),
        Row(
            "second fold in a reused process: set-up over the first's",
            "no tracing: at most 0.1",
            f"{waits[1] / waits[0]:.3f}",
            waits[1] <= 0.1 * waits[0],
        ),
    ]


def data(work: Path) -> list[Row]:
    found = script("data_tools.py", out=work / "data_tools.json")
    whole, per_file, synth = found["whole_ratio"], found["per_file_ratio"], found["synth_ms"]
    return [
        Row("data pack of 3,000 files against a plain loop", "3 x", f"{whole:.2f} x", whole >= 3),
        Row("the same without what each pays once", "3 x", f"{per_file:.2f} x", per_file >= 3),
        Row("data synth, processor time a cadence", "8 ms", f"{synth:.1f} ms", synth <= 8),
    ]


def memory(work: Path) -> list[Row]:
    """What must stay in memory: a second fold must not hold a second copy of the data, and rows must not pile up."""
    few_one, few_two, many_one, many_two = script("memory.py", out=work / "memory.json")
    copy = many_one["store"] - few_one["store"]
    second = (many_two["must_stay"] - many_one["must_stay"]) - (few_two["must_stay"] - few_one["must_stay"])
    a_row = (many_two["must_stay"] - few_two["must_stay"]) / (many_two["rows"] - few_two["rows"])
    at_60k = (many_two["must_stay"] + a_row * (60_000 - many_two["rows"])) / 1e9
    return [
        Row(
            "a second fold at once: growth with the data, in copies of it",
            "0.1",
            f"{second / copy:+.3f}",
            second <= 0.1 * copy,
        ),
        Row(
            "60,000 cadences, --cache disk, two folds at once (carried on from 1,000 and 8,000)",
            "16 GB",
            f"{at_60k:.1f} GB",
            at_60k < 16,
        ),
    ]


def plan(work: Path) -> list[Row]:
    ratio = script("plan.py", out=work / "plan.json")["predicted over measured"]
    return [
        Row("--plan: makespan predicted over measured", "0.75 to 1.25", f"{ratio:.2f}", 0.75 <= ratio <= 1.25)
    ]


def report(work: Path) -> list[Row]:
    found = script("report.py", out=work / "report.json")
    return [
        Row("report of 60,000 rows", "30 s", f"{found['report_s']:.1f} s", found["report_s"] < 30),
        Row("its size", "15 MB", f"{found['report_mb']:.1f} MB", found["report_mb"] < 15),
    ]


PARTS = {
    "start": start,
    "pipeline": pipeline,
    "fold": fold,
    "data": data,
    "memory": memory,
    "plan": plan,
    "report": report,
    "scale": scale,
    "job": job,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    rows: list[Row] = []
    work = Path(tempfile.mkdtemp(prefix="setibl-ray-bench-"))
    try:
        for part in options.only.split(","):
            rows += PARTS[part](work)
    finally:
        shutil.rmtree(work)
    load = os.getloadavg()[1]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {load:.1f} over the last five minutes"
    when = time.strftime("%Y-%m-%d")
    lines = ["| | goal | reached | |", "|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.goal} | {row.reached} | {'' if row.holds else 'falls short'} |" for row in rows
    ]
    text = "\n".join(lines)
    print(f"\n{text}\n\n{machine}, {when}")
    (options.out / "results.md").write_text(f"# Measured by `make bench`\n\n{machine}, {when}.\n\n{text}\n")
    content = {
        "machine": machine,
        "date": when,
        "versions": versions() | versions(TASK.packages),
        "rows": [row._asdict() | {"holds": bool(row.holds)} for row in rows],  # NumPy's bool is no JSON
    }
    (options.out / "results.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
