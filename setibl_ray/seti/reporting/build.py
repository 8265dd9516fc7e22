"""What a report shows, in the order of a reader's questions: how good is the run, can it be trusted, what does it find?

The text is in templates/report.html and templates/comparison.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from setibl_ray.core import randomness
from setibl_ray.core.reporting import page
from setibl_ray.core.text import duration, gained, number, percent, size, spread
from setibl_ray.seti.cadence import CLASS_NAMES, LAYOUTS
from setibl_ray.seti.evaluation import metrics as scoring
from setibl_ray.seti.evaluation.finished import Run, same_rows
from setibl_ray.seti.evaluation.pixels import Pixels, Split, positions
from setibl_ray.seti.evaluation.summary import verdict
from setibl_ray.seti.reporting import figures, gallery, sensitivity

N_CARDS = 6
N_AUGMENTED = 6


def single(run: Run, pixels: Pixels | None, no_pixels: str = "") -> str:
    """HTML of one run's report.

    Args:
      run: with metrics.
      pixels: its panels, for waterfalls; None if they cannot be read.
      no_pixels: why not, in that case.
    """
    metrics = _metrics(run)
    problems = [check["name"] for check in metrics.get("trust", []) if check["state"] == "problem"]
    caution = f" Caution: {', '.join(problems).lower()} (below)." if problems else ""
    ended_s = run.manifest.get("ended_s")
    about = {key: run.manifest[key] for key in ("command", "versions", "data") if key in run.manifest}
    return page.render(
        __package__,
        "report.html",
        figures=drawings(run, metrics),
        title=run.name,
        subtitle=f"{run.name} · {run.config.folds} folds of {', '.join(run.config.model)}",
        verdict=verdict(metrics) + caution,
        run=run,
        metrics=metrics,
        took=duration(ended_s - run.manifest["started_s"]) if ended_s else "–",
        tta_gain={"difference": metrics.get("tta_gain"), "interval": metrics["intervals"].get("tta_gain")},
        fold_rows=[_fold_row(run, fold) for fold in metrics["folds"]],
        finish_rows=list(_finish_rows(metrics)),
        **_baselines(metrics),
        sheets=list(_sheets(run, pixels)),
        **_attempts(run),
        speed_rows=[_speed_row(run, fold) for fold in sorted(run.histories)],
        augmented=list(_augmented_cards(run, pixels)) if pixels else [],
        no_pixels=no_pixels if pixels is None else "",
        # "seed" in runs of earlier versions.
        storage="cadence" if run.manifest["data"]["storage"] == "cadence" else "PNG",
        about=json.dumps(about, indent=2),
    )


def _metrics(run: Run) -> Mapping[str, Any]:
    return run.metrics if run.metrics is not None else scoring.summarise(run.oof, seed=run.config.seed)


def drawings(run: Run, metrics: Mapping[str, Any] | None = None) -> dict[str, figures.Spec]:
    """The figures of one run's report, by name; those that its data cannot fill are left out."""
    metrics = metrics or _metrics(run)
    best, histories = run.best_epochs, run.histories
    drawn = {
        "roc": figures.roc(run.oof),
        "precision-recall": figures.precision_recall(run.oof),
        "folds": figures.fold_scores(metrics),
        "distribution": figures.score_distribution(run.oof, run.submission),
        "calibration": figures.reliability(run.oof),
        "auc": figures.history(histories, "auc", best),
        "loss": figures.history(histories, "loss", best),
        "learning-rate": figures.learning_rate(histories),
        "timeline": figures.timeline(run.manifest),
        "classes": figures.class_distribution(run.oof),
        "balance": figures.fold_balance(run.oof),
    }
    if metrics["recall_by_snr"]:
        drawn["snr"] = figures.recall_by_snr(metrics["recall_by_snr"])
    for kinds, x, colour in (
        ("needles", "share found", "@needle"),
        ("interference", "share flagged", "@haystack"),
    ):
        if metrics[kinds]:
            drawn[kinds] = figures.shares_by_kind(metrics[kinds], x, colour)
    if "sensitivity" in metrics:
        drawn |= sensitivity.drawings(metrics["sensitivity"])
    return drawn


def _fold_row(run: Run, fold: Mapping[str, Any]) -> list[Any]:
    scores = [number(fold[name]) for name in ("auc", "auc_no_tta", "ap", "brier")]
    best = run.best_epochs[fold["fold"]] + 1 if fold["fold"] in run.best_epochs else "–"
    return [fold["fold"], *scores, best, f"{fold['n_valid']:,}", f"{fold['n_needles']:,}"]


def _finish_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """Post-processing and calibration, if there was any, and their effects."""
    for key, title, method, effect in (
        ("postprocess", "post-processing", "hook", "AUC {effect}"),
        ("calibration", "calibration", "method", "Brier {brier_effect}"),
    ):
        if own := metrics.get(key):
            scores = [
                f"{number(own[f'{name}_before'], 4)} → {number(own[f'{name}_after'], 4)}"
                for name in ("auc", "brier", "ece")
            ]
            gains = {name: gained(own[name]) for name in ("effect", "brier_effect") if name in own}
            yield [f"{title}: {own[method]}", *scores, effect.format(**gains)]


def _baselines(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The run against simple methods."""
    levels = [f"recall at {100 * point['fpr']:g} % FPR" for point in metrics["recall_at_fpr"]]
    own = {
        "name": "this run",
        "auc": metrics["oof_auc"],
        "interval": metrics["intervals"].get("oof_auc"),
        "ap": metrics["oof_ap"],
        "recall_at_fpr": metrics["recall_at_fpr"],
    }
    rows = [
        [row["name"], number(row["auc"]), spread(row["interval"]), number(row["ap"])]
        + [percent(point["recall"]) for point in row["recall_at_fpr"]]
        for row in (own, *metrics.get("baselines", ()))
    ]
    header = ["same rows, same folds", "AUC", "95 % interval", "avg. precision", *levels]
    return {"baseline_header": header, "baseline_rows": rows}


def _sheets(run: Run, pixels: Pixels | None) -> Iterator[tuple[str, str, list[dict], list[gallery.Card]]]:
    """Title, how to read it, rows and their pictures."""
    best = run.submission.sort_values("pred", ascending=False, kind="stable")
    oof = run.oof.sort_values("pred", kind="stable")
    false_alarms, misses = oof[oof["target"] == 0].iloc[::-1], oof[oof["target"] == 1]
    chosen: tuple[tuple[str, str, Split, pd.DataFrame], ...] = (
        ("Top candidates of the test set", "Highest scores among unlabelled cadences.", "test", best),
        (
            "Worst false alarms",
            "Haystacks with the highest scores: what fools this model.",
            "train",
            false_alarms,
        ),
        ("Worst misses", "Needles with the lowest scores: what it does not see.", "train", misses),
    )
    for title, how, split, rows in chosen:
        rows = rows.head(N_CARDS)
        cards = (
            [gallery.card(own, pixels.axes) for own in pixels.read(split, rows["image_id"])] if pixels else []
        )
        yield title, how, rows.to_dict("records"), cards


def _attempts(run: Run) -> dict[str, int]:
    folds = run.manifest["folds"].values()
    attempts = [attempt for entry in folds for attempt in [*entry["attempts"], *entry.get("predictions", [])]]
    return {
        "n_nodes": len({attempt["node"] for attempt in attempts if attempt.get("node")}),
        "n_failed": sum(attempt.get("outcome") != "done" for attempt in attempts),
    }


def _speed_row(run: Run, fold: int) -> list[Any]:
    entry = run.manifest["folds"][str(fold)]
    last = entry["attempts"][-1] if entry["attempts"] else {}
    where = f"{last.get('node', '–')}, {last.get('n_replicas', 1)} × {last.get('device', '–')}"
    speed, memory = run.histories[fold]["images_per_s"].median(), entry.get("peak_memory_bytes")
    return [fold, where, f"{speed:,.0f}", size(memory) if memory else "–", len(entry["attempts"])]


def _augmented_cards(run: Run, pixels: Pixels) -> Iterator[tuple[str, str, str, gallery.Card]]:
    """Image id, class, what is shown, picture."""
    chosen = pd.concat([_unlike(run.oof[run.oof["target"] == label]) for label in (1, 0)])
    ids = chosen["image_id"].tolist()
    for row, own, changed in zip(chosen.itertuples(), *augmented(run, pixels.read("train", ids), ids)):
        about = row.image_id, CLASS_NAMES[row.target]
        yield *about, "the network's input", gallery.card(own, pixels.axes)
        # Shifted and zoomed, so a pixel no longer stands for a fixed frequency and time.
        yield *about, "augmented", gallery.card(changed, {})


def _unlike(rows: pd.DataFrame) -> pd.DataFrame:
    """A few rows, of different kinds if possible."""
    return pd.concat([rows.drop_duplicates("kind"), rows]).drop_duplicates("image_id").head(N_AUGMENTED // 2)


def augmented(run: Run, raw: np.ndarray, image_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The network's input from raw panels (n, H, W, P): plain, and augmented as in training.

    Returns:
      Two arrays (n, h, w, p) of the layout's panels at fold 0's image size.
    """
    from setibl_ray.seti.feeding import augment, panels

    config = run.config
    layout = LAYOUTS[config.layout or "all6"]
    channels = [positions(raw.shape[3]).index(position) for position in layout.panels]
    images = panels.prepare(raw[..., channels], config.for_fold(0).image_size, config.standardize)
    seeds = randomness.sample_seeds(
        randomness.stream_key(config.seed, "report"), randomness.sample_keys(image_ids)
    )
    scale = panels.Z_RANGE if config.standardize else (0.0, 1.0)
    changed = augment.augment(
        images, np.arange(len(images)), seeds, config.augment, dropout=True, scale=scale
    )
    return panels.decode(images) if config.standardize else images / 255, changed


def comparison(runs: Sequence[Run]) -> str:
    """HTML comparing several runs on the same rows, each against the first.

    Raises:
      RunFolderError: their rows differ.
    """
    same_rows(runs)
    names = _unique([run.name for run in runs])
    metrics = [_metrics(run) for run in runs]
    target, preds = runs[0].oof["target"].to_numpy(), [run.oof["pred"].to_numpy() for run in runs]
    gains: list[dict[str, Any]] = [{"difference": None, "interval": None}]
    gains += [scoring.difference(target, preds[0], pred, runs[0].oof["group"]) for pred in preds[1:]]
    apart = any(gain["interval"] and not gain["interval"][0] <= 0 <= gain["interval"][1] for gain in gains)
    rows = [
        [name, number(own["oof_auc"]), gained(gain), number(own["oof_ap"])]
        + [percent(point["recall"]) for point in own["recall_at_fpr"]]
        + [number(own["ece"])]
        for name, own, gain in zip(names, metrics, gains)
    ]
    drawn = {
        "compared-auc": figures.compared_intervals(names, metrics),
        "compared-roc": figures.compared_roc({name: run.oof for name, run in zip(names, runs)}),
        "compared-snr": figures.compared_snr(dict(zip(names, (own["recall_by_snr"] for own in metrics)))),
    }
    best = int(np.argmax([own["oof_auc"] or 0 for own in metrics]))
    doubt = "" if apart else f", but none is shown to differ from {names[0]}"
    auc = f"{number(metrics[best]['oof_auc'])} {spread(metrics[best]['intervals'].get('oof_auc'))}"
    differing = _differing([run.config.model_dump(mode="json") for run in runs])
    return page.render(
        __package__,
        "comparison.html",
        figures={name: figure for name, figure in drawn.items() if figure["data"]},
        subtitle=" · ".join(str(run.folder) for run in runs),
        verdict=f"{names[best]} ranks best of {len(runs)} runs{doubt}: AUC {auc}.",
        metrics=dict(zip(names, metrics)),
        rows=rows,
        differing=[[name.replace("_", "-"), *map(_shown, values)] for name, values in differing.items()],
    )


def _unique(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _shown(value: Any) -> str:
    """A config's value, without brackets if all folds share it."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differing(configs: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in configs[0].items():
        values = [config[name] for config in configs]
        if isinstance(value, dict):
            found |= _differing(values, f"{prefix}{name}.")
        elif any(other != value for other in values):
            found[prefix + name] = values
    return found
