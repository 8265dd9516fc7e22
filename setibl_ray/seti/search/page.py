"""candidates.html: every candidate's six panels to look at and to judge, in one file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from setibl_ray.seti.observations.observation import Observation


def render(
    rows: Sequence[dict[str, Any]], summary: dict[str, Any], observations: Sequence[Observation]
) -> str:
    """The page.

    Args:
      rows: ranked candidates, as `gather.candidates` gives them.
      summary: the content of search.json.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("setibl_ray.seti.search", "templates")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(
        "candidates.html"
    )
    times = {
        observation.name: [
            [
                round(float(t), 2)
                for t in (panel.min() - observation.dt_s / 2, panel.max() + observation.dt_s / 2)
            ]
            for panel in observation.time_s
        ]
        for observation in observations
    }
    sources = {
        observation.name: [header.source for header in observation.headers] for observation in observations
    }
    keys = (
        "rank", "id", "observation", "score", "f_start_mhz", "f_end_mhz", "drift_hz_s", "width_hz", "n_windows", "bin",
        "flags", "source",
    )  # fmt: skip
    snr = [f"snr_{what}{k}" for k in (1, 2, 3) for what in ("on", "off")]
    data = {
        "key": summary["run"]["weights_sha256"][0][:12] + "".join(sorted(times)),
        "times": times,
        "sources": sources,
        "candidates": [
            {key: row[key] for key in keys} | {"snr": [row[key] for key in snr], "picture": row["picture"]}
            for row in rows
        ],
    }
    css = resources.files("setibl_ray.core.reporting").joinpath("page.css").read_text(encoding="utf-8")
    own = resources.files("setibl_ray.seti.search").joinpath("templates")
    return page.render(
        summary=summary,
        n_observations=len(observations),
        css=css,
        style=own.joinpath("candidates.css").read_text(encoding="utf-8"),
        script=own.joinpath("candidates.js").read_text(encoding="utf-8"),
        # HTML's escapes do not work in a script element, so what could end it is written in JSON's way.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
