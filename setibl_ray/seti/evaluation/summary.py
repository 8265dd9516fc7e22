"""A run's metrics in at most 25 lines of text, for the end of `cv` and for logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from setibl_ray.core.text import gained, number, percent, sparkline, spread

MAX_LINES = 25
_WIDTH = 24


def curve(values: Sequence[float | None]) -> str:
    """Held-out AUC over the epochs from chance to 1, in at most 24 characters; the last epoch always shows."""
    step = -(-len(values) // _WIDTH) or 1
    return sparkline(values[::-1][::step][::-1], 0.5, 1.0).ljust(_WIDTH)


def verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence: how well needles are separated from haystacks, with interval, and at what rate of false alarms."""
    auc, bounds = metrics["oof_auc"], metrics["intervals"].get("oof_auc")
    if auc is None:
        return "The training set holds only one class, so nothing can be said about ranking."
    recall = metrics["recall_at_fpr"][0]["recall"]
    found = f"{percent(recall)} of needles found at 1\u00a0% false positives"
    if bounds and bounds[0] <= 0.5:
        return f"Not shown to be better than chance: out-of-fold AUC {auc:.3f} {spread(bounds)}."
    word = next(word for least, word in _WORDS if auc >= least)
    return f"{word} needles from haystacks: AUC {auc:.3f} {spread(bounds)}, {found}."


_WORDS = ((0.95, "Cleanly tells"), (0.85, "Mostly tells"), (0.7, "Often tells"), (0.0, "Hardly tells"))


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The content of metrics.json as plain text.

    Returns:
      At most 25 lines; many folds or kinds share a line as a sparkline.
    """
    intervals = metrics["intervals"]
    finished = finish_lines(metrics)
    lines = [
        verdict(metrics),
        f"{metrics['n_rows']:,} cadences, {metrics['n_needles']:,} needles; "
        f"95 % intervals by resampling {intervals['n_units']:,} {intervals['resampled']}",
        "",
        f"{'':24}{'final' if finished else 'with TTA':>10}  {'':15}{'without TTA':>11}",
    ]
    for label, name in (("ROC AUC", "oof_auc"), ("average precision", "oof_ap")):
        lines.append(
            f"{label:24}{number(metrics[name]):>10}  {spread(intervals.get(name)):18}"
            f"{number(metrics[f'{name}_no_tta']):>8}"
        )
    for point in metrics["recall_at_fpr"]:
        label = f"recall at {100 * point['fpr']:g} % FPR"
        bounds = intervals.get(f"recall_at_{point['fpr']:g}")
        lines.append(f"{label:24}{number(point['recall']):>10}  {spread(bounds)}")
    for label, name in (("Brier score", "brier"), ("calibration error", "ece")):
        lines.append(f"{label:24}{number(metrics[name]):>10}  {'':18}{number(metrics[f'{name}_no_tta']):>8}")
    if own := metrics.get("selection"):
        lines.append(f"epochs: {own['says']}")
    lines += [*finished, "", *_fold_lines(metrics["folds"])]
    snr = [row for row in metrics["recall_by_snr"] if row["kind"] == "all"]
    if snr:
        values = [row["share"] for row in snr]
        lines.append(
            f"{'recall against S/N':24}{sparkline(values, 0, 1):>10}  "
            f"{percent(values[0])} at S/N {snr[0]['snr_low']:.0f}–{snr[0]['snr_high']:.0f}, "
            f"{percent(values[-1])} at {snr[-1]['snr_low']:.0f}–{snr[-1]['snr_high']:.0f}"
        )
    for label, name, worst in (
        ("hardest needle", "needles", min),
        ("worst interference", "interference", max),
    ):
        kinds = [row for row in metrics[name] if row["share"] is not None]
        if kinds:
            row = worst(kinds, key=lambda kind: kind["share"])
            verb = "found" if name == "needles" else "flagged"
            lines.append(f"{label:24}{row['kind']}: {row['n_hits']} of {row['n']} {verb} at 1 % FPR")
    return lines[:MAX_LINES]


def finish_lines(report: Mapping[str, Any]) -> list[str]:
    """Post-processing and calibration and their effects, one line each."""
    lines = []
    if own := report.get("postprocess"):
        lines.append(
            f"{own['hook']:24}AUC {number(own['auc_before'], 4)} to {number(own['auc_after'], 4)}, "
            f"{gained(own['effect'])}"
        )
    if own := report.get("calibration"):
        lines.append(
            f"{own['method'] + ' calibration':24}Brier {number(own['brier_before'], 4)} to "
            f"{number(own['brier_after'], 4)}, {gained(own['brier_effect'])}; "
            f"calibration error {number(own['ece_before'], 4)} to {number(own['ece_after'], 4)}"
        )
    return lines


def _fold_lines(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per fold while they fit, one sparkline for all of them otherwise."""
    if len(folds) > 8:
        values = [fold["auc"] for fold in folds]
        known = [value for value in values if value is not None]
        ends = f"{min(known):.3f} – {max(known):.3f}" if known else "–"
        shown = values if len(values) <= 60 else values[:: -(-len(values) // 60)]
        return [f"AUC of {len(folds)} folds, {ends}", sparkline(shown)]
    lines = []
    for fold in folds:
        past = fold.get("val_auc", [])
        best = f"best epoch {fold['best_epoch'] + 1} of {len(past)}" if past else ""
        name = f"fold {fold['fold']}"
        lines.append(
            f"{name:24}{number(fold['auc']):>10}  {curve(past)}  {fold['n_valid']:,} rows  {best}".rstrip()
        )
    return lines
