"""Taking up a run that an earlier driver left: whether this is still that run, and what of it can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import yaml

from setibl_ray.core.contract import FoldResult, Plan, Predicted
from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.run.folder import FORMAT, RunFolder
from setibl_ray.core.run.manifest import Manifest, file_sha256
from setibl_ray.core.terminal import one_line
from setibl_ray.seti.config import Config, merge, parse

# What `auto` and unset fields of these became when the run was begun is the run's: on a machine with other
# cores or devices they would become something else, and the bytes with them.
_SETTLED = ("layout", "device", "devices_per_fold", "cpus_per_fold")


def refuse_existing(folder: RunFolder) -> None:
    """Raises:
    RunFolderError: there is a run already.
    """
    if folder.exists():
        raise RunFolderError(
            f"{folder} holds a run already. Add --resume to go on with it, or choose another --out."
        )


def load(folder: RunFolder) -> tuple[Manifest, Config]:
    """The manifest and the config of the run in a folder.

    Raises:
      RunFolderError: there is no run, or one of another format.
    """
    if not folder.exists():
        raise RunFolderError(
            f"--resume: {folder} holds no run (no manifest.json). Leave --resume out to begin one."
        )
    manifest = Manifest.load(folder)
    if manifest.content.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder} has run format {manifest.content.get('format')}, this version writes {FORMAT}. "
            "Resume with the version of setibl_ray that began it, or choose another --out."
        )
    try:
        return manifest, parse(yaml.safe_load(folder.read("config.yaml")))
    except (ConfigError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise RunFolderError(
            f"{folder.path('config.yaml')} is not a config of this version: {reason}. Resume with the version of "
            "setibl_ray that began the run, or choose another --out."
        ) from None


def run_config(folder: RunFolder, own: Config, given: Config) -> Config:
    """The run's own config, after holding against it whatever the caller set.

    Raises:
      RunFolderError: something that was set contradicts it; says what.
    """
    values = given.model_dump(exclude_unset=True)
    values = {
        name: value for name, value in values.items() if name not in _SETTLED or value not in (None, "auto")
    }
    same_config(folder, own, parse(merge(own.model_dump(), values)))
    return own


def same_config(folder: RunFolder, own: Config, now: Config) -> None:
    """Raises:
    RunFolderError: the two differ; says in what.
    """
    if own.device == "auto":  # a plain loop leaves it to TensorFlow; a cluster settles it
        own = own.model_copy(update={"device": now.device})
    changed = list(differences(own.model_dump(mode="json"), now.model_dump(mode="json")))
    if changed:
        raise RunFolderError(
            f"{folder} was begun with another config: {'; '.join(changed)}. Resume with the config of "
            f"{folder.path('config.yaml')}, or choose another --out."
        )


def same_data(folder: RunFolder, manifest: Manifest, plan: Plan) -> None:
    """Raises:
    RunFolderError: shards, weights file or the way in which rows are divided into folds have changed.
    """
    there = manifest.content["data"]
    if there["fingerprint"] != plan.index.fingerprint:
        raise RunFolderError(
            f"{folder} was made from other data: fingerprint {there['fingerprint'][:12]} of {there['root']} "
            f"({there['n_train']} + {there['n_test']} records), now {plan.index.fingerprint[:12]} of "
            f"{plan.index.root} ({len(plan.index.train)} + {len(plan.index.test)}). Choose another --out."
        )
    if manifest.content["weights_file_sha256"] != file_sha256(plan.config.weights):
        raise RunFolderError(
            f"{folder} was begun with another content of the weights file {plan.config.weights}. "
            "Put that back, or choose another --out."
        )
    if folder.exists("folds.csv"):
        assigned = folder.read_csv("folds.csv")
        if assigned["fold"].astype(int).tolist() != plan.fold_of_row.tolist():
            raise RunFolderError(
                f"{folder.path('folds.csv')} divides the rows otherwise than config and data do now. Was it edited, "
                "or begun with another version of scikit-learn? Choose another --out."
            )


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """`field was this, now that` for every field in which two nested mappings differ."""
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        label = f"{prefix}{name.replace('_', '-')}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, f"{label}.")
        elif before != now:
            yield f"{label} was {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def take_up(
    folder: RunFolder, manifest: Manifest, plan: Plan, say: Callable[[str], None] = lambda text: None
) -> tuple[dict[int, FoldResult], dict[int, Predicted]]:
    """What a run knows already: its trained folds, and the test predictions of those that are done.

    A fold whose files are not what they were counts as not trained; where only its test predictions are missing, and it
    has its weights, as not predicted.
    """
    predicted = predicted_folds(
        folder, manifest, plan, say
    )  # first: a fold that has to predict again needs weights
    return trained_folds(folder, manifest, plan, say), predicted


def predicted_folds(
    folder: RunFolder, manifest: Manifest, plan: Plan, say: Callable[[str], None]
) -> dict[int, Predicted]:
    """The test predictions of folds that are done."""
    predicted = {}
    for fold in range(plan.config.folds):
        if not (manifest.is_done(fold) and plan.n_test):
            continue
        name = f"fold-{fold}/test.csv"
        if folder.unfit({name: manifest.fold(fold)["files"][name]}):
            say(f"fold {fold}  {name} is missing or changed since: its test set is predicted again")
            manifest.unpredicted(fold)
            continue
        test = folder.read_csv(name)
        pred, plain = (test[column].to_numpy(np.float32) for column in ("pred", "pred_no_tta"))
        predicted[fold] = Predicted(fold, (0, plan.n_test), pred, plain, {})
    return predicted


def trained_folds(
    folder: RunFolder, manifest: Manifest, plan: Plan, say: Callable[[str], None]
) -> dict[int, FoldResult]:
    """What trained folds found; with their weights where the test set is still to be predicted."""
    results = {}
    for fold in range(plan.config.folds):
        if not manifest.is_trained(fold):
            continue
        entry = manifest.fold(fold)
        wants_weights = not manifest.is_done(fold) and plan.n_test > 0
        weights = f"fold-{fold}/weights.h5"
        unfit = folder.unfit(entry["files"])
        if wants_weights and weights not in entry["files"]:
            unfit.append(weights)
        if unfit:
            why = f"{', '.join(unfit)} missing or changed since"
            say(f"fold {fold}  was trained, but {why}: it is trained again")
            manifest.undone(fold, why)
            continue
        valid = folder.read_csv(f"fold-{fold}/oof.csv")
        results[fold] = FoldResult(
            fold=fold,
            valid_pred=valid["pred"].to_numpy(np.float32),
            valid_pred_no_tta=valid["pred_no_tta"].to_numpy(np.float32),
            best_epoch=entry["best_epoch"],
            history=folder.read_csv(f"fold-{fold}/history.csv").to_dict("records"),
            weights=folder.read(weights) if wants_weights else b"",
            timings=entry["timings"],
            peak_memory_bytes=entry["peak_memory_bytes"],
        )
    return results
