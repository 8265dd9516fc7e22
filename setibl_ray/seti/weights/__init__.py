"""The weights that come with the package: `--weights cadences`.

benchmarks/domain_weights.py trains them on simulated cadences of every kind; docs/science.md says how, and what they
find. The network is fully convolutional, so they fit images of any size.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from setibl_ray.core.errors import ConfigError

NETWORK = ("efficientnet-nano", "all6", "on-off")
"""Model, layout and head that the weights are for."""
SHA256 = "8db041aca89f6b243777475d57c172a402d1b9cee64922e2ff211e7c243275b8"


def read() -> bytes:
    """Raises:
    ConfigError: the file is not the released one.
    """
    path = Path(__file__).with_name("cadences.h5")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConfigError(
            f"weights: {path} is not the file that this version comes with; install setibl-ray again"
        )
    return content
