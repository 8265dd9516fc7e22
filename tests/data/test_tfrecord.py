"""TFRecord framing and tf.train.Example against TensorFlow's own, and against damage."""

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setibl_ray.core.errors import DataError
from setibl_ray.seti.formats.tfrecord import decode_example, encode_example, frame, frames, masked_crc

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
VALUES = st.one_of(
    st.binary(), st.text(), INT64, FLOAT32,
    st.lists(INT64), st.lists(FLOAT32), st.lists(st.binary()),
)  # fmt: skip


def as_list(value):
    values = value if isinstance(value, list) else [value]
    return [v.encode() if isinstance(v, str) else v for v in values]


@given(st.dictionaries(st.text(), VALUES))
def test_example_round_trip(features):
    decoded = decode_example(encode_example(features))
    assert decoded == {name: as_list(value) for name, value in features.items()}


def test_equal_features_in_any_order_give_equal_bytes():
    assert encode_example({"a": 1, "b": "x"}) == encode_example({"b": "x", "a": 1})


@pytest.mark.parametrize("value", [None, [1, "x"], {"a": 1}, [b"x", 1.0]])
def test_encode_rejects_other_types(value):
    with pytest.raises(TypeError, match="bytes, str, int, float"):
        encode_example({"x": value})


def test_encode_rejects_ints_that_do_not_fit():
    with pytest.raises(OverflowError, match="64 bits"):
        encode_example({"x": 2**63})


@given(st.binary())
def test_arbitrary_bytes_decode_or_raise_data_error(payload):
    with suppress(DataError):
        decode_example(payload)


def protobufs(payload):
    """(name, values), what protobuf makes of an Example."""
    tf = pytest.importorskip("tensorflow")
    for name, feature in tf.train.Example.FromString(payload).features.feature.items():
        kind = feature.WhichOneof("kind")
        yield name, list(getattr(feature, kind).value) if kind else []


@given(st.data())
@settings(max_examples=300)
def test_mutated_examples_decode_as_protobuf_does_or_raise_data_error(data):
    payload = bytearray(
        encode_example({"image": b"\x00" * 40, "shape": [6, -1, 300], "snr": [1.5], "image_id": "é"})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for candidate in (bytes(payload), bytes(payload[:cut])):
        with suppress(DataError):
            ours = decode_example(candidate)
            # Protobuf leaves out a feature with a field it does not know.
            for name, values in protobufs(candidate):
                found = [bytes(value) if isinstance(value, memoryview) else value for value in ours[name]]
                assert repr(found) == repr(values)  # as text, because a NaN is not equal to itself


@given(st.lists(st.binary(max_size=30), max_size=4), st.binary(max_size=40), st.integers(0, 200))
def test_damaged_files_raise_data_error_only(payloads, tail, cut):
    content = b"".join(map(frame, payloads)) + tail
    with suppress(DataError):
        for item in frames(io.BytesIO(content[:cut]), "x.tfrec"):
            assert item.record >= len(payloads) or item.payload == payloads[item.record]


def test_frames_say_where_payloads_lie():
    payloads = [b"one", b"", b"three" * 100]
    content = b"".join(map(frame, payloads))
    for i, item in enumerate(frames(io.BytesIO(content), "x")):
        assert (item.record, item.payload, item.crc) == (i, payloads[i], masked_crc(payloads[i]))
        assert content[item.offset : item.offset + len(item.payload)] == payloads[i]


def test_damage_names_file_record_and_reason():
    content = b"".join(map(frame, [b"a" * 10, b"b" * 10, b"c" * 10]))
    second = 26

    def flipped(at):
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    for damaged, reason in [
        (flipped(second), "bad checksum of the length"),
        (flipped(second + 9), "bad checksum of the length"),
        (flipped(second + 12), "bad checksum of the payload"),
        (flipped(second + 23), "bad checksum of the payload"),
        (content[: second + 5], "truncated header: expected 12 bytes, found 5"),
        (content[: second + 20], "truncated payload: expected 14 bytes, found 8"),
    ]:
        with pytest.raises(DataError, match=f"x.tfrec record 1: {reason}"):
            list(frames(io.BytesIO(damaged), "x.tfrec"))
    skipped = []
    assert [item.record for item in frames(io.BytesIO(flipped(second + 12)), "x", skipped)] == [0, 2]
    assert [str(bad) for bad in skipped] == ["x record 1: bad checksum of the payload"]
    skipped.clear()
    assert [item.record for item in frames(io.BytesIO(flipped(second)), "x", skipped)] == [0]
    assert len(skipped) == 1


def test_absurd_length_is_refused_before_memory_is_asked_for():
    length = struct.pack("<Q", 2**60)
    with pytest.raises(DataError, match=r"more than a tf.train.Example can have"):
        list(frames(io.BytesIO(length + struct.pack("<I", masked_crc(length))), "x"))


def test_tensorflow_reads_what_we_write(tmp_path):
    tf = pytest.importorskip("tensorflow")
    features = [
        {"raw": bytes(range(i, i + 50)), "id": f"é{i}", "n": -i, "snr": [0.5, i / 3]} for i in range(5)
    ]
    path = tmp_path / "x.tfrec"
    path.write_bytes(b"".join(frame(encode_example(f)) for f in features))
    spec = {
        "raw": tf.io.FixedLenFeature([], tf.string),
        "id": tf.io.FixedLenFeature([], tf.string),
        "n": tf.io.FixedLenFeature([], tf.int64),
        "snr": tf.io.FixedLenFeature([2], tf.float32),
    }
    for i, serialised in enumerate(tf.data.TFRecordDataset([str(path)])):
        parsed = tf.io.parse_single_example(serialised, spec)
        assert parsed["raw"].numpy() == features[i]["raw"]
        assert parsed["id"].numpy().decode() == features[i]["id"]
        assert parsed["n"].numpy() == -i
        np.testing.assert_array_equal(parsed["snr"], np.float32(features[i]["snr"]))
    assert i == 4


def test_we_read_what_tensorflow_writes(tmp_path):
    tf = pytest.importorskip("tensorflow")
    feature = {
        "raw": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"\x00\xff", b""])),
        "n": tf.train.Feature(int64_list=tf.train.Int64List(value=[-1, 0, 2**62])),
        "snr": tf.train.Feature(float_list=tf.train.FloatList(value=[1.5, -2.25])),
        "none": tf.train.Feature(),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    path = str(tmp_path / "x.tfrec")
    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(3):
            writer.write(example.SerializeToString())
    with open(path, "rb") as stream:
        read = list(frames(stream, "x"))
    assert len(read) == 3
    expected = {"raw": [b"\x00\xff", b""], "n": [-1, 0, 2**62], "snr": [1.5, -2.25], "none": []}
    assert decode_example(read[2].payload) == expected
    ours = encode_example({"raw": [b"\x00\xff", b""], "n": [-1, 0, 2**62], "snr": [1.5, -2.25]})
    assert dict(tf.train.Example.FromString(ours).features.feature) == {
        k: v for k, v in feature.items() if k != "none"
    }
