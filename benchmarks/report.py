"""What the report of a large run costs: a fabricated run over real shards of 60,000 training cadences.

    python benchmarks/report.py [--train 60000] [--test 40000] [--shape 32x32] --out report.json

The run is fabricated because nothing here is about training; its rows are those of the shards, so waterfalls, classes
and folds are read from them. Small panels make 60,000 affordable: a report reads 24 cadences, whatever their size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from setibl_ray import report
from setibl_ray.evaluate import evaluate
from setibl_ray.seti.evaluation.finished import load_run
from setibl_ray.seti.formats.shards import DATASET_FILE, INDEX_FILE, read_index
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import runs as fake


def fabricated(work: Path, data: Path, folds: int = 5) -> Path:
    """A run folder over the shards' rows, with their fingerprint."""
    index = read_index(str(data))
    columns = ["image_id", "target", "group", "snr", "kind"]
    rows = index.train[columns].assign(fold=index.train["shard"] % folds)
    path = fake.write_run(
        work / "run", rows=rows, folds=folds, epochs=12, root=str(data), test_ids=index.test["image_id"]
    )
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["data"] |= {"fingerprint": index.fingerprint, "panel_shape": list(index.panel_shape)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def measure(data: Path, path: Path) -> dict[str, float]:
    """Seconds and megabytes; as `cv` does it, as the command does it, and of shards that have no stored index."""
    index, run, found = read_index(str(data)), load_run(str(path)), {}

    def lap(name: str, work) -> None:
        start = time.perf_counter()
        work()
        found[name] = time.perf_counter() - start

    lap("metrics_s", lambda: run.folder.write_json("metrics.json", evaluate(run)))
    lap("report_s", lambda: report.write_report(str(path), str(data), index))
    found["report_mb"] = (path / "report.html").stat().st_size / 1e6
    assert (path / "report.html").read_text().count('class="cadence"') == 3 * 6 + 2 * 6
    lap("command_s", lambda: report.write_report(str(path)))
    for name in (DATASET_FILE, INDEX_FILE):
        (data / name).unlink()
    lap("command_without_stored_index_s", lambda: report.write_report(str(path)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--test", type=int, default=40_000)
    parser.add_argument("--shape", default="32x32")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shape = tuple(int(side) for side in options.shape.split("x"))
    work = Path(tempfile.mkdtemp(prefix="setibl-ray-report-"))
    try:
        recipe = Recipe(train=options.train, test=options.test, shards=20, test_shards=10, shape=shape)
        data = write_synthetic(recipe, work / "data")
        found = measure(data, fabricated(work, data))
    finally:
        shutil.rmtree(work)
    assert np.isfinite(list(found.values())).all()
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
