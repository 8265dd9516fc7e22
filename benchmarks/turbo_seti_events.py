"""turbo_seti on the six files of an observation, for comparison; it needs an environment of its own.

    uv venv --python 3.11 turbo && uv pip install --python turbo turbo_seti==2.3.2 'numpy<2' 'setuptools<80'
    turbo/bin/python benchmarks/turbo_seti_events.py OBSERVATION.csv --out FOLDER [--flatten]

Every file is searched to ±4 Hz/s at S/N 10, then events of filter 3 (in every ON file, in no OFF file). `--flatten`
divides each file by its running median over 1,025 channels first. Writes events.csv, prints processor seconds.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import median_filter
from turbo_seti.find_doppler.find_doppler import FindDoppler
from turbo_seti.find_event.find_event_pipeline import find_event_pipeline

BLOCK = 1025


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("observation", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--flatten", action="store_true")
    parser.add_argument("--coarse-channels", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    row = next(csv.DictReader(options.observation.open()))
    files = [options.observation.parent / row[f"file_{i}"] for i in range(1, 7)]
    if options.flatten:
        files = [flattened(file, options.out / file.name) for file in files]
    began = time.process_time()
    for file in files:
        FindDoppler(
            str(file), max_drift=4, snr=10, out_dir=str(options.out), n_coarse_chan=options.coarse_channels,
            log_level_int=30,
        ).search()  # fmt: skip
    for name, paths in (("dat", [options.out / f"{file.stem}.dat" for file in files]), ("h5", files)):
        (options.out / f"{name}.lst").write_text("".join(f"{path}\n" for path in paths))
    find_event_pipeline(
        str(options.out / "dat.lst"), str(options.out / "h5.lst"), filter_threshold=3,
        csv_name=str(options.out / "events.csv"),
    )  # fmt: skip
    print(f"{time.process_time() - began:.0f} s of processor time for six files")


def flattened(source: Path, target: Path) -> Path:
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        data = file["data"][:]
        level = median_filter(np.median(data, axis=0)[0], BLOCK, mode="nearest")
        attributes = dict(file["data"].attrs)
        del file["data"]
        file.create_dataset("data", data=(data / level).astype(np.float32)).attrs.update(attributes)
    return target


if __name__ == "__main__":
    main()
