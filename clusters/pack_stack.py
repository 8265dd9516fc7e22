"""Packs an installed current stack for a GPU machine without a network, in parts of at most 60 MB.

    python clusters/pack_stack.py SITE_PACKAGES --out parts [--arch 90] [--has FREEZE]
    cat parts/stack.tar.xz.* | xz -d | tar -x -C FOLDER_ON_PYTHONPATH        # on the other machine

TensorFlow is made smaller: without headers, tests and its profiler, stripped, and with the GPU code of all
architectures but one zeroed where it lies, which compresses to nothing. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements-current.lock"
# What a fold never loads, by package.
NEVER = {
    "tensorflow": (
        "tensorflow/include/*",
        "*/_pywrap_profiler_plugin.so",
        "*/stablehlo_extension.so",
        "*_test.py",
    ),
    "ray": ("ray/dashboard/client/*", "ray/jars/*", "ray/rllib/*", "ray/core/src/ray/cpp/*", "ray/cpp/*"),
}
# TensorFlow imports these two when it starts, and a fold calls nothing in them.
STUBS = (
    "tensorflow/python/profiler/internal/_pywrap_profiler_plugin.py",
    "tensorflow/compiler/mlir/stablehlo/stablehlo_extension.py",
)
# NVIDIA's container of GPU code: a header of 16 bytes, then entries of a header and a payload, one an architecture.
MAGIC = 0xBA55ED50
ELF = 2  # the kind of an entry that holds machine code; PTX is 1


def kept_files(installed: Distribution) -> Iterator[Path]:
    """Files of a package below site-packages that a fold may load, relative to it."""
    never = NEVER.get(installed.name, ())
    for file in installed.files or ():
        name = str(file)
        if name.startswith("..") or "__pycache__" in name:
            continue
        if not any(fnmatch.fnmatch(name, pattern) for pattern in never):
            yield Path(name)


def zero_other_cards(library: Path, arch: int) -> tuple[int, int]:
    """Bytes of GPU code that are kept and zeroed: of `library`, all but machine code for `arch`, in place.

    Entries keep their headers: whatever loads the container walks over them as before.

    Raises:
      ValueError: the container is not laid out as expected.
    """
    kept = zeroed = 0
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for begin, size in sections(data, ".nv_fatbin"):
            at = begin
            while at < begin + size:
                magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
                if magic == 0:  # padding between containers
                    at += 8
                    continue
                if magic != MAGIC:
                    raise ValueError(f"{library}: expected GPU code at byte {at}, got {magic:#x}")
                entry, at = at + header, at + header + length
                while entry < at:
                    kind, _, head, payload = struct.unpack_from("<HHIQ", data, entry)
                    (own,) = struct.unpack_from("<I", data, entry + 28)
                    if kind == ELF and own == arch:
                        kept += payload
                    else:
                        data[entry + head : entry + head + payload] = bytes(payload)
                        zeroed += payload
                    entry += head + payload
    return kept, zeroed


def sections(elf: mmap.mmap, wanted: str) -> Iterator[tuple[int, int]]:
    """Offset and size of an ELF file's sections of this name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + number * entry_size) for number in range(count)]
    for name, _, _, _, offset, size in rows:
        start = rows[names][4] + name
        if elf[start : elf.find(b"\0", start)].decode() == wanted:
            yield offset, size


def names_in(file: Path) -> set[str]:
    """Package names of a lock or of `pip freeze`, normalised."""
    lines = (line.strip() for line in file.read_text().splitlines())
    return {normal(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="site-packages of the installed stack")
    parser.add_argument("--out", type=Path, default=Path("parts"))
    parser.add_argument("--arch", type=int, default=90, help="90 for Hopper, 89 for Ada, 80 for Ampere")
    parser.add_argument("--has", type=Path, help="`pip freeze` of the other machine: packages not to bring")
    parser.add_argument("--without", default="", help="further packages not to bring, with commas")
    parser.add_argument("--part-mb", type=int, default=60)
    options = parser.parse_args()
    leave = {normal(name) for name in options.without.split(",")}
    leave |= names_in(options.has) if options.has else set()
    wanted = names_in(LOCK) - leave
    found = {normal(each.name): each for each in distributions(path=[str(options.site)])}
    if "tensorflow" not in found:
        sys.exit(f"{options.site}: expected the current stack's site-packages, got no tensorflow in it")
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("stack.tar.xz.*"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        tree = Path(folder)
        for name in sorted(wanted & set(found)):
            for file in kept_files(found[name]):
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(options.site / file, tree / file)
        for stub in STUBS:
            (tree / stub).touch()
        for library in sorted(tree.rglob("*.so*")):
            subprocess.run(["strip", "--strip-unneeded", library], stderr=subprocess.DEVNULL)
        for library in sorted((tree / "tensorflow").glob("libtensorflow_*.so*")):
            kept, zeroed = zero_other_cards(library, options.arch)
            print(
                f"{library.name}: {kept / 1e6:.0f} MB of code for sm_{options.arch}, {zeroed / 1e6:.0f} zeroed"
            )
            if not kept:
                sys.exit(f"{library.name} has no machine code for sm_{options.arch}")
        packed = options.out.resolve() / "stack.tar.xz."
        pack = f'tar -C "$1" -c . | xz -T0 -6 | split -d -b {options.part_mb}MB - "$2"'
        subprocess.run(["bash", "-o", "pipefail", "-c", pack, "pack", tree, str(packed)], check=True)
    for part in sorted(options.out.glob("stack.tar.xz.*")):
        print(f"{part}: {part.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
