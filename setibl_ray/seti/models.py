"""The networks by name: what builds each, and its sizes for estimates of memory and time."""

from __future__ import annotations

from typing import NamedTuple


class Backbone(NamedTuple):
    """A network without its classifier.

    Attributes:
      parameters: millions.
      kept: values that the backward pass needs, for each pixel of the input: the published activation counts of a
        forward pass (per pixel of their image) times 3 for normalised and activated copies; times 5.25 in
        EfficientNets, whose swish also keeps its sigmoid: a factor fitted to peaks measured by
        benchmarks/fold_memory.py.
      multiply_adds: of a forward pass, for each pixel of the input: published counts over their image's pixels, which
        TensorFlow's own count confirms within 3 % (b0, resnet50, inception-v3, xception); nano: that count.
      builder: "module:attribute" of a function that is called as those of Keras' applications: with include_top=False,
        weights ("imagenet" or None) and input_shape (H, W, C). Without weights, any number of channels is allowed.
    """

    parameters: float
    kept: float
    multiply_adds: float
    builder: str = ""


MODELS = {
    "efficientnet-nano": Backbone(0.3, 200, 1035, "setibl_ray.seti.train.models:efficientnet_nano"),
    "efficientnet-b0": Backbone(4.1, 700, 7773, "efficientnet.tfkeras:EfficientNetB0"),
    "efficientnet-b1": Backbone(6.6, 1000, 12153, "efficientnet.tfkeras:EfficientNetB1"),
    "efficientnet-b2": Backbone(7.8, 1070, 14793, "efficientnet.tfkeras:EfficientNetB2"),
    "efficientnet-b3": Backbone(10.8, 1400, 20000, "efficientnet.tfkeras:EfficientNetB3"),
    "efficientnet-b4": Backbone(17.7, 1820, 29086, "efficientnet.tfkeras:EfficientNetB4"),
    "efficientnet-b5": Backbone(28.5, 2500, 47611, "efficientnet.tfkeras:EfficientNetB5"),
    "efficientnet-b6": Backbone(41.0, 3150, 68153, "efficientnet.tfkeras:EfficientNetB6"),
    "efficientnet-b7": Backbone(64.1, 4240, 102778, "efficientnet.tfkeras:EfficientNetB7"),
    "resnet50": Backbone(23.6, 660, 77726, "tensorflow:keras.applications.ResNet50"),
    "inception-v3": Backbone(21.8, 400, 63758, "tensorflow:keras.applications.InceptionV3"),
    "xception": Backbone(20.9, 1000, 93959, "tensorflow:keras.applications.Xception"),
    "vit-tiny": Backbone(5.6, 360, 25112, "setibl_ray.seti.train.models:vit_tiny"),
}
