"""What each part of the recipe brings, on three sets that differ, and how weak a needle is still found.

    python benchmarks/science.py [--out runs/science] [--only other] [--variants …] [--processes 2]

Each row is one training in one thread, scored on 1,000 cadences that it never saw, at the last epoch. Differences from
the defaults are paired, on the same cadences. The studies hold two networks against a de-Doppler search, by S/N and by
kind: the weights that come with the package, and one that never saw some of the kinds. Sets, finished rows and studies
are kept in --out: a second call continues.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
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


UNSEEN = ("needle-sine", "needle-pulsed", "hard-intermittent", "hard-uneven")

SETS = {
    "demo": Set(800, 7, {"without": ("hard-intermittent", "hard-uneven")}),
    "weak": Set(1600, 8, {"snr": (8, 60), "hard": 0.5, "hard_snr": (8, 150), "positive": 0.4, "seed": 5}),
    "other": Set(1600, 8, None),
    "unseen": Set(1600, 8, {"snr": (8, 60), "hard": 0.5, "hard_snr": (8, 150), "seed": 6, "without": UNSEEN}),
}
COMPARED = ("demo", "weak", "other")  # all variants; of "unseen" the defaults, for a study
STUDIES = {
    "as shipped": "the weights that come with the package",
    "unseen": f"trained without {', '.join(UNSEEN)}",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "--model none": {"model": "none"},
    "--model none, twice the epochs": {"model": "none", "times": 2},
    "--weights cadences, 4 epochs": {"weights": "cadences", "epochs": 4},
    "--head plain": {"head": "plain"},
    "--augment.strength 0": {"augment": {"strength": 0}},
    "--augment.strength 1": {"augment": {"strength": 1}},
}
ON_REQUEST = ("--augment.strength 0", "--augment.strength 1")  # the others fill half an hour
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
    own = dict(VARIANTS[variant])
    epochs = SETS[name].epochs * own.pop("times", 1)
    config = TASK.settle(parse({**FIELDS, "epochs": epochs, **own}), rows)
    fold_of_row = (np.arange(len(rows.table)) < SETS[name].n_train).astype(np.int16)
    place, files = Place.here(config), TASK.files(config)
    work = Work(config, rows, 0, fold_of_row, place, str(folder / "scratch"), files=files)
    begun = time.process_time()
    fitted = next(event for event in fit(work, {}) if isinstance(event, Fitted))
    (folder / f"{name} {variant}.h5").write_bytes(fitted.artifact)
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


def studied(name: str, folder: Path) -> dict[str, Any]:
    path = folder / f"study of {name}.json"
    if not path.exists():
        from domain_weights import study

        from setibl_ray.seti import weights

        file = Path(weights.__file__).with_name("cadences.h5")
        if name in SETS:
            kept(name, "defaults", folder)
            file = folder / f"{name} defaults.h5"
        path.write_text(json.dumps(study(file)))
    return json.loads(path.read_text())


def study_lines(study: dict[str, Any]) -> Iterator[str]:
    """Recall at 1 % false positives of a network and of the baseline, in Markdown."""
    from setibl_ray.seti.evaluation import sensitivity

    yield from sensitivity.lines(study)
    network, baseline = (method["levels"][0] for method in study["methods"])
    for title, part in (("S/N", "by_snr"), ("kind", "by_kind")):
        yield from ("", f"| {title} | needles | network | de-Doppler | |", "|---|---|---|---|---|")
        for ours, theirs in zip(network[part], baseline[part], strict=True):
            name = ours["kind"] if "kind" in ours else f"{ours['low']:.0f} – {ours['high']:.0f}"
            shares = [f"{100 * each['share']:.0f} % {percent(each['interval'])}" for each in (ours, theirs)]
            remark = "" if ours["share"] > theirs["share"] else "not above"
            yield "| " + " | ".join((name, str(ours["n"]), *shares, remark)) + " |"


def percent(interval: Sequence[float]) -> str:
    return "[{:.0f}, {:.0f}]".format(*(100 * bound for bound in interval))


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
    parser.add_argument("--only", nargs="*", choices=COMPARED, default=COMPARED)
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=[v for v in VARIANTS if v not in ON_REQUEST]
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        written(name, options.out)
    with ProcessPoolExecutor(
        options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        # Studies first: one of them trains, and then scores 6,000 cadences.
        jobs = {pool.submit(studied, name, options.out): ("study", name) for name in options.studies}
        jobs |= {
            pool.submit(kept, name, variant, options.out): (name, variant)
            for variant in options.variants
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
        for variant in options.variants:
            print(line(variant, base if variant == "defaults" else kept(name, variant, options.out), base))
    for name in options.studies:
        print(f"\nStudy: {STUDIES[name]}")
        print("\n".join(study_lines(studied(name, options.out))))


if __name__ == "__main__":
    main()
