"""Ray-distributed cross-validation of EfficientNets for radio-technosignature search.

from setibl_ray import cross_validate
cross_validate({"folds": 5, "model": "efficientnet-b0"}, data="shards", out="runs/b0")
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from setibl_ray.core import interrupts

# Run as a command (`python -m` imports the package before it knows the module's path), not imported as a library.
if os.path.basename((getattr(sys, "argv", None) or [""])[0]) in ("-m", "setibl-ray"):
    interrupts.end_at_once()

if TYPE_CHECKING:
    from setibl_ray.core.run.driver import CrossValidation, cross_validate
    from setibl_ray.core.where import Where
    from setibl_ray.seti.config import Config

__all__ = ["Config", "CrossValidation", "Where", "cross_validate"]


def __getattr__(name: str) -> Any:
    # On first use: a command's --help, and a fold task, should not pay for pandas and a driver.
    if name == "Config":
        from setibl_ray.seti.config import Config

        return Config
    if name in __all__:
        from setibl_ray.core.run import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
