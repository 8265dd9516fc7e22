"""Every random number here is named: (seed, stream, fold, epoch or view, sample id) -> the same bits everywhere.

Two steps. `stream_key` hashes the names of a stream into 64 bits; `sample_seeds` mixes that key with each
sample's own key, so a sample's draws depend on nothing else: not its batch, its worker or its neighbours.
`uniforms` turns each seed into as many numbers as an augmentation needs, vectorised over samples, which
NumPy's own generators (one key per object) cannot do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream_key(*names: int | str) -> int:
    """64-bit key of a named stream, e.g. `stream_key(seed, "augment", fold, epoch)`."""
    text = "\x1f".join(f"s:{name}" if isinstance(name, str) else f"i:{int(name)}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*names: int | str) -> np.random.Generator:
    """NumPy generator of a named stream, for draws that belong to a whole fold or epoch."""
    return np.random.Generator(np.random.Philox(stream_key(*names)))


def sample_keys(image_ids: Iterable[str]) -> np.ndarray:
    """(n,) uint64: one key per image id, computed once per dataset."""
    return np.fromiter((stream_key("sample", image_id) for image_id in image_ids), np.uint64)


def _mix(z: np.ndarray) -> np.ndarray:
    # The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every output bit depends on every input bit.
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample_seeds(key: int, keys: np.ndarray) -> np.ndarray:
    """(n,) uint64: one seed per sample of the stream `key`, from its `sample_keys` (n,)."""
    return _mix(keys.astype(np.uint64) ^ _mix(np.array([key], np.uint64) + _GOLDEN))


def uniforms(seeds: np.ndarray, n_draws: int) -> np.ndarray:
    """(n, n_draws) float64 strictly inside (0, 1), row i from seeds[i] alone (SplitMix64)."""
    steps = (np.arange(1, n_draws + 1, dtype=np.uint64) * _GOLDEN)[None, :]
    bits = _mix(seeds.astype(np.uint64)[:, None] + steps)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
