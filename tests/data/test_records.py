"""Records: what decodes, what is refused and how, and the step to bytes."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from data_sets import png, png_features
from PIL import Image

from setibl_ray.core.errors import DataError
from setibl_ray.seti.formats.records import (
    CLIP,
    Record,
    decode_labels,
    decode_record,
    encode_record,
    quantise,
)
from setibl_ray.seti.formats.tfrecord import encode_example

PANELS = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)


def cadence(**changes):
    fields = {"cadence": PANELS.tobytes(), "shape": [6, 4, 5], "image_id": "abc", "target": 1} | changes
    return encode_example({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize("record", [
    Record("a1", 1, "obs-0001", 33.5, "needle-sine", PANELS),
    Record("a1", None, None, math.nan, None, PANELS),
])  # fmt: skip
def test_cadence_record_round_trip(record):
    back = decode_record(encode_record(record), "x")
    np.testing.assert_array_equal(back.panels, PANELS)
    assert repr((back.image_id, back.target, back.group, back.snr, back.kind)) == repr(
        (record.image_id, record.target, record.group, record.snr, record.kind)
    )
    labels = decode_labels(encode_record(record), "x")
    assert (labels.storage, labels.panel_shape) == ("cadence", (4, 5))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
def test_png_decodes_as_tensorflow_decodes_it(mode):
    tf = pytest.importorskip("tensorflow")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(pixels[..., 0]))
    encoded = png(np.asarray(image)) if mode != "P" else _saved(image)
    record = decode_record(encode_example({"image": encoded, "image_id": "a"}), "x")
    expected = tf.image.decode_png(encoded, channels=3).numpy()
    np.testing.assert_array_equal(record.panels, expected.transpose(2, 0, 1))


def _saved(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_decodes_nearly_as_tensorflow_decodes_it(mode):
    tf = pytest.importorskip("tensorflow")
    ramp = np.add.outer(np.arange(20), np.arange(16))[..., None] * np.array([7, 5, 3])
    encoded = _saved(Image.fromarray(ramp.astype(np.uint8)).convert(mode), "JPEG")
    payload = encode_example({"image": encoded, "image_id": "a"})
    assert decode_labels(payload, "x").panel_shape == (20, 16)
    expected = tf.image.decode_png(encoded, channels=3).numpy().transpose(2, 0, 1)
    np.testing.assert_allclose(decode_record(payload, "x").panels.astype(int), expected, atol=8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("rest", [
    b"",
    chunk(b"IEND", b""),
    chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    chunk(b"IDAT", zlib.compress(bytes(20 * 49))[:-9]) + chunk(b"IEND", b""),
    chunk(b"IDAT", zlib.compress(bytes(20 * 49)))[:-1] + b"x" + chunk(b"IEND", b""),
    chunk(b"IDAT", zlib.compress(bytes(20 * 49))),
])  # fmt: skip
def test_a_png_with_a_header_and_no_pixels_is_undecodable(rest):
    """Its shape can be read, so labels are; TensorFlow refuses each of these too."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 20, 8, 2, 0, 0, 0))
    payload = encode_example({"image": b"\x89PNG\r\n\x1a\n" + header + rest, "image_id": "a"})
    assert decode_labels(payload, "x").panel_shape == (20, 16)
    with pytest.raises(DataError, match=r"x.*: (undecodable image|image is not a readable PNG)"):
        decode_record(payload, "x")


@pytest.mark.parametrize("target", [-1, 2, 0.5, math.nan])
def test_a_target_where_none_is_needed_is_left_alone(target):
    labels = decode_labels(cadence(target=target), "x")
    assert labels.target is None
    assert repr(labels.stray_target) == repr(target)


@pytest.mark.parametrize(("payload", "message"), [
    (b"\xff\xff", "not a tf.train.Example"),
    (cadence(image_id=None), "non-empty image_id"),
    (cadence(image_id=""), "non-empty image_id"),
    (cadence(image_id=b"\xff"), "image_id is not UTF-8"),
    (cadence(image_id="a\0b"), "field image_id holds a NUL"),
    (cadence(kind="\0"), "field kind holds a NUL"),
    (cadence(image_id=7), "field image_id should hold one value"),
    (cadence(target=None), "expected target 0 or 1 in a train record, found none"),
    (cadence(target=2), "expected target 0 or 1 .*, found 2"),
    (cadence(target=math.nan), "expected target 0 or 1 .*, found nan"),
    (cadence(target=math.inf), "expected target 0 or 1 .*, found inf"),
    (cadence(target=0.5), "expected target 0 or 1 .*, found 0.5"),
    (cadence(target=[0, 1]), "field target should hold one value"),
    (cadence(cadence=b"123"), r"shape \(6, 4, 5\) needs 120 bytes of cadence, found 3"),
    (cadence(shape=[3, 4, 5]), r"expected shape \(6, height, width\), found \(3, 4, 5\)"),
    (cadence(shape=[6, -4, -5]), "expected shape"),
    (cadence(shape=None), r"found \(\)"),
    (cadence(cadence=None), "expected a field cadence .* or image .*, found image_id, shape, target"),
    (encode_example({"image": b"GIF8" * 10, "image_id": "a", "target": 0}), "not a readable PNG or JPEG: 40 bytes"),
    (encode_example({"image": b"", "image_id": "a", "target": 0}), "not a readable PNG or JPEG: 0 bytes"),
    (encode_example({**png_features("a", 0), "image": png_features("a")["image"][:60]}), "undecodable image"),
])  # fmt: skip
def test_refusals_name_the_record_and_the_field(payload, message):
    with pytest.raises(DataError, match=f"^x.*: .*{message}"):
        decode_record(payload, "x", labelled=True)


def test_encode_refuses_other_panels():
    with pytest.raises(ValueError, match="uint8"):
        encode_record(Record("a", 0, None, math.nan, None, PANELS[:3]))


def test_quantise_normalises_each_panel():
    rng = np.random.default_rng(0)
    power = rng.chisquare(12, (6, 64, 64)) * np.array([1, 10, 1e5, 3, 3, 3])[:, None, None]
    step = (CLIP[1] - CLIP[0]) / 255
    sigmas = quantise(power) * step + CLIP[0]
    expected = (power - power.mean((1, 2), keepdims=True)) / power.std((1, 2), keepdims=True)
    np.testing.assert_allclose(sigmas, np.clip(expected, *CLIP), atol=step / 2 + 1e-3)


def test_quantise_keeps_constant_panels_finite():
    assert (quantise(np.full((6, 4, 4), 7.0, np.float16)) == 64).all()
