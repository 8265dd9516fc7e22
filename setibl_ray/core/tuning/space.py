"""The search space: which config fields vary, from which of Tune's distributions, checked before anything starts.

In YAML a field is named like its flag, its distribution like Tune's:

    schedule.lr-max: {loguniform: [1.0e-4, 1.0e-2]}
    augment.strength: {uniform: [0, 2]}
    model: {choice: [efficientnet-b0, efficientnet-b1]}
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import tune

from setibl_ray.core.config import C, Config, parse
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.terminal import one_line

if TYPE_CHECKING:
    import optuna

Values = Mapping[str, Any]  # field, named as its flag -> value

NUMERIC = (
    "uniform", "quniform", "loguniform", "qloguniform",
    "randint", "qrandint", "lograndint", "qlograndint",
)  # fmt: skip
LISTED = ("choice", "grid_search")
N_DRAWS = 32  # per field, to find errors that its bounds do not show, such as fractions of an integer


@dataclass(frozen=True)
class Field:
    """One searched field: `kind` and `arguments` as in `tune.<kind>(*arguments)`."""

    name: str
    kind: str
    arguments: tuple[Any, ...]

    @cached_property
    def domain(self) -> Any:
        """Tune's own object; a grid is sampled as a choice."""
        if self.kind in LISTED:
            return tune.choice(list(self.arguments))
        return getattr(tune, self.kind)(*self.arguments)

    @property
    def options(self) -> list[Any]:
        return list(self.arguments) if self.kind in LISTED else []

    @property
    def is_log(self) -> bool:
        return "log" in self.kind

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value that can be drawn; for a list, its lowest and highest index."""
        if self.kind in LISTED:
            return 0, len(self.arguments) - 1
        low, high = self.arguments[:2]
        # Tune's integers leave the upper end out, except where a step is given.
        return (low, high - 1) if self.kind in ("randint", "lograndint") else (low, high)

    def sample(self, rng: np.random.Generator) -> Any:
        value = self.domain.sample(random_state=rng)
        return value.item() if isinstance(value, np.generic) else value

    def extremes(self) -> list[Any]:
        """Sample values: every option of a list, both bounds and some draws of a distribution."""
        if self.kind in LISTED:
            return self.options
        rng = np.random.default_rng(0)
        return [*self.bounds, *(self.sample(rng) for _ in range(N_DRAWS))]

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The same field for Optuna; a list by its indices, since Optuna's categories must be plain scalars."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind in LISTED:
            return CategoricalDistribution(range(len(self.arguments)))
        low, high = self.bounds
        if "randint" in self.kind:
            return IntDistribution(int(low), int(high), log=self.is_log, step=int(self._step or 1))
        return FloatDistribution(float(low), float(high), log=self.is_log, step=self._step)

    @property
    def _step(self) -> float | None:
        """Optuna's step; it has none on a logarithmic scale, where `decode` rounds instead."""
        return self.arguments[2] if self.kind in ("quniform", "qrandint") else None

    def holds(self, value: float) -> bool:
        """Whether a number is within the bounds and, where there are steps, on one."""
        low, high = self.bounds
        steps = (value - low) / self._step if self._step else 0
        return low <= value <= high and abs(steps - round(steps)) < 1e-8

    def decode(self, value: Any) -> Any:
        """A value from Optuna in the config's type."""
        if self.kind in LISTED:
            return self.options[value]
        if self.kind in ("qloguniform", "qlograndint"):
            step = self.arguments[2]
            return type(value)(min(max(round(value / step) * step, self.arguments[0]), self.arguments[1]))
        return value

    def encode(self, value: Any) -> Any:
        return self.options.index(value) if self.kind in LISTED else value

    def place(self, value: Any) -> float:
        """Where `value` lies between the bounds, 0 to 1 inside, on the distribution's own scale."""
        low, high = self.bounds
        at = self.encode(value)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low) if high > low else 0.0

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True)
class Space:
    fields: tuple[Field, ...]

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]

    @property
    def labels(self) -> dict[str, str]:
        """Field -> its name without the section, if that is unique: columns and axes have little room."""
        short = {name: name.rpartition(".")[2] for name in self.names}
        taken = list(short.values())
        return {name: label if taken.count(label) == 1 else name for name, label in short.items()}

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return {field.name: field.sample(rng) for field in self.fields}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last field fastest.

        Raises:
          ConfigError: a field is not a list.
        """
        for field in self.fields:
            if field.kind not in LISTED:
                raise ConfigError(
                    f"space: --search grid needs a list for every field (choice or grid_search); got {field}"
                )
        products = itertools.product(*(field.options for field in self.fields))
        return [dict(zip(self.names, values)) for values in products]

    def default(self, config: Config) -> dict[str, Any] | None:
        """The base config's point in the space; None if it is outside, or between the points of a quantised field."""
        point = {}
        for field in self.fields:
            value = config.search_value(field.name)
            if field.kind in LISTED:
                if value not in field.options:
                    return None
            elif not isinstance(value, int | float) or not field.holds(value):
                return None
            point[field.name] = value
        return point

    def plain(self) -> dict[str, Any]:
        """The YAML form."""
        return {field.name: {field.kind: list(field.arguments)} for field in self.fields}


def parse_space(values: Mapping[str, Any], kind: type[Config]) -> Space:
    """A space from its YAML form; sections may be nested or dotted; `kind` is the config whose fields they are.

    Raises:
      ConfigError: not a field, not a distribution, or arguments that the distribution does not take.
    """
    fields = tuple(_parse_field(name, spec, kind) for name, spec in _flat(values, kind))
    if not fields:
        raise ConfigError(
            "space: it searches no field; expected lines such as `augment.strength: {uniform: [0, 2]}`"
        )
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"space: {name} stands there twice")
    return Space(fields)


def apply(base: C, values: Values) -> C:
    """`base` with some fields replaced.

    Raises:
      ConfigError: a field does not exist or a value is not one of its own.
    """
    plain = base.model_dump()
    for name, value in values.items():
        *sections, last = name.replace("-", "_").split(".")
        at = plain
        for section in sections:
            at = at[section]
        at[last] = value
    return parse(type(base), plain)


def check_space(space: Space, base: C) -> list[C]:
    """Check every option, both bounds and some draws of each field against the config's types and bounds.

    Returns:
      The configs that were tried, for checks against the data.

    Raises:
      ConfigError: names the field, the value and what the config says of it.
    """
    configs = []
    for field in space:
        for value in field.extremes():
            try:
                configs.append(apply(base, {field.name: value}))
            except ConfigError as error:
                raise ConfigError(
                    f"space: {field} can give {value!r}, which the config refuses: {error}"
                ) from None
    return configs


def _flat(values: Mapping[str, Any], kind: type[Config], prefix: str = "") -> Iterator[tuple[str, Any]]:
    sections = {
        name for name, field in kind.model_fields.items() if hasattr(field.annotation, "model_fields")
    }
    for name, spec in values.items():
        if not prefix and str(name).replace("-", "_") in sections:
            if not isinstance(spec, Mapping):
                raise ConfigError(f"space: {name} is a section; expected its fields below it, got {spec!r}")
            yield from _flat(spec, kind, f"{name}.")
        else:
            yield f"{prefix}{name}", spec


def _parse_field(name: str, spec: Any, kind_of_config: type[Config]) -> Field:
    name = name.replace("_", "-")
    _known_field(name, kind_of_config)
    accepted = ", ".join((*NUMERIC, *LISTED))
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ConfigError(
            f"space: {name}: expected one distribution, such as {{uniform: [0, 1]}}; got {spec!r}"
        )
    kind, arguments = next(iter(spec.items()))
    if kind not in (*NUMERIC, *LISTED):
        unbounded = (
            " (a normal distribution has no ends that could be checked)" if "randn" in str(kind) else ""
        )
        raise ConfigError(f"space: {name}: expected one of {accepted}; got {kind!r}{unbounded}")
    if not isinstance(arguments, Sequence) or isinstance(arguments, str) or not arguments:
        raise ConfigError(f"space: {name}: {kind} takes a list; got {arguments!r}")
    if kind in NUMERIC:
        arguments = [_number(name, kind, value) for value in arguments]
        wanted = list(inspect.signature(getattr(tune, kind)).parameters)
        wanted = [parameter for parameter in wanted if parameter != "base"]
        if len(arguments) != len(wanted):
            raise ConfigError(f"space: {name}: {kind} takes [{', '.join(wanted)}]; got {arguments}")
        if not arguments[0] < arguments[1]:
            raise ConfigError(f"space: {name}: {kind} needs its lower end below its upper; got {arguments}")
    field = Field(name, kind, tuple(arguments))
    try:
        field.sample(np.random.default_rng(0))
        field.distribution()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"space: {field}: {one_line(error)}") from None
    return field


def _known_field(name: str, kind: type[Config]) -> None:
    model: Any = kind
    for part in name.replace("-", "_").split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            raise ConfigError(
                f"space: unknown field {name!r}: check its spelling (cv --help lists every field)"
            )
        model = fields[part].annotation
    if hasattr(model, "model_fields"):
        raise ConfigError(f"space: {name} is a section, not a field")
    if name.replace("-", "_") in kind.how | kind.unsearchable:
        raise ConfigError(
            f"space: {name} cannot be searched: trials are compared over the same rows, folds and kind of device"
        )


def _number(name: str, kind: str, value: Any) -> float | int:
    # YAML reads 1e-4 (without a point) as text.
    try:
        number = float(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(f"space: {name}: {kind} takes finite numbers; got {value!r}") from None
    return number
