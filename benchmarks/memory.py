"""Peak memory of a whole job, over all its processes, as rows and folds at once grow.

    python benchmarks/memory.py [--out memory.json] [--rows 1000 8000]

Each process counts with its proportional share (PSS), so what several map counts once. The network is the small one
and an epoch one pass, as neither grows with the rows. What is mapped from files, the panel store of `--cache disk`
with it, the kernel may drop at any time; anonymous and shared memory must stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

SIZE = (91, 85)
STORE_BYTES_PER_ROW = 6 * SIZE[0] * SIZE[1]
LOOK_S = 0.2


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        children[parent].append(int(path.parent.name))
    found = [pid]
    for member in found:
        found += children[member]
    return found


def share(pid: int) -> dict[str, int]:
    """Bytes of a process's proportional share: all of it, and what of it must stay in memory."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {"all": 0, "must_stay": 0}
    kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    stays = kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]
    return {"all": kilobytes["Pss"] << 10, "must_stay": stays << 10}


def peak(*command: str | Path) -> dict[str, int]:
    """Run a command; the most that it and its descendants take together, seen several times a second."""
    most = {"all": 0, "must_stay": 0}
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        shares = [share(pid) for pid in family(process.pid)]
        most = {name: max(value, sum(one[name] for one in shares)) for name, value in most.items()}
        time.sleep(LOOK_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def job(data: Path, out: Path, at_once: int) -> dict[str, int]:
    flags = ["--folds", 2, "--epochs", 1, "--tta", 0, "--model", "efficientnet-nano", "--weights", "none"]
    flags += ["--image-size", f"{SIZE[0]}x{SIZE[1]}", "--batch-size", 32, "--cache", "disk"]
    flags += ["--cpus-per-fold", 1, "--workers", at_once, "--data", data, "--out", out]
    return peak(sys.executable, "-m", "setibl_ray.cv", *map(str, flags))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--rows", type=int, nargs=2, default=(1000, 8000))
    options = parser.parse_args()
    result = []
    with tempfile.TemporaryDirectory() as folder:
        for n_rows in options.rows:
            recipe = Recipe(train=n_rows, test=10, shards=10, test_shards=1, shape=SIZE)
            data = write_synthetic(recipe, f"{folder}/{n_rows}")
            for at_once in (1, 2):
                found = job(data, Path(f"{folder}/run-{n_rows}-{at_once}"), at_once)
                store = {"store": n_rows * STORE_BYTES_PER_ROW}
                result.append({"rows": n_rows, "folds_at_once": at_once} | store | found)
                print(", ".join(f"{name} {value:,}" for name, value in result[-1].items()), flush=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
