"""The panels behind a run's rows, by image id: for pictures, baselines and probes.

A run folder holds no pixels, only the place of the shards; `open_pixels` opens them and checks that they are the ones
the run was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from setibl_ray.core.errors import DataError
from setibl_ray.seti.cadence import N_PANELS, ON

if TYPE_CHECKING:
    from setibl_ray.seti.evaluation.finished import Run
    from setibl_ray.seti.formats.shards import DataIndex

Split = Literal["train", "test"]


def positions(n_panels: int) -> Sequence[int]:
    """Cadence positions of stored panels: all six, or the three ON ones."""
    return range(N_PANELS) if n_panels == N_PANELS else ON


class Pixels:
    """Random access to raw panels in shards.

    Attributes:
      axes: `df_hz` (if all records have the same) and `dt_s` of a pixel and `f_start_mhz`, where known, and
        `panel_shape`.
    """

    def __init__(self, index: DataIndex) -> None:
        self._index = index
        self._panels = ON if index.storage == "png" else tuple(range(N_PANELS))
        self._row = {
            split: pd.Series(np.arange(len(table)), index=table["image_id"])
            for split, table in (("train", index.train), ("test", index.test))
        }
        known = {name: index.metadata.get(name) for name in ("df_hz", "dt_s", "f_start_mhz")}
        bins = index.metadata.get("bins") or [1]  # of `data inject`: channels summed to a pixel
        if known["df_hz"]:
            known["df_hz"] = known["df_hz"] * bins[0] if len(bins) == 1 else None
        self.axes: Mapping[str, Any] = {**known, "panel_shape": list(index.panel_shape)}

    def groups(self, split: Split) -> pd.Series:
        """Group by image id, "" where a row has none."""
        table = self._index.train if split == "train" else self._index.test
        return table.set_index("image_id")["group"].fillna("").astype(str)

    def read(self, split: Split, image_ids: Sequence[str]) -> np.ndarray:
        """uint8 (n, H, W, P), all the panels that the shards hold, in the order of the cadence."""
        from setibl_ray.seti.formats.shards import read_panels

        rows = self._row[split].loc[list(image_ids)].to_numpy()
        return read_panels(self._index, split, rows, self._panels)


def open_pixels(run: Run, data: str | None = None, index: DataIndex | None = None) -> Pixels:
    """The panels of the shards that a run was trained on.

    Args:
      run: whose rows are wanted.
      data: where the shards are now; by default where they were.
      index: of those shards, if it has been read already.

    Raises:
      DataError: they are missing, or are not the same shards.
    """
    from setibl_ray.seti.formats.shards import read_index

    root = data or run.manifest["data"]["root"]
    try:
        if index is None:
            index = read_index(root, on_bad_record=run.manifest["data"].get("on_bad_record", "fail"))
    except OSError as error:  # a bucket without credentials, a host that is gone
        raise DataError(f"shards in {root} cannot be read: {error}") from error
    if index.fingerprint != run.manifest["data"]["fingerprint"]:
        raise DataError(
            f"{root} holds other shards than {run.folder} was trained on "
            f"(fingerprint {index.fingerprint[:12]}, expected "
            f"{run.manifest['data']['fingerprint'][:12]}). Point --data at the right ones."
        )
    return Pixels(index)
