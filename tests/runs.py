"""Fabricated run folders with plausible numbers, for tests that need a run but no training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from setibl_ray.core.run.folder import FORMAT
from setibl_ray.seti.config import Config

NEEDLES = ("constant", "quadratic", "sine", "pulsed")
INTERFERENCE = ("quiet", "stationary", "all-panels", "off-only")
STARTED_S = 1_760_000_000.0


def records(
    n: int, folds: int, rng: np.random.Generator, positive: float = 0.4, kinds: bool = True
) -> pd.DataFrame:
    """Training rows: image_id, target, group, snr, kind, fold; groups of four rows stay in one fold."""
    target = (rng.random(n) < positive).astype(int)
    target[:2] = 0, 1
    group = np.arange(n) // 4
    snr = np.where(target == 1, np.exp(rng.uniform(np.log(10), np.log(100), n)), np.nan)
    kind = np.where(target == 1, rng.choice(NEEDLES, n), rng.choice(INTERFERENCE, n))
    return pd.DataFrame(
        {
            "image_id": [f"{i:08x}" for i in rng.permutation(n)],
            "target": target,
            "group": [f"g{g}" for g in group] if kinds else [""] * n,
            "snr": snr if kinds else np.nan,
            "kind": kind if kinds else [""] * n,
            "fold": group % folds,
        }
    )


def scores(rows: pd.DataFrame, rng: np.random.Generator, strength: float = 1.6) -> np.ndarray:
    """Probabilities (n,) float32 that find bright needles more easily and mistake some interference."""
    snr = rows["snr"].fillna(30).to_numpy(float)
    pull = rows["target"] * strength * (snr / 30) ** 0.7
    push = 0.8 * (rows["kind"] == "all-panels")
    z = pull + push - 1.2 + rng.normal(0, 1, len(rows))
    return (1 / (1 + np.exp(-z))).astype(np.float32)


def history(epochs: int, rng: np.random.Generator) -> pd.DataFrame:
    epoch = np.arange(epochs)
    rise = 1 - np.exp(-epoch / 2.5)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "lr": 2e-3 * 0.8**epoch,
            "loss": 0.7 - 0.4 * rise + rng.normal(0, 0.01, epochs),
            "auc": 0.5 + 0.42 * rise + rng.normal(0, 0.01, epochs),
            "val_loss": 0.7 - 0.3 * rise + rng.normal(0, 0.02, epochs),
            "val_auc": 0.5 + 0.36 * rise + rng.normal(0, 0.02, epochs),
            "images_per_s": rng.normal(180, 6, epochs),
            "duration_s": rng.normal(6, 0.4, epochs),
        }
    )


def write_run(
    path: Path,
    *,
    n_train: int = 400,
    n_test: int = 120,
    folds: int = 5,
    epochs: int = 8,
    seed: int = 0,
    strength: float = 1.6,
    positive: float = 0.4,
    kinds: bool = True,
    rows: pd.DataFrame | None = None,
    pred: np.ndarray | None = None,
    root: str = "shards",
    test_ids: Sequence[str] | None = None,
) -> Path:
    """Write a finished run folder; `rows` and `pred` may be given to plant something in them."""
    rng = np.random.default_rng(seed)
    rows = records(n_train, folds, rng, positive, kinds) if rows is None else rows
    pred = scores(rows, rng, strength) if pred is None else pred
    pred_no_tta = np.clip(pred + rng.normal(0, 0.06, len(rows)), 0, 1).astype(np.float32)
    path.mkdir(parents=True, exist_ok=True)
    config = Config(
        folds=folds,
        epochs=(epochs,),
        model=("efficientnet-nano",),
        weights="none",
        image_size=("91x85",),
        batch_size=(16,),
        layout="all6",
    )
    (path / "config.yaml").write_text(config.to_yaml())
    rows.to_csv(path / "records.csv", index=False)
    rows[["image_id", "fold"]].to_csv(path / "folds.csv", index=False)
    table = rows[["image_id", "target"]].assign(pred=pred, fold=rows["fold"])
    table.to_csv(path / "oof.csv", index=False)
    test_ids = [f"t{i:07x}" for i in range(n_test)] if test_ids is None else sorted(test_ids)
    n_test = len(test_ids)
    test_pred = rng.beta(1, 3, (folds, n_test)).astype(np.float32)
    submission = pd.DataFrame({"id": test_ids, "target": test_pred.mean(axis=0)})
    submission.to_csv(path / "submission.csv", index=False)
    for fold in range(folds):
        own = path / f"fold-{fold}"
        own.mkdir(exist_ok=True)
        held = (rows["fold"] == fold).to_numpy()
        table.loc[held, ["image_id", "target", "pred"]].assign(pred_no_tta=pred_no_tta[held]).to_csv(
            own / "oof.csv", index=False
        )
        pd.DataFrame({"image_id": test_ids, "pred": test_pred[fold], "pred_no_tta": test_pred[fold]}).to_csv(
            own / "test.csv", index=False
        )
        past = history(epochs, rng)
        past.to_csv(own / "history.csv", index=False)
        (own / "weights.h5").write_bytes(b"not a model")
    (path / "manifest.json").write_text(json.dumps(manifest(path, folds, len(rows), n_test, root), indent=1))
    return path


def manifest(path: Path, folds: int, n_train: int, n_test: int, root: str) -> dict[str, Any]:
    """Folds on two nodes, two at a time; fold 1 loses its worker once and is tried again."""
    entries: dict[str, Any] = {}
    for fold in range(folds):
        start = STARTED_S + 5 + 70 * (fold // 2)
        attempts = []
        if fold == 1:
            lost = {"cause": "worker-died", "message": "the worker died", "decision": "resume"}
            attempts.append(_attempt(0, fold, start, start + 20, "failed") | lost)
            start += 24
        attempts.append(_attempt(len(attempts), fold, start, start + 62, "done"))
        entries[str(fold)] = {
            "state": "done",
            "best_epoch": int(pd.read_csv(path / f"fold-{fold}/history.csv")["val_auc"].idxmax()),
            "weights_sha256": "0" * 64,
            "attempts": attempts,
            "predictions": _predictions(fold, start + 62),
            "timings": {"open_s": 1.2, "build_s": 14.0, "train_s": 40.0, "predict_valid_s": 2.5},
            "peak_memory_bytes": 1_500_000_000,
        }
    return {
        "format": FORMAT,
        "command": "python -m setibl_ray.cv",
        "versions": {"python": "3.11", "setibl-ray": "0.1.0", "tensorflow": "2.15.1"},
        "data": {
            "root": root,
            "fingerprint": "0123456789abcdef",
            "storage": "cadence",
            "panel_shape": [273, 256],
            "n_train": n_train,
            "n_test": n_test,
            "n_train_shards": 20,
            "df_hz": 2.7939677,
            "dt_s": 1.0737,
        },
        "folds": entries,
        "started_s": STARTED_S,
        "ended_s": STARTED_S + 5 + 70 * ((folds + 1) // 2) + 30,
    }


def _predictions(fold: int, start: float) -> list[dict[str, Any]]:
    """The test set in two parts at once on two nodes; of fold 2, the second is lost and tried again."""
    spans = [0, 60], [60, 120]
    parts = [_attempt(0, fold + i, start, start + 4, "done") | {"rows": rows} for i, rows in enumerate(spans)]
    if fold == 2:
        parts[1] |= {"outcome": "failed", "cause": "node-died", "decision": "retry-elsewhere"}
        parts.append(_attempt(1, fold, start + 5, start + 9, "done") | {"rows": spans[1]})
    return parts


def _attempt(attempt: int, fold: int, start: float, end: float, outcome: str) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "node": f"node-{fold % 2}",
        "device": "cpu",
        "n_replicas": 1,
        "threads": 1,
        "visible": {},
        "pid": 1000 + fold,
        "started_s": start,
        "ended_s": end,
        "outcome": outcome,
    }


def cadences(
    n: int, rng: np.random.Generator, target: np.ndarray, shape: tuple[int, int] = (64, 96)
) -> np.ndarray:
    """(n, H, W, 6) uint8: noise, with a drifting line in the ON panels where target is 1; panels normalised."""
    height, width = shape
    panels = rng.gamma(8, 1, (n, height, width, 6)).astype(np.float32)
    for i in np.flatnonzero(target):
        start, drift = rng.uniform(0.3, 0.7) * width, rng.uniform(-0.2, 0.2) * width
        for position in (0, 2, 4):
            time = (position + np.arange(height) / height) / 6
            column = np.clip((start + drift * time).astype(int), 0, width - 1)
            panels[i, np.arange(height), column, position] += 8
    panels -= panels.mean(axis=(1, 2), keepdims=True)
    panels /= panels.std(axis=(1, 2), keepdims=True)
    return np.clip(80 + 20 * panels, 0, 255).astype(np.uint8)
