"""What an injected set is made of; separate from injection.py so that the command line shows its help at once."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from setibl_ray.seti.making.recipe import Share, comma_separated


def _ranges(value: Any) -> Any:
    """`1400-1427,1525.5-1560` to pairs of MHz."""
    pairs = []
    for part in comma_separated(value):
        if not isinstance(part, list | tuple):
            low, dash, high = str(part).partition("-")
            if not dash:
                raise ValueError(f"expected a range of MHz such as 1400-1427, got {part!r}")
            part = (low, high)
        pairs.append(part)
    return tuple(pairs)


def ascending(ranges: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    for low, high in ranges:
        if not low < high:
            raise ValueError(f"expected a range of MHz, the lower end first, got {low:g}-{high:g}")
    return ranges


Ranges = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_ranges), Field(validate_default=True)]
Names = Annotated[tuple[str, ...], BeforeValidator(comma_separated)]
Bins = Annotated[tuple[PositiveInt, ...], BeforeValidator(comma_separated)]


class InjectionRecipe(BaseModel):
    """Everything that decides the bytes of an injected set, given the observations."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: PositiveInt
    """Number of training cadences."""
    shards: PositiveInt = 20
    """Number of training shards."""
    seed: int = 0
    """Seed of all random numbers."""
    snr: tuple[PositiveFloat, PositiveFloat] = (6, 100)
    """Lowest and highest S/N of needles in a panel."""
    bins: Bins = (1,)
    """Numbers of channels summed to one; each gets an equal share of the windows."""
    width: Annotated[int, Field(ge=32, multiple_of=2)] = 64
    """Channels of a window, after summing."""
    positive: Share = 0.5
    """Share of cadences with a needle."""
    exclude_session: Names = ()
    """Sessions to leave out: those to be searched."""
    exclude_mhz: Ranges = ()
    """Ranges in MHz to leave out, such as 1400-1427."""
    coarse_channels: PositiveInt | None = None
    """Coarse channels per file [as many of 2.93 MHz as fit evenly, else one]."""

    @model_validator(mode="after")
    def _fits(self) -> InjectionRecipe:
        if self.snr[0] > self.snr[1]:
            raise ValueError(f"snr: expected the lower first, got {self.snr[0]:g} {self.snr[1]:g}")
        if self.train < self.shards:
            raise ValueError(
                f"{self.train} train cadences do not fill {self.shards} shards; ask for fewer shards"
            )
        ascending(self.exclude_mhz)
        return self
