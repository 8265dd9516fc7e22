"""A run that an earlier driver began, read from its folder: whether it is this run, and what it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from setibl_ray.core.config import C, Config, differences, merge, parse, spelt
from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.jobs import RunSpec
from setibl_ray.core.run.folder import FORMAT, RunFolder, sha256
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.core.splits import is_file
from setibl_ray.core.terminal import one_line


def refuse_existing(folder: RunFolder) -> None:
    """Raises:
    RunFolderError: there is a run already.
    """
    if folder.exists():
        raise RunFolderError(
            f"{folder} holds a run already. Add --resume to go on with it, or choose another --out."
        )


def read_config(folder: RunFolder, kind: type[C]) -> C:
    """Raises:
    RunFolderError: config.yaml is missing, or this version cannot read it.
    """
    try:
        return parse(kind, kind.modernised(yaml.safe_load(folder.read("config.yaml"))))
    except (ConfigError, yaml.YAMLError) as error:
        raise RunFolderError(
            f"{folder.path('config.yaml')} is not a config of this version: {one_line(error)}. Use the version of "
            "setibl_ray that began the run, or choose another --out."
        ) from None


def given(kind: type[C], config: C | Mapping[str, Any] | None, folder: RunFolder | None = None) -> C:
    """The config that a caller gave, parsed if it is a mapping.

    Args:
      folder: of the run that is resumed; its config supplies what a mapping leaves out.

    Raises:
      ConfigError: a field is unknown, wrong or missing.
      RunFolderError: the folder's config cannot be read.
    """
    if isinstance(config, kind):
        return config
    values: Any = {} if config is None else config
    own = {}
    if folder is not None and folder.exists("config.yaml"):
        own = read_config(folder, kind).model_dump(exclude_unset=True)
    return parse(kind, merge(own, spelt(values)))


def load(folder: RunFolder, kind: type[C]) -> tuple[Manifest, C]:
    """The manifest and the config of a run that is to be resumed.

    Raises:
      RunFolderError: there is no run, or one of another format.
    """
    if not folder.exists():
        raise RunFolderError(
            f"--resume: {folder} holds no run (no manifest.json). Leave --resume out to begin one."
        )
    manifest = Manifest.load(folder)
    if manifest.format != FORMAT:
        raise RunFolderError(
            f"{folder} has run format {manifest.format}, this version writes {FORMAT}. "
            "Resume with the version of setibl_ray that began it, or choose another --out."
        )
    return manifest, read_config(folder, kind)


def finished(folder: RunFolder) -> Manifest:
    """The manifest of a run whose folds are all done.

    Raises:
      RunFolderError: there is no run, or a fold is not done.
    """
    manifest = Manifest.load(folder)
    if left := [str(fold) for fold, entry in manifest.folds.items() if entry.state != "done"]:
        raise RunFolderError(
            f"{folder}: fold {', '.join(left)} of {len(manifest.folds)} is not done. Finish the run with --resume."
        )
    return manifest


def artifact(folder: RunFolder, fold: int, name: str, files: Mapping[str, str]) -> bytes:
    """What a fold of a finished run predicts with.

    Args:
      name: of the artifact, as its task calls it.
      files: of the fold's entry in the manifest, with their checksums.

    Raises:
      RunFolderError: it was not kept, or has changed.
    """
    path = f"fold-{fold}/{name}"
    if path not in files:
        raise RunFolderError(f"{folder} keeps no {name}: fold {fold} cannot predict")
    if folder.unfit({path: files[path]}):
        raise RunFolderError(
            f"{folder.path(path)} is missing or has changed since it was written. Finish the run again with "
            "`cv --resume`, or restore the file."
        )
    return folder.read(path)


def run_config(folder: RunFolder, own: C, given: C) -> C:
    """The run's own config, after comparing it with what the caller set; how it is computed may change.

    Raises:
      RunFolderError: something that was set contradicts it; says what.
    """
    values = {
        name: value
        for name, value in given.model_dump(exclude_unset=True).items()
        if value not in (None, "auto")  # the program has chosen these since
    }
    merged = parse(type(own), merge(own.model_dump(), values))
    same_config(folder, own, merged)
    return merged


def take_up(
    folder: RunFolder, given: C, data: str | None, options: Mapping[str, Any]
) -> tuple[Manifest, C, str, dict[str, Any]]:
    """What a run continues with: its manifest, config, data and further arguments of `Task.open`; by default its own.

    Raises:
      RunFolderError: there is no run to resume, or something that was given contradicts it.
    """
    manifest, own = load(folder, type(given))
    config = run_config(folder, own, given)
    return manifest, config, data or manifest.data["root"], {**manifest.data.get("options", {}), **options}


def same_config(folder: RunFolder, own: Config, now: Config) -> None:
    """Raises:
    RunFolderError: the two would give different results; names the differences.
    """
    changed = list(differences(own.result_fields(), now.result_fields()))
    if changed:
        raise RunFolderError(
            f"{folder} was begun with another config: {'; '.join(changed)}. Resume with the config of "
            f"{folder.path('config.yaml')}, or choose another --out."
        )


def same_data(folder: RunFolder, manifest: Manifest, spec: RunSpec) -> None:
    """Raises:
    RunFolderError: data, files or functions that the config names, or the way in which rows are divided have changed.
    """
    there, rows = manifest.data, spec.rows
    if there["fingerprint"] != rows.fingerprint:
        raise RunFolderError(
            f"{folder} was made from other data: fingerprint {there['fingerprint'][:12]} of {there['root']} "
            f"({there['n_train']} + {there['n_test']} records), now {rows.fingerprint[:12]} of "
            f"{rows.root} ({len(rows.table)} + {len(rows.test)}). Choose another --out."
        )
    for name, content in spec.files.items():
        if manifest.files.get(name) != sha256(content):
            raise RunFolderError(
                f"{folder} was begun with another content of {name}. Put that back, or choose another --out."
            )
    if folder.exists("folds.csv"):
        assigned = folder.read_csv("folds.csv")
        if assigned["fold"].astype(int).tolist() != spec.fold_of_row.tolist():
            why = "Was the split file changed" if is_file(spec.config.split) else "Was it edited"
            raise RunFolderError(
                f"{folder.path('folds.csv')} divides the rows otherwise than config and data do now. {why}, "
                "or begun with another version of scikit-learn? Choose another --out."
            )
