"""What estimates of memory and time know of each backbone, without building it."""

from __future__ import annotations

from typing import NamedTuple


class Backbone(NamedTuple):
    """Sizes without the classifier.

    Attributes:
      parameters: millions.
      kept: values that the backward pass needs, for each pixel of the input: the published activation counts of a
        forward pass (per pixel of their image) times 3 for normalised and activated copies; times 5.25 in
        EfficientNets, whose swish keeps its sigmoid, too: a factor fitted to peaks that benchmarks/fold_memory.py
        measured.
      multiply_adds: of a forward pass, for each pixel of the input: published counts over their image's pixels, which
        TensorFlow's own count confirms within 3 % (b0, resnet50, inception-v3, xception); nano: that count.
    """

    parameters: float
    kept: float
    multiply_adds: float


BACKBONES = {
    "efficientnet-nano": Backbone(0.3, 200, 1035),
    "efficientnet-b0": Backbone(4.1, 700, 7773),
    "efficientnet-b1": Backbone(6.6, 1000, 12153),
    "efficientnet-b2": Backbone(7.8, 1070, 14793),
    "efficientnet-b3": Backbone(10.8, 1400, 20000),
    "efficientnet-b4": Backbone(17.7, 1820, 29086),
    "efficientnet-b5": Backbone(28.5, 2500, 47611),
    "efficientnet-b6": Backbone(41.0, 3150, 68153),
    "efficientnet-b7": Backbone(64.1, 4240, 102778),
    "resnet50": Backbone(23.6, 660, 77726),
    "inception-v3": Backbone(21.8, 400, 63758),
    "xception": Backbone(20.9, 1000, 93959),
    "vit-tiny": Backbone(5.6, 360, 25112),
}
