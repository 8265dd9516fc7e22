"""What a search leaves: candidates.csv, a .dat as turboSETI writes it for each ON file, search.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from setibl_ray.seti.cadence import ON
from setibl_ray.seti.observations.observation import Observation

_RULE = "# -------------------------- o --------------------------\n"
_COLUMNS = (
    "Top_Hit_#", "Drift_Rate", "SNR", "Uncorrected_Frequency", "Corrected_Frequency", "Index", "freq_start", "freq_end",
    "SEFD", "SEFD_freq", "Coarse_Channel_Number", "Full_number_of_hits",
)  # fmt: skip


def csv(candidates: Sequence[dict[str, Any]], n_folds: int) -> str:
    """The text of candidates.csv; the header is there even if there are no candidates."""
    folds = [f"score_fold_{k}" for k in range(n_folds)]
    columns = [
        "rank", "id", "observation", "score", *folds, "f_start_mhz", "f_end_mhz", "drift_hz_s", "width_hz",
        "snr_on1", "snr_on2", "snr_on3", "snr_off1", "snr_off2", "snr_off3", "n_on", "n_windows", "bin", "flags",
        "source", "tstart_mjd", "files",
    ]  # fmt: skip
    return pd.DataFrame(list(candidates), columns=columns).to_csv(index=False, lineterminator="\n")


def dat_files(
    observation: Observation, candidates: Sequence[dict[str, Any]], max_drift: float
) -> dict[str, str]:
    """name -> text of a .dat for each ON file, with every candidate as that file shows it."""
    own = [row for row in candidates if row["observation"] == observation.name]
    texts = {}
    for panel in ON:
        header = observation.headers[panel]
        length_s = header.n_times * header.tsamp_s
        start_s = float(observation.time_s[panel].min()) - header.tsamp_s / 2
        number = sorted(ON, reverse=observation.is_reversed).index(panel) + 1
        lines = [
            _RULE, f"# File ID: {header.name} \n", _RULE, f"# Source:{header.source}\n",
            f"# MJD: {header.tstart_mjd:18.12f}\tRA: {_sexagesimal(header.ra_h, 'hms')}\t"
            f"DEC: {_sexagesimal(header.dec_deg, 'dms')}\n",
            f"# DELTAT: {header.tsamp_s:10.6f}\tDELTAF(Hz): {header.foff_mhz * 1e6:10.6f}\t"
            f"max_drift_rate: {max_drift:10.6f}\tobs_length: {length_s:10.6f}\n",
            "# --------------------------\n", "# " + " \t".join(_COLUMNS) + " \t\n", "# --------------------------\n",
        ]  # fmt: skip
        for count, row in enumerate(own, 1):
            drift = row["drift_hz_s"]
            mhz = row["f_start_mhz"] + drift * (start_s - observation.first_s) / 1e6
            index = round((mhz - header.fch1_mhz) / header.foff_mhz)
            fine = observation.channels[0].high - observation.channels[0].low
            ends = sorted((mhz, mhz + drift * length_s / 1e6), reverse=header.foff_mhz < 0)
            values = (
                f"{count:03d}", f"{drift:10.6f}", f"{row[f'snr_on{number}']:10.6f}", f"{mhz:14.6f}", f"{mhz:14.6f}",
                f"{index}", f"{ends[0]:14.6f}", f"{ends[1]:14.6f}", "0.0", "      0.000000",
                f"{index // fine}", f"{row['n_windows']}",
            )  # fmt: skip
            lines.append("\t".join(values) + "\t\n")
        stem = PurePosixPath(header.name).stem
        # A name comes from a table or a file's header: it must not lead out of the folder.
        texts[re.sub(r"[^\w.+-]", "_", f"{observation.name}-{stem}.dat")] = "".join(lines)
    return texts


def _sexagesimal(value: float, units: str) -> str:
    if value != value:
        return "nan"
    sign = "-" if value < 0 else ""
    seconds = abs(value) * 3600
    whole, minutes = int(seconds // 3600), int(seconds // 60 % 60)
    return f"{sign}{whole}{units[0]}{minutes:02d}{units[1]}{seconds % 60:06.3f}{units[2]}"
