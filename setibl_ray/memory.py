"""How much memory a fold takes on its host at most, estimated before it runs so that folds wait for room.

    fold = process + copies x parameters + activations + pipeline + building

| term        | bytes                                                                                           |
|-------------|-------------------------------------------------------------------------------------------------|
| process     | 1.5 GB: Python, TensorFlow and its compiled graphs                                              |
| parameters  | 16 copies of 4 bytes: weights, gradients, Adam's two moments; their last and best values on the |
|             | host; the state that is serialised and the copy that is sent                                    |
| activations | CPU folds only: batch x pixels x what the backbone keeps for a pixel (4 bytes a value)          |
| pipeline    | (threads + 2) batches of float32 images, twice                                                  |
| building    | 0.2 GB: raw panels on their way into the node's panel store                                     |

The panel store itself is not a fold's: a node keeps it once, and `--cache auto` takes memory for it only if half of
what is free there is enough. docs/reliability.md holds estimates against measured peaks.
"""

from __future__ import annotations

from setibl_ray.cadence import LAYOUTS
from setibl_ray.config import Config

PROCESS = 1500 << 20
BUILDING = 200 << 20
COPIES = 16

# Parameters in millions; values kept for the backward pass for each pixel of the input, which are the published
# activation counts of a forward pass (per pixel of their image) times 3 for normalised and activated copies.
_SIZES: dict[str, tuple[float, float]] = {
    "efficientnet-nano": (0.3, 60),
    "efficientnet-b0": (4.1, 400),
    "efficientnet-b1": (6.6, 570),
    "efficientnet-b2": (7.8, 610),
    "efficientnet-b3": (10.8, 800),
    "efficientnet-b4": (17.7, 1040),
    "efficientnet-b5": (28.5, 1430),
    "efficientnet-b6": (41.0, 1800),
    "efficientnet-b7": (64.1, 2420),
    "resnet50": (23.6, 660),
    "inception-v3": (21.8, 400),
    "xception": (20.9, 1000),
    "vit-tiny": (5.6, 360),
}


def fold_bytes(config: Config, fold: int, device: str, cpus: int) -> int:
    """The estimate for one fold, by the formula above."""
    own = config.for_fold(fold)
    parameters, kept = _SIZES[own.model]
    height, width, channels = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    pixels = own.batch_size * height * width
    activations = pixels * kept * 4 if device in ("cpu", "auto") else 0
    pipeline = (cpus + 2) * 2 * pixels * channels * 4
    return int(PROCESS + BUILDING + COPIES * 4e6 * parameters + activations + pipeline)


def largest_fold_bytes(config: Config, device: str, cpus: int) -> int:
    return max(fold_bytes(config, fold, device, cpus) for fold in range(config.folds))
