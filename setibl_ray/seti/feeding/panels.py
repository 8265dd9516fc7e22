"""From raw panels to the uint8 images that a network's input pipeline starts from, kept once per node.

A panel is resized by exact area averaging, standardised (mean 0, standard deviation 1) and stored in 8 bits
over `Z_RANGE`. `open_store` does that once per split, image size and choice of panels: the first process of a
node builds a plain .npy file under a lock, in shared memory or on disk, and every fold maps the same pages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import google_crc32c
import numpy as np
from scipy import sparse

from setibl_ray.core import host_memory
from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.storage import can_be_written, file_lock, temporary_folder
from setibl_ray.seti.formats.shards import read_panels

Z_RANGE = (-4.0, 8.0)
"""Standard deviations that bytes 0 and 255 stand for: more room above, as needles are bright; byte 85 is exactly 0."""

SHARED_MEMORY = Path("/dev/shm")
_FORMAT = 1  # raise it when the stored bytes of the same panels change
_CHUNK_BYTES = 128 << 20  # raw panels that all building threads hold together

Policy = Literal["auto", "memory", "disk", "off"]
ReadPanels = Callable[..., np.ndarray]  # (index, split, rows, panels) -> uint8 (n, H, W, P)


@lru_cache(maxsize=16)
def area_weights(size: int, new_size: int) -> sparse.csr_array:
    """(new_size, size) float32: row i holds each old pixel's share of new pixel i; the shares add up to 1.

    New pixel i covers [i * s, (i + 1) * s) of the old axis, s = size / new_size, as in
    `tf.image.resize(method="area")`, for enlarging too.
    """
    edges = np.arange(new_size + 1) * (size / new_size)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.maximum(overlap, 0)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def area_resize(panels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average panels over the areas of their new pixels.

    One sparse product per axis and image: a new pixel's sum has the same terms in the same order whatever the
    chunk or the number of threads, which a BLAS does not guarantee.

    Args:
      panels: (n, H, W, P) uint8 or float32.
      size: new (height, width).

    Returns:
      (n, height, width, P) float32; `panels` itself when the size is already right.
    """
    n, old_height, old_width, count = panels.shape
    height, width = size
    if (old_height, old_width) == size:
        return panels
    rows, columns = area_weights(old_height, height), area_weights(old_width, width)
    resized = np.empty((n, height, width, count), np.float32)
    for image, result in zip(panels, resized):
        short = rows @ image.reshape(old_height, -1).astype(np.float32, copy=False)
        sideways = short.reshape(height, old_width, count).swapaxes(0, 1)
        small = columns @ np.ascontiguousarray(sideways).reshape(old_width, -1)
        result[:] = small.reshape(width, height, count).swapaxes(0, 1)
    return resized


def standardise(panels: np.ndarray) -> np.ndarray:
    """Scale each panel of (n, H, W, P) to mean 0 and standard deviation 1, float32; a constant one to 0."""
    panels = panels.astype(np.float32, copy=False)
    centred = panels - panels.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.square(centred).mean(axis=(1, 2), keepdims=True, dtype=np.float64))
    # A constant panel may keep a rounding error about its mean, which must not be scaled up to noise.
    constant = deviation <= 1e-6 * np.abs(panels).max(axis=(1, 2), keepdims=True)
    factor = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
    return centred * factor.astype(np.float32)


def encode(standardised: np.ndarray) -> np.ndarray:
    """Standard deviations to uint8 over `Z_RANGE`, rounded to the nearest and clipped."""
    low, high = Z_RANGE
    return _to_uint8((standardised - np.float32(low)) * np.float32(255 / (high - low)))


def decode(encoded: np.ndarray) -> np.ndarray:
    """Back from uint8 to standard deviations, float32."""
    low, high = Z_RANGE
    return encoded.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)


def prepare(raw: np.ndarray, image_size: tuple[int, int], standardize: bool) -> np.ndarray:
    """Raw uint8 panels (n, H, W, P) to what a store holds, uint8 (n, *image_size, P)."""
    resized = area_resize(raw, image_size)
    if standardize:
        return encode(standardise(resized))
    return _to_uint8(resized)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class PanelStore:
    """The panels of the training or test set on one node.

    `images` is (n, h, w, P) uint8, read-only, mapped from `path`; both are None under policy "off", where
    `take` reads and prepares on the fly.
    """

    index: Any
    split: str
    panels: tuple[int, ...]
    image_size: tuple[int, int]
    standardize: bool
    read: ReadPanels = field(repr=False)
    images: np.ndarray | None = field(default=None, repr=False)
    path: Path | None = None
    _file: IO[bytes] | None = field(default=None, repr=False)  # its shared lock says that the file is in use

    def close(self) -> None:
        """Release the file. Arrays that were taken from it remain valid."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(getattr(self.index, self.split))

    @property
    def scale(self) -> tuple[float, float]:
        """Values that bytes 0 and 255 stand for: standard deviations, or [0, 1] without standardisation."""
        return Z_RANGE if self.standardize else (0.0, 1.0)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.image_size, len(self.panels)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), h, w, P) uint8, the same bytes under every policy."""
        if self.images is not None:
            return self.images[rows]
        return prepare(
            self.read(self.index, self.split, np.asarray(rows), self.panels),
            self.image_size,
            self.standardize,
        )


def open_store(
    index: Any,
    split: str,
    panels: Sequence[int],
    image_size: tuple[int, int],
    standardize: bool,
    *,
    policy: Policy,
    folder: Path,
    threads: int,
    read: ReadPanels = read_panels,
) -> PanelStore:
    """Open this node's panels of a split, after building them if that has not been done.

    Args:
      index: the data folder (`DataIndex`).
      split: "train" or "test".
      panels: cadence positions, in the order of the images' last axis.
      image_size: (height, width) of a stored panel.
      standardize: bring each panel to mean 0 and standard deviation 1.
      policy: where to keep them: "memory" (/dev/shm), "disk" (`folder`), "off" (nowhere), or "auto": memory
        if they take at most half of the free space there, otherwise disk, otherwise off.
      folder: this node's folder for policy "disk", created when missing.
      threads: for building.
      read: `read_panels`, or a stand-in for it.

    Raises:
      ConfigError: policy "memory" without /dev/shm, or "memory" or "disk" without room.
      DataError: the split has no rows.
    """
    store = PanelStore(index, split, tuple(panels), image_size, standardize, read)
    if not len(store):
        raise DataError(f"the {split} split has no rows: nothing to open")
    name = _file_name(store)
    for home in _homes(policy, folder):
        path = home / name
        with _locked(path):
            if _is_whole(path) or _build(store, path, threads, policy):
                return _open(store, path)
        if policy != "auto":
            raise ConfigError(
                f"cache: {policy} needs {_bytes(store) / 1e9:.2f} GB in {home} for the {split} panels at "
                f"{image_size[0]}x{image_size[1]}, but {_available(home) / 1e9:.2f} GB are available. "
                f"Set cache to {'disk' if policy == 'memory' else 'memory'}, auto or off, "
                "or lower image_size."
            )
    return store


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a store's lock and create its folder, which a run that ends may remove while we wait."""
    with contextlib.ExitStack() as held:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                held.enter_context(file_lock(f"{path}.lock"))
                break
        yield


def remove_unused(folder: Path) -> None:
    """Delete the stores in a folder that no process has open, and files left by crashed builds."""
    # Only names that `_file_name` makes: the folder may hold other files.
    for path in folder.glob(f"t*-{'[0-9a-f]' * 24}.*"):
        if path.suffix not in (".npy", ".part"):
            continue
        with (
            contextlib.suppress(OSError),  # in use, gone, or of a file system without locks
            file_lock(f"{path.with_suffix('.npy')}.lock", 0),
            open(path, "rb") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            _sum_file(path).unlink(missing_ok=True)
    for orphan in folder.glob(f"t*-{'[0-9a-f]' * 24}.crc32c"):
        # In this order, because a build that finishes in between renames the first to the second.
        if not orphan.with_suffix(".part").exists() and not orphan.with_suffix(".npy").exists():
            orphan.unlink(missing_ok=True)
    # Locks that have no store and are not held; filelock notices if a lock that it waits for is removed.
    for lock in folder.glob(f"t*-{'[0-9a-f]' * 24}.npy.lock"):
        with contextlib.suppress(OSError), file_lock(lock, 0):
            if not lock.with_suffix("").exists():
                lock.unlink()
    with contextlib.suppress(OSError):  # not empty, or missing
        folder.rmdir()


def remove_all_unused() -> None:
    """`remove_unused` for every folder in which this user's runs keep stores on this node."""
    remove_unused(memory_folder())
    for folder in Path(temporary_folder()).glob(f"setibl-ray-{os.getuid()}-*"):
        remove_unused(folder)


def memory_folder() -> Path:
    """Where policy "memory" keeps this user's stores."""
    return SHARED_MEMORY / f"setibl_ray-{os.getuid()}"


def _homes(policy: Policy, folder: Path) -> tuple[Path, ...]:
    has_memory = can_be_written(SHARED_MEMORY)
    if policy == "memory" and not has_memory:
        what = "is read-only on this node" if SHARED_MEMORY.is_dir() else "this node lacks"
        raise ConfigError(f"cache: memory needs {SHARED_MEMORY}, which {what}; set cache to disk or off")
    memory = (memory_folder(),) if has_memory else ()
    return {"memory": memory, "disk": (folder,), "auto": (*memory, folder), "off": ()}[policy]


def _in_memory(home: Path) -> bool:
    return home.is_relative_to(SHARED_MEMORY)


def _file_name(store: PanelStore) -> str:
    parts = (
        store.index.fingerprint,
        store.split,
        store.panels,
        store.image_size,
        store.standardize,
        Z_RANGE,
        _FORMAT,
    )
    return f"{store.split}-{hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()}.npy"


def _bytes(store: PanelStore) -> int:
    return int(np.prod(store.shape, dtype=np.int64)) + 128  # the .npy header


def _available(home: Path) -> int:
    """Bytes that can still be written to a folder; in shared memory, at most what this process may use."""
    free = shutil.disk_usage(home).free
    if not _in_memory(home):
        return free
    return min(free, host_memory.available())


def room_needed(n_bytes: int, policy: Policy, *, in_memory: bool) -> int:
    """Free bytes that a store of `n_bytes` needs: "auto" leaves half of the free memory to others."""
    return 2 * n_bytes if policy == "auto" and in_memory else n_bytes


def free_bytes() -> dict[str, int]:
    """Bytes that stores may take on this node: in "memory" (0 without /dev/shm) and on "disk"."""
    memory = _available(SHARED_MEMORY) if can_be_written(SHARED_MEMORY) else 0
    return {"memory": memory, "disk": _available(Path(temporary_folder()))}


def _build(store: PanelStore, path: Path, threads: int, policy: Policy) -> bool:
    """Write the store in chunks under a temporary name, then rename it; False if there is no room.

    The caller holds the path's lock. Stores that no process has open are removed when room is needed.
    """
    needed = room_needed(_bytes(store), policy, in_memory=_in_memory(path.parent))
    if needed > _available(path.parent):
        remove_unused(path.parent)
    if needed > _available(path.parent):
        return False
    height, width = store.index.panel_shape
    chunk = max(1, _CHUNK_BYTES // (threads * height * width * len(store.panels)))
    part = path.with_suffix(".part")
    try:
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=store.shape)
        with open(part, "r+b") as file:
            # Writing to a mapped page without free memory is a bus error; reserving space first gives an exception.
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)

        def fill(start: int) -> None:
            rows = np.arange(start, min(start + chunk, len(store)))
            raw = store.read(store.index, store.split, rows, store.panels)
            for offset, image in enumerate(raw):  # one at a time: float32 copies of a whole chunk are large
                images[start + offset] = prepare(image[None], store.image_size, store.standardize)[0]

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, range(0, len(store), chunk)):
                pass
        images.flush()
        _sum_file(path).write_text(_checksum(part))
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return False
        raise
    return True


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".crc32c")


def _checksum(path: Path) -> str:
    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(8 << 20):
            checksum.update(block)
    return checksum.hexdigest().decode()


def _is_whole(path: Path) -> bool:
    """Whether a store is at `path` with the bytes that its builder wrote; a crash of the node may have lost some."""
    try:
        status = path.stat()
        return _sum_file(path).read_text() == _checksum_once(path, status.st_ino, status.st_mtime_ns)
    except FileNotFoundError:
        return False


@lru_cache(maxsize=64)
def _checksum_once(path: Path, inode: int, modified_ns: int) -> str:
    # A process opens the same store for each of its folds; the checksum of gigabytes is computed only once.
    return _checksum(path)


def _open(store: PanelStore, path: Path) -> PanelStore:
    file = open(path, "rb")  # noqa: SIM115  (held by the store, for its lock)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError as error:
        file.close()
        raise ConfigError(
            f"cache: the file system of {path.parent} has no locks ({error.strerror}), by which folds know what is in "
            "use. Set TMPDIR to a folder on a local disk, or take --cache off."
        ) from None
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    return replace(store, images=images, path=path, _file=file)
