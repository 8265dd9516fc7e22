"""Records of shards: encoding, decoding, and the conversion from sigmas to bytes.

A cadence record holds all six panels as raw bytes; a record of a PNG shard holds the three ON panels as the channels of
a PNG. They are told apart by their field, `cadence` or `image`. A JPEG is read as well, as TensorFlow's `decode_png`
reads one; as the format is lossy, its pixels may differ from TensorFlow's by a few levels of 255.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from setibl_ray.core.errors import DataError
from setibl_ray.core.terminal import one_line
from setibl_ray.seti.cadence import N_PANELS, Storage
from setibl_ray.seti.formats.tfrecord import Value, decode_example, encode_example

CLIP = (-3.0, 9.0)  # sigmas of bytes 0 and 255

_PNG_HEADER = struct.Struct(">8s4x4sIIB")  # signature, chunk length, chunk type, width, height, bit depth
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Labels:
    """A record without its pixels. `snr` is nan if there is no needle or its S/N is unknown.

    `stray_target` is the target of an unlabelled record if it is neither 0 nor 1; it is not used.
    """

    image_id: str
    target: int | None
    group: str | None
    snr: float
    kind: str | None
    storage: Storage
    panel_shape: tuple[int, int]
    stray_target: float | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """One record: `panels` is uint8 (6, height, width), or (3, height, width), the ON panels of a PNG shard.

    `provenance` is written along with the rest (except NaN) for other readers of the shards; it is never read here.
    """

    image_id: str
    target: int | None
    group: str | None
    snr: float
    kind: str | None
    panels: np.ndarray
    provenance: Mapping[str, Value] = field(default_factory=dict)


def quantise(cadence: np.ndarray) -> np.ndarray:
    """Normalise each panel to mean 0 and standard deviation 1, clip to CLIP and map to 0 … 255.

    Args:
      cadence: (panels, time, frequency) of any float type, in any unit; not changed.

    Returns:
      uint8 of the same shape; a constant panel becomes all mean (byte 64).
    """
    low, high = CLIP
    rows = cadence.reshape(len(cadence), -1)
    # In float64 the order of adding never shows in a byte; NumPy's versions add float32 in different orders.
    mean = rows.mean(axis=1, keepdims=True, dtype=np.float64)
    scaled = rows - mean.astype(np.float32)
    std = np.sqrt(np.square(scaled).mean(axis=1, keepdims=True, dtype=np.float64))
    step = (high - low) / 255
    scaled *= (1 / (np.where(std > 0, std, 1) * step)).astype(np.float32)
    scaled += np.float32(0.5 - low / step)  # truncation to bytes then rounds to the nearest
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
    labels = {"target": record.target, "group": record.group, "kind": record.kind, "snr": float(record.snr)}
    for name, value in {**labels, **record.provenance}.items():
        if value is not None and value == value:  # not NaN
            features[name] = value
    return encode_example(features)


def decode_labels(payload: bytes, where: str, *, labelled: bool = False) -> Labels:
    """Read a record without decoding its pixels.

    Args:
      payload: a frame's payload.
      where: its name in errors, e.g. "train03-50.tfrec record 7".
      labelled: a target that is missing, or neither 0 nor 1, is an error (train shards).

    Raises:
      DataError: names `where`, the field, what was expected and what was found.
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
        panels = _decode_image(example["image"][0], where)
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
        storage, panel_shape = "png", _image_shape(_single(example, "image", memoryview, where), where)
    else:
        fields = ", ".join(sorted(example)) or "nothing"
        raise DataError(f"{where}: expected a field cadence (six panels) or image (PNG), found {fields}")
    target, stray_target = _target(example, where, labelled)
    snr = _single(example, "snr", (int, float), where)
    return Labels(
        image_id=image_id,
        target=target,
        group=_text(example, "group", where),
        snr=math.nan if snr is None else float(snr),
        kind=_text(example, "kind", where),
        storage=storage,
        panel_shape=panel_shape,
        stray_target=stray_target,
    )


def _single(example: dict[str, list], field: str, kinds: type | tuple[type, ...], where: str):
    """The one value of a field, or None if the field is absent or empty."""
    values = example.get(field) or [None]
    if len(values) > 1 or not isinstance(values[0], (kinds, type(None))):
        raise DataError(f"{where}: field {field} should hold one value, found {len(values)} of another kind")
    return values[0]


def _text(example: dict[str, list], field: str, where: str) -> str | None:
    value = _single(example, field, memoryview, where)
    try:
        text = str(value, "utf-8") if value is not None else ""
    except UnicodeDecodeError:
        raise DataError(f"{where}: field {field} is not UTF-8 text") from None
    if "\0" in text:
        raise DataError(f"{where}: field {field} holds a NUL, which no table can; got {text!r}")
    return text or None


def _target(example: dict[str, list], where: str, labelled: bool) -> tuple[int | None, float | None]:
    """The target, or what stands in its place in a record that needs none, such as -1."""
    value = _single(example, "target", (int, float), where)
    if value in (0, 1):  # nan and inf are neither
        return int(value), None
    if labelled:
        found = "none" if value is None else value
        raise DataError(f"{where}: expected target 0 or 1 in a train record, found {found}")
    return None, value


def _cadence_shape(example: dict[str, list], where: str) -> tuple[int, int]:
    pixels = _single(example, "cadence", memoryview, where)
    shape = tuple(example.get("shape", ()))
    if len(shape) != 3 or shape[0] != N_PANELS or not all(isinstance(n, int) and n > 0 for n in shape):
        raise DataError(f"{where}: expected shape ({N_PANELS}, height, width), found {shape}")
    n_bytes = 0 if pixels is None else len(pixels)
    if n_bytes != math.prod(shape):
        raise DataError(f"{where}: shape {shape} needs {math.prod(shape)} bytes of cadence, found {n_bytes}")
    return shape[1], shape[2]


def _image_shape(image: memoryview | None, where: str) -> tuple[int, int]:
    """(height, width) from an image's header, without decoding it."""
    if image is None or bytes(image[:8]) != _PNG_SIGNATURE:
        with _opened(image or b"", where) as jpeg:
            return jpeg.height, jpeg.width
    if len(image) < _PNG_HEADER.size:
        raise DataError(f"{where}: image is not a PNG: {len(image)} bytes")
    _, chunk, width, height, bit_depth = _PNG_HEADER.unpack_from(image)
    if chunk != b"IHDR" or not width or not height:
        raise DataError(f"{where}: image is not a PNG: it begins with {bytes(image[:16])!r}")
    if bit_depth > 8:
        raise DataError(f"{where}: expected a PNG of 8 bits a channel, found {bit_depth}")
    return height, width


def _decode_image(image: memoryview, where: str) -> np.ndarray:
    with _opened(image, where) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    with _opened(image, where) as opened:
        if opened.format == "PNG":
            opened.verify()  # checksums and the end, which decoding passes over; TensorFlow refuses what lacks them
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _opened(image: memoryview | bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(image), formats=["PNG", "JPEG"]) as opened:
            yield opened
    except Image.UnidentifiedImageError:
        begins = f"{len(image)} bytes that begin with {bytes(image[:8])!r}" if len(image) else "0 bytes"
        raise DataError(f"{where}: image is not a readable PNG or JPEG: {begins}") from None
    except Exception as error:
        # Pillow raises SyntaxError on bad chunks, IndexError where there are none, and more.
        raise DataError(f"{where}: undecodable image: {one_line(error)}") from None
