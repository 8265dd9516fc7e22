"""A data folder that lives in memory, for tests of what comes after reading."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass
class FakeIndex:
    """Looks like a `DataIndex` of cadence shards; counts how many rows have been read."""

    panels: np.ndarray  # (n, H, W, 6) uint8
    fingerprint: str = "fake"
    storage: str = "cadence"
    rows_read: list[int] = field(default_factory=list)

    @property
    def panel_shape(self) -> tuple[int, int]:
        return self.panels.shape[1], self.panels.shape[2]

    @property
    def train(self) -> pd.DataFrame:
        return pd.DataFrame({"image_id": [f"id{row}" for row in range(len(self.panels))]})

    test = train


def fake_index(n: int, height: int = 24, width: int = 20, seed: int = 0) -> FakeIndex:
    values = np.random.default_rng(seed).integers(0, 256, (n, height, width, 6), dtype=np.uint8)
    return FakeIndex(values, fingerprint=f"fake-{n}-{height}-{width}-{seed}")


def read_fake(index: FakeIndex, split: str, rows: np.ndarray, panels: tuple[int, ...]) -> np.ndarray:
    index.rows_read.extend(int(row) for row in rows)
    return index.panels[rows][..., list(panels)]
