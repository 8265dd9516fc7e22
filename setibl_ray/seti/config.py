"""The config of this package's runs: a task's settings for cadences, on top of what every config has.

A field that may differ between folds (epochs, batch size, image size, model) holds a tuple: one value for
all folds or one per fold. `Config.for_fold` gives a fold its own numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic
from pydantic import BeforeValidator, Field

from setibl_ray.core import config as core
from setibl_ray.core.config import NonNegative, PositiveInt, Probability, Section
from setibl_ray.seti.models import MODELS
from setibl_ray.seti.schedule import LearningRate, resolve

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
    is_list = isinstance(value, list | tuple)
    is_pair = is_list and len(value) == 2 and all(isinstance(side, Integral) for side in value)
    return (value,) if is_pair else _as_tuple(value)


def _known_model(value: Any) -> Any:
    named = re.fullmatch(r"[\w.<>]+:[\w.<>]+", str(value))
    if not named and (not isinstance(value, str) or value not in MODELS):
        raise ValueError(f"expected one of {', '.join(MODELS)}, or module:function; got {value!r}")
    return value


PerFoldInt = Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_tuple)]
PerFoldModel = Annotated[
    tuple[Annotated[str, BeforeValidator(_known_model)], ...], BeforeValidator(_as_tuple)
]
PerFoldSize = Annotated[
    tuple[Annotated[str, BeforeValidator(_image_size)], ...], BeforeValidator(_image_sizes)
]


class Augment(Section):
    """Random changes to a training image, and to each test-time view (except dropout).

    The magnitudes are those of the original notebook, and do the same to a panel at any image size.
    """

    strength: NonNegative = 0.3
    """Scales the magnitudes below in training and, below 1, the probability of dropout; 1 is as in the original
    notebook, 0 turns augmentation off."""
    view_strength: NonNegative = 0.3
    """The same for test-time views."""
    rotation: NonNegative = 0.0
    """Standard deviation of the rotation, degrees on a panel of 273x256."""
    shear: NonNegative = 2.0
    """Standard deviation of the shear, degrees on a panel of 273x256."""
    height_zoom: NonNegative = 0.125
    """Standard deviation of the zoom along time (1 is no zoom)."""
    width_zoom: NonNegative = 0.125
    """Standard deviation of the zoom along frequency."""
    height_shift: Probability = 0.0293
    """Standard deviation of the shift along time, as a fraction of the panel (0.0293 is 8 of 273 pixels)."""
    width_shift: Probability = 0.03125
    """Standard deviation of the shift along frequency, as a fraction of the panel (0.03125 is 8 of 256 pixels)."""
    flip: Probability = 0.5
    """Probability of a left-right (frequency) flip; not scaled."""
    saturation: NonNegative = 0.3
    """Channels move away from or towards a pixel's largest channel by a factor in 1 +- this."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Contrast factor in 1 +- this, about each channel's mean."""
    brightness: NonNegative = 0.1
    """Brightness offset in +- this, on the scale on which an 8-bit image spans 0 to 1."""
    dropout_probability: Probability = 0.5
    """Probability that an image gets dropout squares (training only)."""
    dropout_count: Annotated[int, Field(ge=0, le=256)] = 8
    """Squares per image."""
    dropout_size: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Side of a square as a fraction of the image's short side."""

    @property
    def of_views(self) -> Augment:
        """The settings for test-time views."""
        return self.model_copy(update={"strength": self.view_strength})


class Schedule(Section):
    """Learning rate per epoch: ramp, sustain, decay. Unset fields follow `weights` (see seti/schedule.py)."""

    lr_start: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Learning rate of the first epoch [5e-6 pretrained, a quarter of the peak from scratch]."""
    lr_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Peak learning rate [per image of the global batch: 1.25e-6 pretrained, 5e-4 from scratch with the on-off head,
    1.25e-4 from scratch without it, 6.25e-5 with weights cadences; the last three at most 1.6e-2]."""
    lr_min: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Floor of the decay [1e-6 pretrained, a hundredth of the peak from scratch]."""
    ramp_epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs from start to peak [5 pretrained, 1 from scratch, 0 with weights cadences]."""
    sustain_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the peak."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor per epoch after the peak [0.8 pretrained; half a cosine from scratch and with weights cadences]."""


class FoldConfig(NamedTuple):
    """One fold's own values of the fields that may differ between folds."""

    epochs: int
    batch_size: int
    image_size: tuple[int, int]
    model: str
    head: str
    """Always plain for a user's own model, which has all its layers."""


class Config(core.Config):
    """Everything that decides a cross-validation's result, given the data; and, in `how`, how it is computed."""

    split: Annotated[str, Field(min_length=1)] = "shards"
    """How rows are divided into folds: shards (as in the original notebook), stratified (by target), group, the name of
    a scikit-learn splitter (StratifiedGroupKFold), or a CSV file with the columns image_id and fold."""
    fold_weights: str = "equal"
    """Weight of each fold in the test prediction: equal, auc, or one number per fold (comma-separated)."""

    layout: Literal["on3", "all6", "on_stack", "all_stack"] | None = None
    """How panels become an image [all6 for cadence shards, on3 for PNG shards]."""
    image_size: PerFoldSize = ("273x256",)
    """Height x width of a panel at the network's input; a comma-separated list gives one per fold."""
    model: PerFoldModel = ("efficientnet-b6",)
    """Backbone, none for the on-off head alone, or module:function that builds a Keras model of your own; a
    comma-separated list gives one per fold."""
    head: Literal["plain", "on-off"] | None = None
    """plain, or on-off, which adds to the backbone a small encoder shared by all six panels and a comparison of ON with
    OFF panels [on-off for layout all6 without ImageNet weights, otherwise plain]."""
    weights: str = "imagenet"
    """imagenet, cadences (for efficientnet-nano with six panels; they come with the package), none, or a weights file
    (.h5) of an earlier run."""
    epochs: PerFoldInt = (12,)
    """Epochs; a comma-separated list gives one per fold."""
    select: Literal["last", "inner", "held-out"] = "last"
    """Epoch whose weights are kept. last: the last; inner: the best on a tenth of the training rows, which are not
    trained on; held-out: the best on the held-out rows, whose score is then too high."""
    batch_size: PerFoldInt = (32,)
    """Images per replica and step; a comma-separated list gives one per fold."""
    tta: Annotated[int, Field(ge=0, le=1000)] = 11
    """Views averaged at test time; 0 predicts the image as it is."""
    postprocess: str = "none"
    """none, group-mean, group-max, group-best or module:function: adjusts scores within groups, both
    out-of-fold and test scores."""
    calibrate: Literal["none", "isotonic", "platt"] = "none"
    """Turn scores into probabilities by a curve fitted on out-of-fold scores only."""
    standardize: bool = True
    """Scale each panel to mean 0 and standard deviation 1 before anything else."""
    loss: Literal["bce", "focal"] = "bce"
    """Binary cross-entropy, or TensorFlow Addons' sigmoid focal cross-entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """With this value s, targets 0 and 1 become s/2 and 1 - s/2 in the loss."""
    bn_momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Momentum of every batch normalisation [0.9 from scratch and with weights cadences, else the backbone's own]."""
    mixed_precision: bool = False
    """Compute in bfloat16 on TPUs and CPUs, in float16 on GPUs; slower than float32 on most CPUs."""
    jit_compile: bool = False
    """Compile the training and prediction steps with XLA (always on for TPUs)."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Where a node keeps decoded panels for all its folds: in /dev/shm (memory), in the temporary folder (disk), or
    nowhere (off); auto takes the first of these with room, in /dev/shm twice the room needed."""
    augment: Augment = Augment()
    schedule: Schedule = Schedule()

    how: ClassVar[frozenset[str]] = core.Config.how | {"cache"}
    unsearchable: ClassVar[frozenset[str]] = core.Config.unsearchable | {"postprocess", "calibrate"}
    weight_rules: ClassVar[tuple[str, ...]] = ("equal", "auc")

    @pydantic.model_validator(mode="after")
    def _one_value_or_one_per_fold(self) -> Config:
        for name in ("image_size", "model", "epochs", "batch_size"):
            count = len(getattr(self, name))
            if count not in (1, self.folds):
                raise ValueError(
                    f"{name.replace('_', '-')}: expected 1 value or {self.folds} (one per fold); got {count}"
                )
        return self

    def with_layout(self, layout: str) -> Config:
        """A copy with this layout and, where none is set, the head that goes with it."""
        head = "on-off" if layout == "all6" and self.weights != "imagenet" else "plain"
        return self.model_copy(update={"layout": layout, "head": self.head or head})

    def for_fold(self, fold: int) -> FoldConfig:
        def pick(values: tuple[Any, ...]) -> Any:
            return values[fold if len(values) > 1 else 0]

        height, width = pick(self.image_size).split("x")
        model = pick(self.model)
        head = "plain" if ":" in model else self.head or "plain"
        return FoldConfig(pick(self.epochs), pick(self.batch_size), (int(height), int(width)), model, head)

    def learning_rate(self, fold: int, n_replicas: int) -> LearningRate:
        own = self.for_fold(fold)
        return resolve(
            self.schedule.model_dump(exclude_none=True),
            weights=self.weights,
            head=own.head,
            global_batch=own.batch_size * n_replicas,
            epochs=own.epochs,
        )

    @classmethod
    def modernised(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """0.1.0 had shifts in pixels, augmented views as strongly as training, and chose epochs by held-out rows."""
        if "select" in values or "augment" not in values:
            return values
        own = dict(values["augment"])
        sizes = values["image_size"]
        height, width = map(int, (sizes if isinstance(sizes, str) else sizes[0]).split("x"))
        own["height_shift"], own["width_shift"] = own["height_shift"] / height, own["width_shift"] / width
        own["flip"], own["view_strength"] = own["flip"] * min(1, own["strength"]), own["strength"]
        return {**values, "augment": own, "select": "held-out", "head": "plain"}

    def search_value(self, name: str) -> Any:
        if name == "schedule.lr-max":
            return self.learning_rate(0, 1).peak  # unset, it follows the weights and the batch
        return super().search_value(name)

    def default_space(self) -> dict[str, Any]:
        """Learning-rate peak, a decade either way of the config's own; dropout size; augmentation strength."""
        peak = self.learning_rate(0, 1).peak
        return {
            "schedule.lr-max": {"loguniform": [float(f"{peak / 10:.3g}"), float(f"{peak * 10:.3g}")]},
            "augment.dropout-size": {"uniform": [0.0, 0.2]},
            "augment.strength": {"uniform": [0.0, 2.0]},
        }


def parse(values: Mapping[str, Any]) -> Config:
    """Validate plain values, in any spelling of their fields' names.

    Raises:
      ConfigError: the first wrong field, on one line.
    """
    return core.parse(Config, values)
