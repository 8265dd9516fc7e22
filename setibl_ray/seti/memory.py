"""How much memory a fold takes on its host at most, estimated before it runs so that folds wait for room.

    fold = process + copies x parameters + activations + pipeline + building

| term        | bytes                                                                                           |
|-------------|-------------------------------------------------------------------------------------------------|
| process     | 1 GB: Python, TensorFlow and its compiled graphs                                                |
| parameters  | 30 copies of 4 bytes: weights, gradients, Adam's two moments; their first, last and best values |
|             | on the host; the state of all those, and it again as it is archived, pickled and sent           |
| activations | CPU folds only: batch x pixels x what the backbone keeps for a pixel (4 bytes a value)          |
| pipeline    | (threads + 4) batches of float32 images, of predictions, which are twice as large               |
| building    | 0.2 GB: raw panels on their way into the node's panel store                                     |

The panel store itself is not a fold's: a node keeps it once, and `--cache auto` takes memory for it only if half of
what is free there is enough. docs/reliability.md holds estimates against measured peaks.
"""

from __future__ import annotations

from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Config
from setibl_ray.seti.models import MODELS, Backbone

PROCESS = 1000 << 20
BUILDING = 200 << 20
COPIES = 30


def fold_bytes(config: Config, fold: int, device: str, cpus: int, sizes: Backbone | None = None) -> int:
    """The estimate for one fold, by the formula above; `sizes` of a model that is not one of this package's."""
    own = config.for_fold(fold)
    backbone = sizes or MODELS[own.model]
    height, width, channels = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    pixels = own.batch_size * height * width
    activations = pixels * backbone.kept * 4 if device in ("cpu", "auto") else 0
    pipeline = (cpus + 4) * 2 * pixels * channels * 4
    return int(PROCESS + BUILDING + COPIES * 4e6 * backbone.parameters + activations + pipeline)
