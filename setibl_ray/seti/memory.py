"""The most memory that a fold takes on its host, estimated before it runs so that folds wait for room.

    fold = process + copies x parameters + activations + pipeline + building

| term        | bytes                                                                                           |
|-------------|-------------------------------------------------------------------------------------------------|
| process     | 1 GB: Python, TensorFlow and its compiled graphs                                                |
| parameters  | 30 copies of 4 bytes: weights, gradients, Adam's two moments; their first, last and best values |
|             | on the host; the state of all those, and copies of it as it is archived, pickled and sent       |
| activations | CPU folds only: batch x pixels x values that the backbone keeps per pixel (4 bytes each)        |
| pipeline    | (threads + 4) prediction batches of float32 images, twice as large as training batches          |
| building    | 0.2 GB: raw panels that are added to the node's panel store                                     |

The panel store is not part of a fold: each node has one, and `--cache auto` keeps it in memory only if half of the free
memory is enough for it. docs/reliability.md compares estimates with measured peaks.
"""

from __future__ import annotations

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Config
from setibl_ray.seti.models import Backbone

PROCESS = 1000 << 20
BUILDING = 200 << 20
COPIES = 30


def fold_bytes(config: Config, fold: int, device: str, cpus: int, sizes: Backbone) -> int:
    """The estimate for one fold, by the formula above, with the `sizes` of its model."""
    own = config.for_fold(fold)
    height, width, channels = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    pixels = own.batch_size * height * width
    activations = pixels * sizes.kept * 4 if device in ("cpu", "auto") else 0
    pipeline = (cpus + 4) * 2 * pixels * channels * 4
    return int(PROCESS + BUILDING + COPIES * 4e6 * sizes.parameters + activations + pipeline)


def device_bytes(config: Config, fold: int, sizes: Backbone, batch: int | None = None) -> int:
    """An upper estimate of the accelerator memory that training a fold takes, for one replica; not yet measured on one.

    Activations as on a CPU, in half the bytes with mixed precision; weights, gradients, Adam's two moments and two
    temporary copies; the batch and the next one; a fifth more for the allocator's gaps and convolutions' workspace.

    Args:
      batch: images in memory at once; by default the fold's batch.
      sizes: as in `fold_bytes`.
    """
    own = config.for_fold(fold)
    height, width, channels = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    pixels = (batch or own.batch_size) * height * width
    activations = pixels * sizes.kept * (2 if config.mixed_precision else 4)
    return int(1.2 * (activations + 6 * 4e6 * sizes.parameters + 2 * pixels * channels * 4))


def check_share(config: Config, fold: int, share: float, limit_bytes: int, sizes: Backbone) -> None:
    """Compare the estimate with what a fold's share of a GPU leaves it.

    Raises:
      ConfigError: it is more; names the largest batch that fits.
    """
    batch = config.for_fold(fold).batch_size
    wanted = device_bytes(config, fold, sizes, batch)
    if wanted <= limit_bytes:
        return
    fits = [size for size in range(1, batch) if device_bytes(config, fold, sizes, size) <= limit_bytes]
    advice = f"the largest batch that fits is {fits[-1]}" if fits else "not even one image fits"
    raise ConfigError(
        f"devices-per-fold: fold {fold} takes about {wanted / 1e9:.1f} GB at --batch-size {batch}, and {share:g} of "
        f"its GPU leaves it {limit_bytes / 1e9:.1f} GB; {advice}. Take a smaller batch or a larger share."
    )
