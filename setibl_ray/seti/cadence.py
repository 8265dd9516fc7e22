"""What a cadence is: six panels, their order, and the layouts that turn panels into a network's image.

A cadence is (6, time, frequency): five-minute pointings in the order ABACAD, the target in positions
0, 2, 4 (ON) and three other stars in positions 1, 3, 5 (OFF). A signal from the target shows in ON only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

N_PANELS = 6
ON = (0, 2, 4)
OFF = (1, 3, 5)
PANEL_SHAPE = (273, 256)  # (time, frequency) of a Breakthrough Listen snippet
CLASS_NAMES = ("haystack", "needle")

Storage = Literal["png", "cadence"]  # kinds of shards: three ON panels as a PNG, or all six as raw uint8


@dataclass(frozen=True)
class Layout:
    """How panels become an image.

    `panels` are cadence positions in their order in the image; `stacked` puts them one below the other
    along time (one channel) instead of into channels.
    """

    name: str
    panels: tuple[int, ...]
    stacked: bool

    def image_shape(self, panel_shape: tuple[int, int]) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input for panels of (height, width)."""
        height, width = panel_shape
        if self.stacked:
            return height * len(self.panels), width, 1
        return height, width, len(self.panels)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("on3", ON, stacked=False),
        Layout("all6", tuple(range(N_PANELS)), stacked=False),
        Layout("on_stack", ON, stacked=True),
        Layout("all_stack", tuple(range(N_PANELS)), stacked=True),
    )
}

DEFAULT_LAYOUT: dict[Storage, str] = {"png": "on3", "cadence": "all6"}
