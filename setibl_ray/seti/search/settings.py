"""What a search does, apart from where: everything that decides its results, given files and weights."""

from __future__ import annotations

from typing import Annotated

import pydantic

from setibl_ray.seti.observations.injection_recipe import Bins, Ranges, ascending

FLOOR = 0.05  # hits with a lower score are not kept: no threshold is below it

Positive = Annotated[float, pydantic.Field(gt=0)]


class SearchSettings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bins: Bins = (1, 8)
    """Channels that are summed to one, each searched by itself: 8 holds drifts eight times as fast."""
    threshold: Annotated[float, pydantic.Field(ge=FLOOR, le=1)] | None = None
    """Score from which a hit counts [0.95, or what --false-per-ghz gives]."""
    false_per_ghz: Annotated[float, pydantic.Field(ge=0)] | None = None
    """Choose the threshold at which the same data with ON and OFF exchanged give so many candidates a GHz."""
    recover: Annotated[int, pydantic.Field(ge=0)] = 0
    """Needles to inject into the data to see how many come out."""
    exclude_mhz: Ranges = ()
    """Ranges whose candidates are flagged, such as 1400-1427,1525-1560; nothing is left out."""
    prefilter_on: Positive = 3.0
    """S/N that a line must have in each ON panel for its window to be scored."""
    prefilter_off: Positive = 4.5
    """S/N that it may have in an OFF panel."""
    veto_on: Positive = 3.0
    """S/N of the fitted line in the weakest ON panel, at least."""
    veto_off: Positive = 4.0
    """S/N of the fitted line in every OFF panel, at most."""
    seed: int = 0
    """Seed of the injected needles."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> SearchSettings:
        if self.threshold is not None and self.false_per_ghz is not None:
            raise ValueError("threshold and false-per-ghz: give one of them")
        ascending(self.exclude_mhz)
        return self
