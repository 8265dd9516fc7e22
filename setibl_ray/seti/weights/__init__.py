"""The weights that come with the package: `--weights cadences`.

benchmarks/domain_weights.py trains them on simulated cadences of every kind; docs/science.md says how, and what they
find. The network is fully convolutional, so a file fits images of any size; which file is taken depends on the panel's
proportions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from setibl_ray.core.errors import ConfigError

NETWORK = ("efficientnet-nano", "all6", "on-off")
"""Model, layout and head that they are for."""
SHA256 = {
    "snippets": "",
    "fine": "",
}


def name_for(image_size: tuple[int, int]) -> str:
    """For panels of (height, width) `fine`, made of 16 spectra at 32x256, if they are at least four times as wide as
    high; otherwise `snippets`, made of 273 spectra at 91x85."""
    height, width = image_size
    return "fine" if width >= 4 * height else "snippets"


def read(name: str) -> bytes:
    """Raises:
    ConfigError: the file is not the released one.
    """
    path = Path(__file__).with_name(f"{name}.h5")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ConfigError(
            f"weights: {path} is not the file that this version comes with; install setibl-ray again"
        )
    return content
