"""Where folds run and how often they are tried: flags about the cluster that do not affect the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from setibl_ray.core.errors import ConfigError


@dataclass(frozen=True)
class Where:
    """Where and how folds run; nothing here changes a result.

    Attributes:
      runner: `ray`, or `local` for a plain loop in this process.
      address: Ray cluster to join; None starts Ray on this machine, unless RAY_ADDRESS names a cluster.
      workers: at most this many folds at once; None for as many as fit.
      accelerator_type: Ray's name of a generation, such as TPU-V4 or A100.
      labels: node labels that a fold's node must have.
      placement_timeout_s: how long to wait for the cluster to grow before a request that does not fit is refused, and
        for new nodes when all nodes that folds can run on are gone. If it is more than 0, also how long to wait while
        others use what folds need.
      max_retries: retries of one fold, after failures that may pass, without an epoch finished in between.
      connect_timeout_s: how long to wait for a cluster at `address` to answer; a refused connection fails at once.
      fold_timeout_s: an attempt at a fold that takes longer is stopped and tried again, elsewhere if it can be.
    """

    runner: Literal["ray", "local"] = "ray"
    address: str | None = None
    workers: int | None = None
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    placement_timeout_s: float = 0.0
    max_retries: int = 3
    fold_timeout_s: float | None = None
    connect_timeout_s: float = 60.0

    @classmethod
    def of(cls, given: Where | Mapping[str, Any] | None) -> Where:
        """`given` itself, or made of a mapping of these fields.

        Raises:
          ConfigError: it is something else, or a field is none of these.
        """
        if isinstance(given, Where):
            return given
        if not isinstance(given, Mapping | None):
            raise ConfigError(
                f"where: expected a Where or a mapping of its fields, got {type(given).__name__}"
            )
        values = {str(name).replace("-", "_"): value for name, value in (given or {}).items()}
        if unknown := values.keys() - {own.name for own in fields(cls)}:
            names = ", ".join(own.name for own in fields(cls))
            raise ConfigError(f"where: unknown field {min(unknown)!r}; expected some of {names}")
        return cls(**values)

    def flags(self) -> list[str]:
        """These fields as flags of `cv`; those with default values are left out."""
        flags = []
        for name, value in vars(self).items():
            if name == "labels":
                flags += [part for key, label in value.items() for part in ("--label", f"{key}={label}")]
            elif value != getattr(Where, name):
                flags += [f"--{name.replace('_', '-')}", str(value)]
        return flags
