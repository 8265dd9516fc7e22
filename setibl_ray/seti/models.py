"""The networks by name: what builds each, and its sizes for estimates of memory and time."""

from __future__ import annotations

from typing import NamedTuple


class Backbone(NamedTuple):
    """A network without its classifier.

    Attributes:
      builder: "module:attribute" of a function that is called as those of Keras' applications: with include_top=False,
        weights ("imagenet" or None) and input_shape (H, W, C). Without weights, any number of channels is allowed.
      parameters: millions.
      kept: values that the backward pass needs, for each pixel of the input: the published activation counts of a
        forward pass (per pixel of their image) times 3 for normalised and activated copies; times 5.25 in
        EfficientNets, whose swish also keeps its sigmoid: a factor fitted to peaks measured by
        benchmarks/fold_memory.py.
      multiply_adds: of a forward pass, for each pixel of the input: published counts over their image's pixels, which
        TensorFlow's own count confirms within 3 % (b0, resnet50, inception-v3, xception); nano: that count.
    """

    builder: str
    parameters: float
    kept: float
    multiply_adds: float


MODELS = {
    "efficientnet-nano": Backbone("setibl_ray.seti.train.models:efficientnet_nano", 0.3, 200, 1035),
    "efficientnet-b0": Backbone("efficientnet.tfkeras:EfficientNetB0", 4.1, 700, 7773),
    "efficientnet-b1": Backbone("efficientnet.tfkeras:EfficientNetB1", 6.6, 1000, 12153),
    "efficientnet-b2": Backbone("efficientnet.tfkeras:EfficientNetB2", 7.8, 1070, 14793),
    "efficientnet-b3": Backbone("efficientnet.tfkeras:EfficientNetB3", 10.8, 1400, 20000),
    "efficientnet-b4": Backbone("efficientnet.tfkeras:EfficientNetB4", 17.7, 1820, 29086),
    "efficientnet-b5": Backbone("efficientnet.tfkeras:EfficientNetB5", 28.5, 2500, 47611),
    "efficientnet-b6": Backbone("efficientnet.tfkeras:EfficientNetB6", 41.0, 3150, 68153),
    "efficientnet-b7": Backbone("efficientnet.tfkeras:EfficientNetB7", 64.1, 4240, 102778),
    "resnet50": Backbone("tensorflow:keras.applications.ResNet50", 23.6, 660, 77726),
    "inception-v3": Backbone("tensorflow:keras.applications.InceptionV3", 21.8, 400, 63758),
    "xception": Backbone("tensorflow:keras.applications.Xception", 20.9, 1000, 93959),
    "none": Backbone("setibl_ray.seti.train.models:no_backbone", 0, 0, 0),  # the on-off head alone
    "vit-tiny": Backbone("setibl_ray.seti.train.models:vit_tiny", 5.6, 360, 25112),
}

ON_OFF = Backbone("", 0.15, 125, 5500)  # what the on-off head adds, counted as above


def with_head(model: str, head: str) -> Backbone:
    """Sizes of a known model, with its head."""
    backbone = MODELS[model]
    if head != "on-off":
        return backbone
    return Backbone(backbone.builder, *(a + b for a, b in zip(backbone[1:], ON_OFF[1:], strict=True)))
