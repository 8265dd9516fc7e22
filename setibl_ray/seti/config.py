"""The one config of a cross-validation: frozen, validated, the same from YAML, command line or Python.

A field that may differ between folds (epochs, batch size, image size, model) holds a tuple: one value for
all folds or one per fold. `Config.for_fold` gives a fold its own numbers. What is not about the result
(where to write, which cluster to join) is not here: it belongs to the commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.terminal import one_line
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.schedule import LearningRate, resolve

MODELS = (
    "efficientnet-nano",
    *(f"efficientnet-b{size}" for size in range(8)),
    "resnet50",
    "inception-v3",
    "xception",
    "vit-tiny",
)
_IMAGE_SIZE = re.compile(r"^([1-9]\d{0,3})x([1-9]\d{0,3})$")


def _as_tuple(value: Any) -> Any:
    """A scalar stands for every fold; commas separate folds; JSON-like lists pass."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.strip("[]()").split(",") if part.strip())
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


def _image_size(value: Any) -> Any:
    """`91x85`, or a pair of integers, to `91x85`."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = f"{value[0]}x{value[1]}"
    match = _IMAGE_SIZE.match(str(value).strip().strip("\"'"))
    if not match or min(int(side) for side in match.groups()) < 32:
        raise ValueError(f"expected HEIGHTxWIDTH with both at least 32, such as 273x256; got {value!r}")
    return match.group(0)


def _image_sizes(value: Any) -> Any:
    # A pair of integers is one size; anything else of several parts is one size per fold.
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, Integral) for side in value)
    ):
        return (f"{value[0]}x{value[1]}",)
    return _as_tuple(value)


def _known_model(value: Any) -> Any:
    if value not in MODELS:
        raise ValueError(f"expected one of {', '.join(MODELS)}; got {value!r}")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
PerFoldInt = Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_tuple)]
PerFoldModel = Annotated[
    tuple[Annotated[str, BeforeValidator(_known_model)], ...], BeforeValidator(_as_tuple)
]
PerFoldSize = Annotated[
    tuple[Annotated[str, BeforeValidator(_image_size)], ...], BeforeValidator(_image_sizes)
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Augment(Section):
    """Random changes of a training image, and of each test-time view (dropout excepted). Defaults are the seed's."""

    strength: NonNegative = 1.0
    """Scales every magnitude below; 0 turns augmentation off."""
    rotation: NonNegative = 0.0
    """Standard deviation of the rotation, degrees."""
    shear: NonNegative = 2.0
    """Standard deviation of the shear, degrees."""
    height_zoom: NonNegative = 0.125
    """Standard deviation of the zoom along time (1 is no zoom)."""
    width_zoom: NonNegative = 0.125
    """Standard deviation of the zoom along frequency."""
    height_shift: NonNegative = 8.0
    """Standard deviation of the shift along time, pixels of the network's image."""
    width_shift: NonNegative = 8.0
    """Standard deviation of the shift along frequency, pixels of the network's image."""
    flip: Probability = 0.5
    """Probability of a left-right (frequency) flip."""
    saturation: NonNegative = 0.3
    """Channels move away from or towards their maximum by a factor in 1 +- this."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Contrast factor in 1 +- this, about each channel's mean."""
    brightness: NonNegative = 0.1
    """Brightness offset in +- this, on the scale on which an 8-bit image spans 0 to 1."""
    dropout_probability: Probability = 0.5
    """Probability that an image gets dropout squares (training only)."""
    dropout_count: Annotated[int, Field(ge=0, le=256)] = 8
    """Squares per image."""
    dropout_size: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Side of a square as a part of the image's short side."""


class Schedule(Section):
    """Learning rate per epoch: ramp, sustain, decay. Unset fields follow `weights` (see seti/schedule.py)."""

    lr_start: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Learning rate of the first epoch [5e-6 pretrained, a quarter of the peak from scratch]."""
    lr_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Peak [1.25e-6 x global batch pretrained, 1.25e-4 x global batch from scratch]."""
    lr_min: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Floor of the decay [1e-6 pretrained, a hundredth of the peak from scratch]."""
    ramp_epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs from start to peak [5 pretrained, 1 from scratch]."""
    sustain_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the peak."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor per epoch after that [0.8 pretrained, 0.95 from scratch]."""


class FoldConfig(NamedTuple):
    """One fold's own values of the fields that may differ between folds."""

    epochs: int
    batch_size: int
    image_size: tuple[int, int]
    model: str


class Config(Section):
    """Everything that decides a cross-validation's result, given the data."""

    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """Number of folds."""
    split: Literal["shards", "stratified", "group"] = "shards"
    """What folds are made of: whole shards (the seed's way), rows stratified by target, or whole groups."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Names every random stream of the run."""
    layout: Literal["on3", "all6", "on_stack", "all_stack"] | None = None
    """How panels become an image [all6 for cadence shards, on3 for seed shards]."""
    image_size: PerFoldSize = ("273x256",)
    """Height x width of a panel at the network's input; a list gives one per fold."""
    model: PerFoldModel = ("efficientnet-b6",)
    """Backbone; a list gives one per fold."""
    weights: str = "imagenet"
    """imagenet, none, or a weights file (.h5) of an earlier run."""
    epochs: PerFoldInt = (12,)
    """Epochs; a list gives one per fold."""
    batch_size: PerFoldInt = (32,)
    """Images per replica and step; a list gives one per fold."""
    tta: Annotated[int, Field(ge=0, le=1000)] = 11
    """Views averaged at test time; 0 predicts the image as it is."""
    fold_weights: str = "equal"
    """Weight of each fold in the test prediction: equal, auc, or one number per fold (commas)."""
    postprocess: str = "none"
    """none, group-mean, group-max, group-best or module:function: what a group's rows tell about each other; for
    out-of-fold and test scores alike."""
    calibrate: Literal["none", "isotonic", "platt"] = "none"
    """Turn scores into probabilities, by a curve fitted on out-of-fold scores only."""
    standardize: bool = True
    """Bring each panel to mean 0 and standard deviation 1 before anything else."""
    loss: Literal["bce", "focal"] = "bce"
    """Binary cross-entropy, or TensorFlow Addons' sigmoid focal cross-entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Targets 0 and 1 become s/2 and 1 - s/2 in the loss."""
    bn_momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Momentum of every batch normalisation [the backbone's own with pretrained weights, 0.9 from scratch]."""
    mixed_precision: bool = False
    """bfloat16 on TPUs and CPUs, float16 on GPUs; slower than float32 on most CPUs."""
    jit_compile: bool = False
    """Compile the training and prediction step with XLA (always so on TPUs)."""
    device: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    """What a fold runs on; auto takes the best that the cluster has."""
    devices_per_fold: PositiveInt | None = None
    """GPUs, or TPU chips, of a fold [1 GPU, or all chips of a TPU VM]."""
    cpus_per_fold: PositiveInt | None = None
    """CPU cores, and TensorFlow threads, of a fold [its even share of the cores; part of a run's identity]."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Where a node keeps decoded panels, once for all its folds: /dev/shm, the temporary folder, or nowhere."""
    augment: Augment = Augment()
    schedule: Schedule = Schedule()

    @pydantic.field_validator("fold_weights", mode="before")
    @classmethod
    def _fold_weights(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            value = ",".join(str(weight) for weight in value)
        value = str(value)
        if value in ("equal", "auc"):
            return value
        try:
            weights = [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"expected equal, auc, or numbers separated by commas; got {value!r}") from None
        if not all(0 <= weight < float("inf") for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"expected finite weights of at least 0 with a positive sum; got {value!r}")
        return value

    @pydantic.model_validator(mode="after")
    def _one_value_or_one_per_fold(self) -> Config:
        for name in ("image_size", "model", "epochs", "batch_size"):
            count = len(getattr(self, name))
            if count not in (1, self.folds):
                raise ValueError(
                    f"{name.replace('_', '-')}: expected 1 value or {self.folds} (one per fold); got {count}"
                )
        if self.fold_weights not in ("equal", "auc") and self.fold_weights.count(",") + 1 != self.folds:
            raise ValueError(
                f"fold-weights: expected {self.folds} numbers, got {self.fold_weights.count(',') + 1}"
            )
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}; got {self.layout!r}")
        return self

    @property
    def pretrained(self) -> bool:
        return self.weights != "none"

    def for_fold(self, fold: int) -> FoldConfig:
        def pick(values: tuple[Any, ...]) -> Any:
            return values[fold if len(values) > 1 else 0]

        height, width = pick(self.image_size).split("x")
        return FoldConfig(
            pick(self.epochs), pick(self.batch_size), (int(height), int(width)), pick(self.model)
        )

    def learning_rate(self, fold: int, n_replicas: int) -> LearningRate:
        own = self.for_fold(fold)
        return resolve(
            pretrained=self.pretrained,
            global_batch=own.batch_size * n_replicas,
            epochs=own.epochs,
            **self.schedule.model_dump(),
        )

    def to_yaml(self) -> str:
        """YAML that `cv --config` takes back unchanged; single values stand without brackets."""
        plain = self.model_dump(mode="json")
        for name, value in plain.items():
            if isinstance(value, list):
                plain[name] = value[0] if len(value) == 1 else value
        return yaml.safe_dump(plain, sort_keys=False)


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
    """YAML whose mappings hold fields: plain YAML takes any key, and of one that is there twice the last."""

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
                problem = f"{key.value} is there twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(field)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path, flag: str = "--config") -> dict[str, Any]:
    """Read a file of fields that `flag` names.

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
    # Bytes that are no text; `2001-13-45` and the like; brackets by the thousand.
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
    """Fields in every spelling that YAML and flags take (`batch-size`, `augment.strength`) as Python has them.

    Raises:
      ConfigError: a field is there in two spellings, or its name is no text.
    """
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
            raise ConfigError(f"config: {name} is there twice")
        fields[section] = value
    return fields


def parse(values: Mapping[str, Any]) -> Config:
    """Validate plain values, in any spelling of their fields' names.

    Raises:
      ConfigError: the first wrong field, on one line.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"config: expected a Config or a mapping of its fields, got {type(values).__name__}"
        )
    try:
        return Config.model_validate(spelt(values))
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error)) from None
