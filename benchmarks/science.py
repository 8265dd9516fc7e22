"""What each part of the recipe brings, on three sets that differ.

    python benchmarks/science.py [--out runs/science] [--only other] [--processes 2]

Each row is one training in one thread, scored on 1,000 cadences that it never saw, at the last epoch. Differences from
the defaults are paired, on the same cadences. Sets and finished rows are kept in --out: a second call continues.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

N_HELD_OUT = 1000
N_VIEWS = 4


class Set(NamedTuple):
    n_train: int
    epochs: int
    recipe: dict[str, Any] | None  # of `data synth`; None: of other_sky


SETS = {
    "demo": Set(800, 7, {"without": ("hard-intermittent", "hard-uneven")}),
    "weak": Set(1600, 8, {"snr": (8, 60), "hard": 0.5, "hard_snr": (8, 150), "positive": 0.4, "seed": 5}),
    "other": Set(1600, 8, None),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "--head plain": {"head": "plain"},
    "--augment.strength 0": {"augment": {"strength": 0}},
    "--augment.strength 1": {"augment": {"strength": 1}},
    "--batch-size 16": {"batch_size": 16},
    "--schedule.decay 0.95": {"schedule": {"decay": 0.95}},
    "--weights cadences, 4 epochs": {"weights": "cadences", "epochs": 4},
}
FIELDS = {
    "folds": 2,
    "model": "efficientnet-nano",
    "weights": "none",
    "image_size": "91x85",
    "tta": N_VIEWS,
    "device": "cpu",
    "cpus_per_fold": 1,
}


def written(name: str, folder: Path) -> Path:
    """The shards of a set."""
    own = SETS[name]
    if own.recipe is None:
        from other_sky import write

        return write(folder / name, own.n_train + N_HELD_OUT)
    from setibl_ray.seti.making.recipe import Recipe
    from setibl_ray.seti.making.synth import write_synthetic

    return write_synthetic(Recipe(train=own.n_train + N_HELD_OUT, **own.recipe), folder / name)


def trained(name: str, variant: str, folder: Path) -> dict[str, Any]:
    """Train one row; its scores of the held-out cadences, with and without views."""
    import numpy as np

    import setibl_ray.seti.train  # noqa: F401  (quiets TensorFlow before it starts)

    # isort: split
    from setibl_ray.core.jobs import Place
    from setibl_ray.core.task import Fitted, Work
    from setibl_ray.seti.config import parse
    from setibl_ray.seti.formats.shards import read_index
    from setibl_ray.seti.task import TASK, rows_of
    from setibl_ray.seti.train.fold import fit

    rows = rows_of(read_index(written(name, folder)))
    config = TASK.settle(parse({**FIELDS, "epochs": SETS[name].epochs, **VARIANTS[variant]}), rows)
    fold_of_row = (np.arange(len(rows.table)) < SETS[name].n_train).astype(np.int16)
    place, files = Place.here(config), TASK.files(config)
    work = Work(config, rows, 0, fold_of_row, place, str(folder / "scratch"), files=files)
    begun = time.process_time()
    fitted = next(event for event in fit(work, {}) if isinstance(event, Fitted))
    return {
        "target": rows.target[work.valid].tolist(),
        "group": rows.table["group"].iloc[work.valid].fillna("").tolist(),
        "pred": fitted.pred.tolist(),
        "pred_no_tta": fitted.columns["pred_no_tta"].tolist(),
        "cpu_s": time.process_time() - begun,
    }


def kept(name: str, variant: str, folder: Path) -> dict[str, Any]:
    path = folder / f"{name} {variant}.json"
    if not path.exists():
        row = trained(name, variant, folder)
        path.write_text(json.dumps(row))
    return json.loads(path.read_text())


def line(variant: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    import numpy as np
    import pandas as pd

    from setibl_ray.core.text import gained, spread
    from setibl_ray.seti.evaluation import metrics

    target, plain, views = (np.array(row[column]) for column in ("target", "pred_no_tta", "pred"))
    counts = metrics.Ranking(target, plain).counts()
    group = pd.Series(row["group"])
    bounds = metrics.bootstrap_auc(target, plain, metrics.resampling_units(group)[0])
    brought = metrics.difference(target, np.array(base["pred_no_tta"]), plain, group)
    tta = metrics.difference(target, plain, views, group)
    cells = (
        variant,
        f"{counts.auc():.4f} {spread(bounds)}",
        f"{100 * counts.recall_at(0.01):.0f} %",
        "" if row is base else gained(brought, 4),
        gained(tta, 4),
        f"{row['cpu_s']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/science"))
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        written(name, options.out)
    with ProcessPoolExecutor(
        options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        jobs = {
            pool.submit(kept, name, variant, options.out): (name, variant)
            for variant in VARIANTS
            for name in options.only
        }
        for job in as_completed(jobs):
            job.result()
            print("done:", *jobs[job], flush=True)
    for name in options.only:
        own = SETS[name]
        print(f"\n{name}: {own.n_train} to train, {own.epochs} epochs, {N_HELD_OUT} held out\n")
        print(f"| | AUC | recall at 1 % | against defaults | gain of {N_VIEWS} views | processor s |")
        print("|---|---|---|---|---|---|")
        base = kept(name, "defaults", options.out)
        for variant in VARIANTS:
            print(line(variant, base if variant == "defaults" else kept(name, variant, options.out), base))


if __name__ == "__main__":
    main()
