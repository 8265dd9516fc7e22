"""What stands in a report, in the order of a reader's questions: how good, is it true, what does it find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from setibl_ray.core import randomness
from setibl_ray.core.reporting import page
from setibl_ray.core.reporting.page import Section
from setibl_ray.seti.cadence import CLASS_NAMES, LAYOUTS
from setibl_ray.seti.evaluation import metrics as scoring
from setibl_ray.seti.evaluation.finished import Run, same_rows
from setibl_ray.seti.evaluation.pixels import Pixels
from setibl_ray.seti.evaluation.summary import gained, number, percent, spread, verdict
from setibl_ray.seti.reporting import figures, gallery
from setibl_ray.seti.reporting.figures import Figure

N_CARDS = 6
N_AUGMENTED = 6
STATES = {"ok": "fine", "look": "look at this", "problem": "problem", "unknown": "not checked"}


def single(run: Run, pixels: Pixels | None, no_pixels: str = "") -> str:
    """HTML of one run's report.

    Args:
      run: with metrics.
      pixels: its panels, for waterfalls; None if they cannot be had.
      no_pixels: then, why not.
    """
    metrics = _metrics(run)
    sections = [_result(run, metrics), _trust(run, metrics)]
    sections += [section for section in (_found(metrics),) if section.blocks]
    sections += [
        _candidates(run, pixels, no_pixels),
        _scores(run),
        _training(run),
        _time(run),
        _data(run, pixels, no_pixels),
        _making(run),
    ]
    return page.render(
        title=f"{run.name} – setibl_ray",
        verdict=verdict(metrics) + _warning(metrics),
        subtitle=f"{run.name} · {run.config.folds} folds of {', '.join(run.config.model)}",
        tiles=_tiles(run, metrics),
        sections=sections,
    )


def _metrics(run: Run) -> Mapping[str, Any]:
    return run.metrics if run.metrics is not None else scoring.summarise(run.oof, seed=run.config.seed)


def _warning(metrics: Mapping[str, Any]) -> str:
    problems = [check["name"] for check in metrics.get("trust", []) if check["state"] == "problem"]
    return f" Caution: {', '.join(problems).lower()} (below)." if problems else ""


def _tiles(run: Run, metrics: Mapping[str, Any]) -> list[str]:
    intervals = metrics["intervals"]
    tiles = [
        page.tile(number(metrics["oof_auc"]), "ROC AUC, out of fold", spread(intervals.get("oof_auc"))),
        page.tile(number(metrics["oof_ap"]), "average precision", spread(intervals.get("oof_ap"))),
    ]
    for point in metrics["recall_at_fpr"]:
        level = f"{100 * point['fpr']:g} %"
        false = f"{point['n_false']:,} false alarm{'s' if point['n_false'] != 1 else ''}"
        tiles.append(page.tile(percent(point["recall"]), f"recall at {level} FPR", false))
    tiles.append(page.tile(number(metrics["ece"]), "calibration error", f"Brier {number(metrics['brier'])}"))
    ended = run.manifest.get("ended_s")
    took = _duration(ended - run.manifest["started_s"]) if ended else "–"
    tiles.append(
        page.tile(took, "wall time", f"{metrics['n_rows']:,} cadences, {metrics['n_needles']:,} needles")
    )
    return tiles


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


def _result(run: Run, metrics: Mapping[str, Any]) -> Section:
    rows = [
        (
            fold["fold"],
            number(fold["auc"]),
            number(fold["auc_no_tta"]),
            number(fold["ap"]),
            number(fold["brier"]),
            run.best_epochs[fold["fold"]] + 1 if fold["fold"] in run.best_epochs else "–",
            f"{fold['n_valid']:,}",
            f"{fold['n_needles']:,}",
        )
        for fold in metrics["folds"]
    ]
    header = ("fold", "AUC", "without TTA", "avg. precision", "Brier", "best epoch", "rows", "needles")
    intervals = metrics["intervals"]
    gain = {"difference": metrics.get("tta_gain"), "interval": intervals.get("tta_gain")}
    lead = (
        "Every score is of a cadence that its model never saw. Intervals are 95 %, from "
        f"{intervals['n_bootstrap']} resamples of {intervals['n_units']:,} {intervals['resampled']}. "
        f"Averaging views changes AUC by {gained(gain)}; an interval that holds 0 means no shown effect."
    )
    return Section(
        "result",
        "Result",
        lead,
        [
            Figure("roc", figures.roc(run.oof)),
            Figure("precision-recall", figures.precision_recall(run.oof)),
            Figure("folds", figures.fold_scores(metrics)),
            '<h3 style="margin-top:1rem">Folds in numbers</h3>',
            page.table(header, rows),
            *_finish(metrics),
        ],
    )


def _finish(metrics: Mapping[str, Any]) -> list[str]:
    """What was done to scores after the folds; nothing where nothing was."""
    rows = []
    for key, title, effect, of in (
        ("postprocess", "hook", "effect", "AUC"),
        ("calibration", "method", "brier_effect", "Brier"),
    ):
        if own := metrics.get(key):
            scores = [
                f"{number(own[f'{name}_before'], 4)} → {number(own[f'{name}_after'], 4)}"
                for name in ("auc", "brier", "ece")
            ]
            what = {"postprocess": "post-processing", "calibration": "calibration"}[key]
            rows.append((f"{what}: {own[title]}", *scores, f"{of} {gained(own[effect])}"))
    if not rows:
        return []
    header = ("after the folds", "AUC", "Brier", "calibration error", "effect, 95 % interval")
    return ['<h3 style="margin-top:1rem">After the folds</h3>', page.table(header, rows)]


def _trust(run: Run, metrics: Mapping[str, Any]) -> Section:
    lead = "Ways in which a good score can be hollow, and what was found of each."
    checks = metrics.get("trust")
    if not checks:
        command = f"python -m setibl_ray.evaluate {run.folder} --baselines"
        return Section(
            "trust",
            "Can you trust this number?",
            lead,
            [
                page.note(
                    "Not checked yet. This scores simple methods and looks for leaks; then write the report "
                    f"again: {command}"
                )
            ],
        )
    items = "".join(
        f'<li class="{escape(check["state"])}"><span class="state">{STATES[check["state"]]}</span>'
        f"<strong>{escape(check['name'])}</strong><p>{escape(check['says'])}</p></li>"
        for check in checks
    )
    rows = [
        (
            "this run",
            number(metrics["oof_auc"]),
            spread(metrics["intervals"].get("oof_auc")),
            number(metrics["oof_ap"]),
            *(percent(point["recall"]) for point in metrics["recall_at_fpr"]),
        )
    ]
    rows += [
        (
            row["name"],
            number(row["auc"]),
            spread(row["interval"]),
            number(row["ap"]),
            *(percent(point["recall"]) for point in row["recall_at_fpr"]),
        )
        for row in metrics["baselines"]
    ]
    at = (f"recall at {100 * point['fpr']:g} % FPR" for point in metrics["recall_at_fpr"])
    header = ("same rows, same folds", "AUC", "95 % interval", "avg. precision", *at)
    return Section(
        "trust",
        "Can you trust this number?",
        lead,
        [
            f'<ul class="checks">{items}</ul>',
            '<h3 style="margin-top:1rem">Against simple methods</h3>',
            page.table(header, rows),
        ],
    )


def _found(metrics: Mapping[str, Any]) -> Section:
    blocks: list[str | Figure] = []
    if metrics["recall_by_snr"]:
        blocks.append(Figure("snr", figures.recall_by_snr(metrics["recall_by_snr"])))
    if metrics["needles"]:
        blocks.append(Figure("needles", figures.shares_by_kind(metrics["needles"], "share found", "@needle")))
    if metrics["interference"]:
        blocks.append(
            Figure(
                "interference", figures.shares_by_kind(metrics["interference"], "share flagged", "@haystack")
            )
        )
    lead = "What is behind the score: which needles are found, and which interference passes for one."
    return Section("found", "What it finds", lead, blocks)


def _cards(rows: pd.DataFrame, pixels: Pixels, split: Any, captions: Sequence[str]) -> list[str]:
    panels = pixels.read(split, rows["image_id"].tolist())
    return [gallery.card(own, caption, pixels.axes) for own, caption in zip(panels, captions)]


def _caption(row: Any) -> str:
    parts = [f"<b>{row.pred:.3f}</b>", escape(str(row.image_id))]
    if getattr(row, "kind", ""):
        parts.append(escape(str(row.kind)))
    if np.isfinite(getattr(row, "snr", np.nan)):
        parts.append(f"S/N\u00a0{row.snr:.0f}")
    if hasattr(row, "fold"):
        parts.append(f"fold\u00a0{row.fold}")
    return " · ".join(parts)


def _candidates(run: Run, pixels: Pixels | None, no_pixels: str) -> Section:
    lead = "Time runs down, frequency to the right. A needle shows in ON panels and in no OFF panel."
    oof = run.oof.sort_values("pred", kind="stable")
    sheets = (
        (
            "Top candidates of the test set",
            "Highest scores among unlabelled cadences.",
            "test",
            run.submission.sort_values("pred", ascending=False, kind="stable").head(N_CARDS),
        ),
        (
            "Worst false alarms",
            "Haystacks with the highest scores: what fools this model.",
            "train",
            oof[oof["target"] == 0].iloc[::-1].head(N_CARDS),
        ),
        (
            "Worst misses",
            "Needles with the lowest scores: what it does not see.",
            "train",
            oof[oof["target"] == 1].head(N_CARDS),
        ),
    )
    if pixels is None:
        listing = [
            f"<h3>{title}</h3>"
            + page.table(("image", "score"), zip(rows["image_id"], rows["pred"].map("{:.4f}".format)))
            for title, _, _, rows in sheets
            if len(rows)
        ]
        return Section("candidates", "Candidates and mistakes", lead, [page.note(no_pixels), *listing])
    blocks = [
        gallery.sheet(title, how, _cards(rows, pixels, split, [_caption(row) for row in rows.itertuples()]))
        for title, how, split, rows in sheets
        if len(rows)
    ]
    return Section("candidates", "Candidates and mistakes", lead, blocks)


def _scores(run: Run) -> Section:
    return Section(
        "scores",
        "Scores",
        "How scores are spread, and whether they mean what they say.",
        [
            Figure("distribution", figures.score_distribution(run.oof, run.submission)),
            Figure("calibration", figures.reliability(run.oof)),
        ],
    )


def _training(run: Run) -> Section:
    best, histories = run.best_epochs, run.histories
    return Section(
        "training",
        "Training",
        "Stars mark the epoch whose weights made every prediction above.",
        [
            Figure("auc", figures.history(histories, "auc", best)),
            Figure("loss", figures.history(histories, "loss", best)),
            Figure("learning-rate", figures.learning_rate(histories)),
        ],
    )


def _time(run: Run) -> Section:
    folds = run.manifest["folds"].values()
    attempts = [attempt for entry in folds for attempt in [*entry["attempts"], *entry.get("predictions", [])]]
    nodes = {attempt["node"] for attempt in attempts if attempt.get("node")}
    again = sum(attempt.get("outcome") != "done" for attempt in attempts)
    lead = f"{len(folds)} folds on {len(nodes)} node{'s' if len(nodes) != 1 else ''}; "
    lead += f"{again or 'no'} attempt{'s' if again != 1 else ''} had to be made again."
    figure = Figure("timeline", figures.timeline(run.manifest))
    speed = {fold: past["images_per_s"].median() for fold, past in run.histories.items()}
    memory = {int(fold): entry.get("peak_memory_bytes") for fold, entry in run.manifest["folds"].items()}
    rows = [
        (
            fold,
            _where(run.manifest["folds"][str(fold)]),
            f"{speed[fold]:,.0f}",
            f"{memory[fold] / 1e9:.2f} GB" if memory.get(fold) else "–",
            len(run.manifest["folds"][str(fold)]["attempts"]),
        )
        for fold in sorted(run.histories)
    ]
    return Section(
        "time",
        "Where the time went",
        lead,
        [
            figure,
            '<div style="height:14px"></div>',
            page.table(("fold", "where", "images/s", "peak memory", "attempts"), rows),
        ],
    )


def _where(entry: Mapping[str, Any]) -> str:
    last = entry["attempts"][-1] if entry["attempts"] else {}
    return f"{last.get('node', '–')}, {last.get('n_replicas', 1)} × {last.get('device', '–')}"


def _data(run: Run, pixels: Pixels | None, no_pixels: str) -> Section:
    data = run.manifest["data"]
    height, width = data["panel_shape"]
    scale = (
        f"{height} × {width} pixels of {data['dt_s']:.3g} s × {data['df_hz']:.3g} Hz"
        if data.get("df_hz")
        else (f"{height} × {width} pixels")
    )
    lead = f"{data['n_train']:,} training and {data['n_test']:,} test cadences in "
    lead += f"{data['storage']} shards, panels of {scale}."
    blocks: list[str | Figure] = [
        Figure("classes", figures.class_distribution(run.oof)),
        Figure("balance", figures.fold_balance(run.oof)),
    ]
    if pixels is None:
        return Section("data", "Data", lead, [*blocks, page.note(no_pixels)])
    chosen = pd.concat([_unlike(run.oof[run.oof["target"] == label]) for label in (1, 0)])
    before, after = augmented(
        run, pixels.read("train", chosen["image_id"].tolist()), chosen["image_id"].tolist()
    )
    cards = []
    for row, own, changed in zip(chosen.itertuples(), before, after):
        label = f"{escape(str(row.image_id))} · {CLASS_NAMES[row.target]}"
        cards.append(gallery.card(own, f"{label}<br>the network's input", pixels.axes))
        # Shifted and zoomed: its pixels have no hertz and seconds any more.
        cards.append(gallery.card(changed, f"{label}<br>augmented", {}))
    how = "Pairs: a cadence as it enters the network, and one random augmentation of it as training sees it."
    return Section(
        "data",
        "Data",
        lead,
        [
            *blocks,
            '<div style="height:14px"></div>',
            gallery.sheet("Before and after augmentation", how, cards),
        ],
    )


def _unlike(rows: pd.DataFrame) -> pd.DataFrame:
    """A few rows, of different kinds as far as there are any."""
    return pd.concat([rows.drop_duplicates("kind"), rows]).drop_duplicates("image_id").head(N_AUGMENTED // 2)


def augmented(run: Run, raw: np.ndarray, image_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What the network is given of raw panels (n, H, W, P): as they are, and augmented as in training.

    Returns:
      Two arrays (n, h, w, p) of the layout's panels at fold 0's image size.
    """
    from setibl_ray.seti.feeding import augment, panels

    config = run.config
    layout = LAYOUTS[config.layout] if config.layout else LAYOUTS["all6"]
    stored = gallery.positions(raw.shape[3])
    channels = [list(stored).index(position) for position in layout.panels]
    images = panels.prepare(raw[..., channels], config.for_fold(0).image_size, config.standardize)
    seeds = randomness.sample_seeds(
        randomness.stream_key(config.seed, "report"), randomness.sample_keys(image_ids)
    )
    scale = panels.Z_RANGE if config.standardize else (0.0, 1.0)
    changed = augment.augment(
        images, np.arange(len(images)), seeds, config.augment, dropout=True, scale=scale
    )
    return panels.decode(images) if config.standardize else images / 255, changed


def _making(run: Run) -> Section:
    about = {key: run.manifest[key] for key in ("command", "versions", "data") if key in run.manifest}
    return Section(
        "making",
        "How it was made",
        "Enough to make it again.",
        [
            page.folded("config.yaml", run.config.to_yaml()),
            page.folded("manifest", json.dumps(about, indent=2)),
        ],
    )


def comparison(runs: Sequence[Run]) -> str:
    """HTML comparing several runs on the same rows, each against the first.

    Raises:
      RunFolderError: their rows differ.
    """
    same_rows(runs)
    names = _unique([run.name for run in runs])
    metrics = [_metrics(run) for run in runs]
    rows, first, apart = [], runs[0].oof, False
    for name, run, own in zip(names, runs, metrics):
        gain: dict[str, Any] = {"difference": None, "interval": None}
        if run is not runs[0]:
            gain = scoring.difference(
                first["target"].to_numpy(),
                first["pred"].to_numpy(),
                run.oof["pred"].to_numpy(),
                first["group"],
            )
            apart |= gain["interval"] is not None and not gain["interval"][0] <= 0 <= gain["interval"][1]
        at = own["recall_at_fpr"]
        rows.append(
            (
                name,
                number(own["oof_auc"]),
                gained(gain),
                number(own["oof_ap"]),
                percent(at[0]["recall"]),
                percent(at[1]["recall"]),
                number(own["ece"]),
            )
        )
    doubt = "" if apart else f", but none is shown to differ from {names[0]}"
    best = int(np.argmax([own["oof_auc"] or 0 for own in metrics]))
    header = (
        "run",
        "AUC",
        f"AUC against {names[0]}, 95 % interval",
        "avg. precision",
        "recall at 1 %",
        "at 0.1 %",
        "ECE",
    )
    differing = _differing([run.config.model_dump(mode="json") for run in runs])
    config_rows = [
        (name.replace("_", "-"), *(_shown(value) for value in values)) for name, values in differing.items()
    ]
    snr = figures.compared_snr(dict(zip(names, (own["recall_by_snr"] for own in metrics))))
    sections = [
        Section(
            "result",
            "Result",
            "All runs score the same cadences. Differences are paired: an interval that holds 0 "
            "means that these rows cannot tell the two apart.",
            [
                page.table(header, rows),
                '<div style="height:14px"></div>',
                Figure("compared-auc", figures.compared_intervals(names, metrics)),
                Figure(
                    "compared-roc", figures.compared_roc({name: run.oof for name, run in zip(names, runs)})
                ),
                *([Figure("compared-snr", snr)] if snr["data"] else []),
            ],
        ),
        Section(
            "config",
            "What differs",
            "Config fields in which the runs differ.",
            [
                page.table(("field", *names), config_rows)
                if config_rows
                else page.note("Nothing: the configs are equal.")
            ],
        ),
    ]
    return page.render(
        title="Comparison – setibl_ray",
        verdict=f"{names[best]} ranks best of {len(runs)} runs{doubt}: AUC {number(metrics[best]['oof_auc'])} "
        f"{spread(metrics[best]['intervals'].get('oof_auc'))}.",
        subtitle=" · ".join(str(run.folder) for run in runs),
        tiles=[
            page.tile(number(own["oof_auc"]), name, spread(own["intervals"].get("oof_auc")))
            for name, own in zip(names, metrics)
        ],
        sections=sections,
    )


def _unique(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _shown(value: Any) -> str:
    """A config's value; one that all folds share stands without brackets."""
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
