"""Parameters of a synthetic set, and the names of what its records show.

Separate from synth.py so that the command line can show its help without loading NumPy.
"""

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

NEEDLE_KINDS = (
    "needle-constant",  # straight track in the three ON panels
    "needle-quadratic",  # a drift that changes
    "needle-sine",  # S-shaped
    "needle-pulsed",  # straight, on and off
    "needle-wideband",  # straight, a tenth of the band wide
    "needle-partial",  # straight, in one or two of the three ON panels
)
HARD_KINDS = (
    "hard-all-panels",  # shaped like a needle, in both ON and OFF panels
    "hard-off-only",  # shaped like a needle, in the OFF panels
    "hard-one-on",  # a burst in one ON panel
    "hard-intermittent",  # shaped like a needle, in some of the ON and some of the OFF panels
    "hard-uneven",  # shaped like a needle, in all panels, but much weaker in some of them
)
HAYSTACK = "haystack"  # noise and the RFI that every cadence may have


def _split_shape(value: object) -> object:
    # The command line passes a tuple as a list of tokens: ["273x256"].
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    return tuple(text.split("x")) if isinstance(text, str) else value


def comma_separated(value: Any) -> tuple[Any, ...]:
    """Text, and each text of a list, split at commas: the command line passes `a,b` as ["a,b"]."""
    parts = [value] if isinstance(value, str | int | float | None) else value
    return tuple(item for part in parts for item in (part.split(",") if isinstance(part, str) else (part,)))


Shape = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_split_shape)]
Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """Everything that decides the bytes of a synthetic set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: PositiveInt
    """Number of training cadences."""
    test: Annotated[int, Field(ge=0)] = 0
    """Number of test cadences."""
    shards: PositiveInt = 20
    """Number of training shards."""
    test_shards: PositiveInt = 10
    """Number of test shards."""
    seed: int = 0
    """Seed of all random numbers."""
    snr: tuple[PositiveFloat, PositiveFloat] = (30, 100)
    """Lowest and highest S/N in a panel."""
    hard_snr: tuple[PositiveFloat, PositiveFloat] | None = None
    """Lowest and highest S/N of look-alikes [as needles]."""
    without: Annotated[tuple[str, ...], BeforeValidator(comma_separated)] = ()
    """Kinds to leave out, e.g. needle-sine,hard-uneven."""
    positive: Share = 0.5
    """Share of cadences with a needle."""
    hard: Share = 0.25
    """Share of look-alikes among the others."""
    shape: Shape = (273, 256)
    """Time x frequency bins of a panel."""
    df_hz: PositiveFloat = 2.7939677238464355
    """Width of a frequency bin, Hz."""
    dt_s: PositiveFloat = 1.0737418240
    """Length of a time bin, s."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        for name, snr in (("snr", self.snr), ("hard-snr", self.hard_snr)):
            if snr and snr[0] > snr[1]:
                raise ValueError(f"{name}: expected the lower first, got {snr[0]:g} {snr[1]:g}")
        for kind in self.without:
            if kind not in (*NEEDLE_KINDS, *HARD_KINDS):
                raise ValueError(
                    f"without: expected one of {', '.join((*NEEDLE_KINDS, *HARD_KINDS))}; got {kind}"
                )
        if not self.needle_kinds or not self.hard_kinds:
            raise ValueError("without: at least one kind of needle and one of hard negatives must be left")
        for n_cadences, n_shards, split in (
            (self.train, self.shards, "train"),
            (self.test, self.test_shards, "test"),
        ):
            if 0 < n_cadences < n_shards:
                raise ValueError(
                    f"{n_cadences} {split} cadences do not fill {n_shards} shards; ask for fewer shards"
                )
        if not self.chi2_df:
            product = self.df_hz * self.dt_s
            raise ValueError(
                f"df_hz x dt_s must be above 0.5 to give noise any degrees of freedom, got {product:.3g}"
            )
        if min(self.shape) < 16:
            raise ValueError(f"shape: a panel needs 16 bins each way, got {self.shape[0]}x{self.shape[1]}")
        return self

    @property
    def chi2_df(self) -> int:
        """Degrees of freedom of the noise, as setigen counts them: two polarisations, real and imaginary."""
        return 4 * round(self.df_hz * self.dt_s)

    @property
    def needle_kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in NEEDLE_KINDS if kind not in self.without)

    @property
    def hard_kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in HARD_KINDS if kind not in self.without)

    def n_cadences(self, split: str) -> int:
        return self.train if split == "train" else self.test

    def n_shards(self, split: str) -> int:
        return self.shards if split == "train" else self.test_shards if self.test else 0


# A thousand cadences are too few to learn interference that comes and goes, or that is weak in OFF panels.
DEMO = Recipe(train=1000, test=200, without=("hard-intermittent", "hard-uneven"))
