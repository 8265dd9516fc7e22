"""clusters/pack_stack.py keeps the GPU code of one architecture and nothing else, where it was."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "clusters"))
import pack_stack

pytestmark = pytest.mark.skipif(not shutil.which("objcopy"), reason="objcopy (binutils) makes the libraries")
PTX, ELF = 1, 2
ENTRIES = [(PTX, 90, b"text"), (ELF, 80, b"ampere"), (ELF, 90, b"hopper-code"), (ELF, 70, b"volta")]


def container(entries):
    """GPU code as nvcc lays it out: entries of a 64-byte header and a payload, padded to 8 bytes."""
    body = b""
    for kind, arch, payload in entries:
        payload += bytes(-len(payload) % 8)
        head = struct.pack("<HHIQ", kind, 0x101, 64, len(payload)).ljust(28, b"\0") + struct.pack("<I", arch)
        body += head.ljust(64, b"\1") + payload
    return struct.pack("<IHHQ", pack_stack.MAGIC, 1, 16, len(body)) + body


def library_with(section, folder):
    """A real library with `section` as its GPU code."""
    (folder / "section").write_bytes(section)
    add = [
        "objcopy",
        "--add-section",
        f".nv_fatbin={folder / 'section'}",
        sys.executable,
        folder / "library.so",
    ]
    subprocess.run(add, check=True)
    return folder / "library.so"


def test_all_but_one_architecture_is_zeroed_in_place(tmp_path):
    section = container(ENTRIES) + bytes(16) + container(ENTRIES[:2])
    library = library_with(section, tmp_path)
    before = library.read_bytes()
    kept, zeroed = pack_stack.zero_other_cards(library, 90)
    after = library.read_bytes()
    assert (kept, zeroed) == (16, 8 + 8 + 8 + 8 + 8)  # payloads with their padding
    at = before.index(section)
    expected = section
    for payload in (b"text", b"ampere", b"volta"):
        expected = expected.replace(payload, bytes(len(payload)))
    assert after[at : at + len(section)] == expected
    assert after[:at] == before[:at]
    assert after[at + len(section) :] == before[at + len(section) :]


def test_a_library_of_another_layout_is_refused(tmp_path):
    library = library_with(b"not GPU code" * 4, tmp_path)
    with pytest.raises(ValueError, match=r"library\.so: expected GPU code at byte"):
        pack_stack.zero_other_cards(library, 90)
