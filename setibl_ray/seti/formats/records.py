"""What one record of a shard holds: encoding, decoding, and the step from sigmas to bytes.

A cadence record holds all six panels as raw bytes; a seed record the three ON panels as the channels of a
PNG. Which of the two a record is shows in its content (`cadence` or `image`).
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from setibl_ray.core.errors import DataError
from setibl_ray.seti.cadence import N_PANELS, ON, Storage
from setibl_ray.seti.formats.tfrecord import Value, decode_example, encode_example

CLIP = (-3.0, 9.0)  # sigmas that bytes 0 and 255 stand for

_PNG_HEADER = struct.Struct(">8s4x4sIIB")  # signature, chunk length, chunk type, width, height, bit depth
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Labels:
    """A record without its pixels. `snr` is nan where there is no needle or none is known."""

    image_id: str
    target: int | None
    group: str | None
    snr: float
    kind: str | None
    storage: Storage
    panel_shape: tuple[int, int]

    @property
    def n_panels(self) -> int:
        return N_PANELS if self.storage == "cadence" else len(ON)


@dataclass(frozen=True, eq=False)
class Record:
    """One record: `panels` is uint8 (6, height, width), or (3, height, width) of the seed's ON panels.

    `provenance` is written beside the rest (a NaN is not), for whoever reads the shards; nothing here reads it back.
    """

    image_id: str
    target: int | None
    group: str | None
    snr: float
    kind: str | None
    panels: np.ndarray
    provenance: Mapping[str, Value] = field(default_factory=dict)


def quantise(cadence: np.ndarray) -> np.ndarray:
    """Normalise each panel to mean 0 and standard deviation 1, clip to CLIP and spread over 0 … 255.

    Args:
      cadence: (panels, time, frequency) of any float type, in any unit; not changed.

    Returns:
      uint8 of the same shape; a panel that is constant becomes that of a mean (byte 64).
    """
    low, high = CLIP
    rows = cadence.reshape(len(cadence), -1)
    mean = rows.mean(axis=1, keepdims=True, dtype=np.float32)
    scaled = rows - mean
    std = np.sqrt(np.einsum("ij,ij->i", scaled, scaled) / rows.shape[1])[:, None]
    step = (high - low) / 255
    scaled *= 1 / (np.where(std > 0, std, 1) * step)
    scaled += 0.5 - low / step  # truncation to bytes then rounds to the nearest
    np.maximum(scaled, 0, out=scaled)  # these two take a quarter of np.clip's time
    np.minimum(scaled, 255, out=scaled)
    return scaled.astype(np.uint8).reshape(cadence.shape)


def encode_record(record: Record) -> bytes:
    """Serialise a cadence record: a tf.train.Example payload, not yet framed.

    Raises:
      ValueError: panels that are not uint8 (6, height, width).
    """
    panels = record.panels
    if panels.dtype != np.uint8 or panels.ndim != 3 or len(panels) != N_PANELS:
        raise ValueError(
            f"a cadence record needs uint8 ({N_PANELS}, H, W), got {panels.dtype} {panels.shape}"
        )
    features: dict[str, Value] = {
        "cadence": np.ascontiguousarray(panels).tobytes(),
        "shape": list(panels.shape),
        "image_id": record.image_id,
    }
    if record.target is not None:
        features["target"] = record.target
    if record.group is not None:
        features["group"] = record.group
    if record.kind is not None:
        features["kind"] = record.kind
    if not math.isnan(record.snr):
        features["snr"] = float(record.snr)
    for name, value in record.provenance.items():
        if value == value:  # not NaN
            features[name] = value
    return encode_example(features)


def decode_labels(payload: bytes, where: str, *, labelled: bool = False) -> Labels:
    """Read a record without decoding its pixels.

    Args:
      payload: a frame's payload.
      where: what errors call it, e.g. "train03-50.tfrec record 7".
      labelled: a missing target is an error (train shards).

    Raises:
      DataError: naming `where`, the field, what was expected and what came.
    """
    return _labels(_example(payload, where), where, labelled)


def decode_record(payload: bytes, where: str, *, labelled: bool = False) -> Record:
    """Read a record and its panels; arguments and errors as for `decode_labels`.

    Panels of a cadence record are a read-only view into `payload`.
    """
    example = _example(payload, where)
    labels = _labels(example, where, labelled)
    if labels.storage == "cadence":
        panels = np.frombuffer(example["cadence"][0], np.uint8).reshape(N_PANELS, *labels.panel_shape)
    else:
        panels = _decode_png(example["image"][0], where)
    return Record(labels.image_id, labels.target, labels.group, labels.snr, labels.kind, panels)


def _example(payload: bytes, where: str) -> dict[str, list]:
    try:
        return decode_example(payload)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _labels(example: dict[str, list], where: str, labelled: bool) -> Labels:
    image_id = _text(example, "image_id", where)
    if image_id is None:
        raise DataError(f"{where}: expected a non-empty image_id, found none")
    where = f"{where} ({image_id})"
    if "cadence" in example:
        storage: Storage = "cadence"
        panel_shape = _cadence_shape(example, where)
    elif "image" in example:
        storage, panel_shape = "seed", _png_shape(_single(example, "image", memoryview, where), where)
    else:
        fields = ", ".join(sorted(example)) or "nothing"
        raise DataError(f"{where}: expected a field cadence (six panels) or image (PNG), found {fields}")
    snr = _single(example, "snr", (int, float), where)
    return Labels(
        image_id=image_id,
        target=_target(example, where, labelled),
        group=_text(example, "group", where),
        snr=math.nan if snr is None else float(snr),
        kind=_text(example, "kind", where),
        storage=storage,
        panel_shape=panel_shape,
    )


def _single(example: dict[str, list], field: str, kinds: type | tuple[type, ...], where: str):
    """The one value of a field, or None where the field is absent or empty."""
    values = example.get(field) or [None]
    if len(values) > 1 or not isinstance(values[0], (kinds, type(None))):
        raise DataError(f"{where}: field {field} should hold one value, found {len(values)} of another kind")
    return values[0]


def _text(example: dict[str, list], field: str, where: str) -> str | None:
    value = _single(example, field, memoryview, where)
    try:
        return str(value, "utf-8") or None if value is not None else None
    except UnicodeDecodeError:
        raise DataError(f"{where}: field {field} is not UTF-8 text") from None


def _target(example: dict[str, list], where: str, labelled: bool) -> int | None:
    value = _single(example, "target", (int, float), where)
    if value is None:
        if labelled:
            raise DataError(f"{where}: a train record needs a target of 0 or 1, found none")
        return None
    if value not in (0, 1):  # nan and inf are neither
        raise DataError(f"{where}: expected target 0 or 1, found {value}")
    return int(value)


def _cadence_shape(example: dict[str, list], where: str) -> tuple[int, int]:
    pixels = _single(example, "cadence", memoryview, where)
    shape = tuple(example.get("shape", ()))
    if len(shape) != 3 or shape[0] != N_PANELS or not all(isinstance(n, int) and n > 0 for n in shape):
        raise DataError(f"{where}: expected shape ({N_PANELS}, height, width), found {shape}")
    n_bytes = 0 if pixels is None else len(pixels)
    if n_bytes != math.prod(shape):
        raise DataError(f"{where}: shape {shape} needs {math.prod(shape)} bytes of cadence, found {n_bytes}")
    return shape[1], shape[2]


def _png_shape(png: memoryview | None, where: str) -> tuple[int, int]:
    """(height, width) from a PNG's header, without decoding it."""
    if png is None or len(png) < _PNG_HEADER.size:
        raise DataError(f"{where}: image is not a PNG: {0 if png is None else len(png)} bytes")
    signature, chunk, width, height, bit_depth = _PNG_HEADER.unpack_from(png)
    if signature != _PNG_SIGNATURE or chunk != b"IHDR" or not width or not height:
        raise DataError(f"{where}: image is not a PNG: it begins with {bytes(png[:8])!r}")
    if bit_depth > 8:
        raise DataError(f"{where}: expected a PNG of 8 bits a channel, found {bit_depth}")
    return height, width


def _decode_png(png: memoryview, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where}: undecodable PNG: {error}"
        ) from None  # Pillow raises SyntaxError on bad chunks
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
