"""TFRecord files and tf.train.Example messages without TensorFlow, so that the driver starts fast.

A TFRecord file is a sequence of frames: payload length (uint64), its masked CRC32C (uint32), the payload, and
the payload's masked CRC32C (uint32), all little-endian. A payload here is one `tf.train.Example`: a map from
names to lists of bytes, floats (32 bits) or ints (64 bits). Payloads and the bytes inside them are read
without copying: a cadence is 419 KB, and a shard of Kaggle's set holds three thousand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import google_crc32c

from setibl_ray.core.errors import DataError

Scalar: TypeAlias = "bytes | str | int | float"
Value: TypeAlias = "Scalar | Sequence[Scalar]"
_Field: TypeAlias = "memoryview | bytes | int"  # delimited; of fixed width; a varint

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<QI")
_MAX_PAYLOAD = 2**31 - 1  # a protocol buffer cannot be larger
# What TFRecordOptions can compress with. Records are read by their offsets, which a compressed file does not have.
_COMPRESSED = {b"\x1f\x8b": "GZIP", b"\x78\x01": "ZLIB", b"\x78\x9c": "ZLIB", b"\x78\xda": "ZLIB"}

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


class Frame(NamedTuple):
    """One framed record: `offset` is that of its payload in the file, `crc` the payload's masked CRC32C."""

    record: int
    offset: int
    payload: bytes
    crc: int


class BadRecord(NamedTuple):
    """A record that cannot be used, and why."""

    file: str
    record: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} record {self.record}: {self.reason}"


def masked_crc(data: bytes) -> int:
    """CRC32C of `data` in the rotated form that TFRecord files store."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frames(stream: BinaryIO, name: str, skipped: list[BadRecord] | None = None) -> Iterator[Frame]:
    """Read the records of a TFRecord file, verifying both checksums of each.

    Args:
      stream: the file, at its beginning.
      name: its name in errors.
      skipped: receives bad records instead of raising them. A payload that fails its checksum loses only that
        record; a bad header or a truncation loses everything after it, as the start of the next record is then
        unknown.

    Raises:
      DataError: names file and record: truncated header or payload, bad checksum of length or payload.
    """
    record, offset = 0, 0

    def reject(reason: str) -> None:
        bad = BadRecord(name, record, reason)
        if skipped is None:
            raise DataError(f"{bad}. The file is damaged: copy or write it again.")
        skipped.append(bad)

    while header := stream.read(_HEADER.size):
        if len(header) < _HEADER.size:
            return reject(f"truncated header: expected {_HEADER.size} bytes, found {len(header)}")
        length, length_crc = _HEADER.unpack(header)
        if masked_crc(header[: _LENGTH.size]) != length_crc:
            if not record and (packed := _COMPRESSED.get(header[:2])):
                raise DataError(
                    f"{name} is compressed with {packed}; expected plain TFRecords. Unpack it"
                    + (
                        f": gzip -d < {name} > unpacked"
                        if packed == "GZIP"
                        else ", or write it without compression."
                    )
                )
            return reject("bad checksum of the length: not a TFRecord file, or damaged from here on")
        if length > _MAX_PAYLOAD:
            return reject(f"payload of {length} bytes, more than a tf.train.Example can have")
        payload, footer = stream.read(length), stream.read(_CRC.size)
        if len(payload) < length or len(footer) < _CRC.size:
            found = len(payload) + len(footer)
            return reject(f"truncated payload: expected {length + _CRC.size} bytes, found {found}")
        crc = _CRC.unpack(footer)[0]
        offset += _HEADER.size
        if masked_crc(payload) == crc:
            yield Frame(record, offset, payload, crc)
        else:
            reject("bad checksum of the payload")
        offset += length + _CRC.size
        record += 1


def frame(payload: bytes) -> bytes:
    """`payload` framed as one TFRecord record."""
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload))))


def encode_example(features: Mapping[str, Value]) -> bytes:
    """Serialise features as a tf.train.Example; equal features give equal bytes, whatever their order.

    Raises:
      TypeError: a value that is neither bytes, str, int, float nor a list of one of them.
      OverflowError: an int of more than 64 bits, or a float of more than 32.
    """
    entries: list[bytes] = []
    for name in sorted(features):
        feature = _encode_feature(features[name])
        entries += _message(1, [*_message(1, [name.encode()]), *_message(2, feature)])
    return b"".join(_message(1, entries))


def decode_example(payload: bytes) -> dict[str, list]:
    """Parse a tf.train.Example into lists of memoryviews (into `payload`), floats or ints by feature name.

    Raises:
      DataError: not a well-formed tf.train.Example; the caller adds the file and record.
    """
    features: dict[str, list] = {}
    try:
        for number, message in _fields(memoryview(payload)):
            if number == 1:
                for entry in _messages(message, 1):
                    name, values = _decode_entry(entry)
                    features[name] = values
    except (ValueError, struct.error) as error:  # ValueError includes UnicodeDecodeError
        raise DataError(f"not a tf.train.Example: {error}") from None
    return features


def _encode_feature(value: Value) -> list[bytes]:
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        return []
    if all(isinstance(v, (bytes, str)) for v in values):
        chunks: list[bytes] = []
        for v in values:
            chunks += _message(1, [v.encode() if isinstance(v, str) else v])
        return _message(_BYTES_LIST, chunks)
    if all(isinstance(v, int) for v in values):
        if not all(-(2**63) <= v < 2**63 for v in values):
            raise OverflowError(f"an int feature holds 64 bits, got {values}")
        return _message(_INT64_LIST, _message(1, [_varint(v & 0xFFFFFFFFFFFFFFFF) for v in values]))
    if all(isinstance(v, (int, float)) for v in values):
        return _message(_FLOAT_LIST, _message(1, [struct.pack(f"<{len(values)}f", *values)]))
    kinds = sorted({type(v).__name__ for v in values})
    raise TypeError(f"a feature is bytes, str, int, float or a list of one of them, got {', '.join(kinds)}")


def _message(number: int, chunks: list[bytes]) -> list[bytes]:
    """A length-delimited field as chunks, joined once at the end: a nested message copies nothing."""
    return [_varint(number << 3 | _DELIMITED), _varint(sum(map(len, chunks))), *chunks]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _decode_entry(entry: memoryview) -> tuple[str, list]:
    name, values = "", []
    for number, field in _fields(entry):
        if number == 1:
            name = str(_delimited(field), "utf-8")
        elif number == 2:
            values = _decode_feature(field)
    return name, values


def _decode_feature(feature: _Field) -> list:
    values: list = []
    for kind, field in _fields(feature):
        if kind in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
            values = []  # a oneof: the last one set counts
        if kind == _BYTES_LIST:
            values = list(_messages(field, 1))
        elif kind == _FLOAT_LIST:
            for number, item in _fields(field):
                if number == 1:  # packed, or one 32-bit item each
                    if isinstance(item, int) or len(item) % 4 or (isinstance(item, bytes) and len(item) > 4):
                        raise ValueError("a float list holds something else")
                    values += struct.unpack(f"<{len(item) // 4}f", item)
        elif kind == _INT64_LIST:
            for number, item in _fields(field):
                if number == 1:
                    values += [_signed(item)] if isinstance(item, int) else _decode_varints(_delimited(item))
    return values


def _decode_varints(packed: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _messages(field: _Field, number: int) -> Iterator[memoryview]:
    for found, item in _fields(field):
        if found == number:
            yield _delimited(item)


def _delimited(field: _Field) -> memoryview:
    if not isinstance(field, memoryview):
        raise ValueError("a number stands where a message or string belongs")
    return field


def _fields(message: _Field) -> Iterator[tuple[int, _Field]]:
    """(field number, value) of a message, in order; unknown fields included."""
    message = _delimited(message)
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if wire_type == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if wire_type == _DELIMITED:
            size, at = _read_varint(message, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type} is not used by this message")
        if at + size > len(message):
            raise ValueError(f"a field of {size} bytes overruns its message")
        item = message[at : at + size]
        yield number, item if wire_type == _DELIMITED else bytes(item)
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("truncated varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("varint of more than 10 bytes")
