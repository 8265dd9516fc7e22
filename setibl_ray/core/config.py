"""What every config has: how rows are divided into folds, how folds are weighted, what a fold runs on.

A task adds the fields of what it trains, its `Settings`; `config_of` puts the two together into one frozen, validated
model, the same from YAML, the command line or Python. Fields that do not affect a result (`Config.how`) may differ when
a run is resumed; all others must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.terminal import one_line

PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Config(Section):
    """The fields of every cross-validation."""

    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """Number of folds."""
    split: Annotated[str, Field(min_length=1)] = "rows"
    """How rows are divided into folds: rows, units (such as files), stratified, group, the name of a scikit-learn
    splitter (StratifiedGroupKFold), or a CSV file with the columns id and fold."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of all random numbers of the run."""
    fold_weights: str = "equal"
    """Weight of each fold in the test prediction: equal, the score's name, or one number per fold (comma-separated)."""
    device: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    """What a fold runs on; auto takes the best device of the cluster."""
    devices_per_fold: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """GPUs per fold, or a fraction of one (0.2), or TPU chips [1 GPU, or all chips of a TPU VM]."""
    cpus_per_fold: PositiveInt | None = None
    """CPU cores per fold [an equal share of the cores]. On a CPU, the same number of cores gives the same bytes."""

    how: ClassVar[frozenset[str]] = frozenset({"device", "devices_per_fold", "cpus_per_fold"})
    unsearchable: ClassVar[frozenset[str]] = frozenset({"folds", "split", "seed"})
    # Names that `fold_weights` may have; empty while the score's name is not known.
    weight_rules: ClassVar[tuple[str, ...]] = ()

    @pydantic.field_validator("devices_per_fold")
    @classmethod
    def _whole_or_part(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"expected a part of one device (0.2) or a whole number of them; got {value:g}")
        return value

    @pydantic.field_validator("fold_weights", mode="before")
    @classmethod
    def _fold_weights(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            value = ",".join(str(weight) for weight in value)
        value = str(value)
        if value in cls.weight_rules or (not cls.weight_rules and value.isidentifier()):
            return value
        try:
            weights = [float(part) for part in value.split(",")]
        except ValueError:
            rules = ", ".join(cls.weight_rules or ("equal", "the score's name"))
            raise ValueError(f"expected {rules}, or numbers separated by commas; got {value!r}") from None
        if not all(0 <= weight < float("inf") for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"expected finite weights of at least 0 with a positive sum; got {value!r}")
        return value

    @pydantic.model_validator(mode="after")
    def _one_weight_per_fold(self: C) -> C:
        named = self.fold_weights.isidentifier()
        if not named and self.fold_weights.count(",") + 1 != self.folds:
            raise ValueError(
                f"fold-weights: expected {self.folds} numbers, got {self.fold_weights.count(',') + 1}"
            )
        return self

    @classmethod
    def modernised(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translate a finished run's config.yaml, which an earlier version may have written, to today's fields."""
        return values

    def search_value(self, name: str) -> Any:
        """Value of a searched field, named like its flag; for an unset field, the value that will be used, if known."""
        value: Any = self
        for part in name.replace("-", "_").split("."):
            value = getattr(value, part)
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    def default_space(self) -> dict[str, Any]:
        """What a sweep varies without --space, as in a space file; empty if a space must be given."""
        return {}

    def result_fields(self) -> dict[str, Any]:
        """Plain values of the fields that decide a result."""
        return self.model_dump(mode="json", exclude=set(self.how))

    def to_yaml(self) -> str:
        """YAML that `cv --config` reads back unchanged; single values are written without brackets."""
        plain = {name: _shown(value) for name, value in self.model_dump(mode="json").items()}
        return yaml.safe_dump(plain, sort_keys=False)


C = TypeVar("C", bound=Config)


@lru_cache  # one class for one kind of settings: a config is recognised by its class
def config_of(settings: type[BaseModel]) -> type[Config]:
    """The config of a task's settings: its fields and those of every config.

    Raises:
      ConfigError: a field of the settings has the same name as one of those.
    """
    if issubclass(settings, Config):
        return settings
    taken = sorted(settings.model_fields.keys() & Config.model_fields.keys())
    if taken:
        raise ConfigError(
            f"{settings.__name__}: {', '.join(taken)} is a field of every config; choose another name"
        )
    return pydantic.create_model(f"{settings.__name__}Config", __base__=(settings, Config))  # type: ignore[arg-type]


def explain(error: pydantic.ValidationError) -> str:
    """One line for the first thing wrong in a config, naming the field as a flag would."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    field = field.replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"unknown field {field!r}: check its spelling (--help lists every field)"
    if first["type"] == "missing":
        return f"{field}: expected, but not given (see --help)"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = "expected a section, with fields of its own"
    received = "" if first["type"] == "value_error" else f"; got {one_line(repr(first['input']))}"
    return f"{field + ': ' if field else ''}{message}{received}"


class _Fields(yaml.SafeLoader):
    """YAML whose mappings hold fields. Plain YAML accepts any key, and takes the last value of a repeated one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                problem = f"expected the name of a field, found {key.value!r}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            field = key.value.replace("-", "_")
            if field in seen:
                problem = f"{key.value} appears twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(field)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path, flag: str = "--config") -> dict[str, Any]:
    """Read the file of fields that `flag` names.

    Raises:
      ConfigError: the file is missing, is not YAML, is not a mapping, or has a field twice.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Fields)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        what = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        what += " ".join(part for part in (error.problem, error.context) if part)
        raise ConfigError(f"{flag} {path} line {line}: {what}") from None
    # Bytes that are not text; values such as `2001-13-45`; thousands of nested brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} {path}: not YAML: {one_line(error)}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{flag} {path}: expected a mapping of fields, got {type(values).__name__}")
    return values or {}


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Mappings on top of each other, later ones winning, sections field by field."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merge(merged[name], value) if both else value
    return merged


def spelt(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate fields from any spelling that YAML and flags accept (`batch-size`, `augment.strength`) to Python's.

    Raises:
      ConfigError: a field appears in two spellings, its name is not text, or `values` is not a mapping.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"config: expected a Config or a mapping of its fields, got {type(values).__name__}"
        )
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ConfigError(f"config: expected names of fields, got {name!r}")
        value = spelt(value) if isinstance(value, Mapping) else value
        section, dot, rest = name.replace("-", "_").partition(".")
        value = spelt({rest: value}) if dot else value
        there = fields.get(section)
        if isinstance(there, dict) and isinstance(value, dict) and not there.keys() & value.keys():
            value = there | value
        elif section in fields:
            raise ConfigError(f"config: {name} appears twice")
        fields[section] = value
    return fields


def parse(kind: type[C], values: Mapping[str, Any]) -> C:
    """Validate plain values, in any spelling of their fields' names.

    Raises:
      ConfigError: the first wrong field, on one line.
    """
    try:
        return kind.model_validate(spelt(values))
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error)) from None


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """`field was this, now that` for every field in which two nested mappings differ."""
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        label = f"{prefix}{name.replace('_', '-')}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, f"{label}.")
        elif before != now:
            yield f"{label} was {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
