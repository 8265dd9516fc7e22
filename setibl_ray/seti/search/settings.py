"""What a search does, apart from where it runs: everything that decides its results, given files and weights."""

from __future__ import annotations

from typing import Annotated

import pydantic

from setibl_ray.seti.observations.injection_recipe import Bins, Ranges, ascending

FLOOR = 0.05  # hits with a lower score are not kept: no threshold is below it

Positive = Annotated[float, pydantic.Field(gt=0)]


class SearchSettings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bins: Bins = (1, 8)
    """Numbers of channels summed to one, each searched separately; 8 finds drifts up to eight times as fast as 1."""
    threshold: Annotated[float, pydantic.Field(ge=FLOOR, le=1)] | None = None
    """Lowest score of a hit that counts [0.95, or what --false-per-ghz gives]."""
    false_per_ghz: Annotated[float, pydantic.Field(ge=0)] | None = None
    """Choose the threshold so that the data with ON and OFF exchanged give at most this many candidates per GHz."""
    recover: Annotated[int, pydantic.Field(ge=0)] = 0
    """Number of needles to inject into the data, to see how many are found."""
    exclude_mhz: Ranges = ()
    """Ranges in MHz, such as 1400-1427,1525-1560, whose candidates are flagged; nothing is left out."""
    prefilter_on: Positive = 3.0
    """S/N that a line must have in each ON panel for its window to be scored."""
    prefilter_off: Positive = 4.5
    """Highest S/N that such a line may have in any OFF panel."""
    veto_on: Positive = 3.0
    """Lowest S/N that the fitted line may have in its weakest ON panel."""
    veto_off: Positive = 4.0
    """Highest S/N that the fitted line may have in any OFF panel."""
    seed: int = 0
    """Seed of the injected needles."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> SearchSettings:
        if self.threshold is not None and self.false_per_ghz is not None:
            raise ValueError("threshold and false-per-ghz: give one of them")
        ascending(self.exclude_mhz)
        return self
