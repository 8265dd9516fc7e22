"""One HTML file that needs nothing else: sections, figures and pictures in, text out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from setibl_ray.seti.reporting.captions import CAPTIONS
from setibl_ray.seti.reporting.figures import Figure

HEIGHT = 380  # of a figure that does not say; page.js has the same


@dataclass(frozen=True)
class Section:
    """A part of the page: `blocks` are HTML or figures; neighbouring figures stand side by side."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[str | Figure]


def tile(value: str, label: str, detail: str = "") -> str:
    texts = escape(label), escape(value), escape(detail)
    return '<div class="tile"><span>{}</span><b>{}</b><span>{}</span></div>'.format(*texts)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card wide scroll">{whole}</div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, text: str) -> str:
    """Text that opens at a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def image_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _card(figure: Figure) -> str:
    title, how = figure.caption or CAPTIONS[figure.name]
    height = figure.spec["layout"].get("height", HEIGHT)
    return (
        f'<figure class="card"><h3>{escape(title)}</h3>'
        f'<div class="plot" id="figure-{figure.name}" style="min-height:{height}px"></div>'
        f'<p class="how">{escape(how)}</p></figure>'
    )


def _blocks(blocks: Sequence[str | Figure]) -> str:
    parts: list[str] = []
    row: list[str] = []
    for block in [*blocks, None]:
        if isinstance(block, Figure):
            row.append(_card(block))
            continue
        if row:
            parts.append(f'<div class="grid">{"".join(row)}</div>')
            row = []
        if block is not None:
            parts.append(block)
    return "".join(parts)


def _script(text: str) -> str:
    return text.replace("</script", "<\\/script")


def render(
    *, title: str, verdict: str, subtitle: str, tiles: Sequence[str], sections: Sequence[Section]
) -> str:
    """The page. Everything it shows is inside it: styles, scripts, Plotly, numbers and pictures."""
    from plotly.offline import get_plotlyjs

    own = resources.files("setibl_ray.core.reporting")
    figures = {
        block.name: block.spec
        for section in sections
        for block in section.blocks
        if isinstance(block, Figure)
    }
    data = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>'
        f'<p class="lead">{escape(section.lead)}</p>{_blocks(section.blocks)}</section>'
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{own.joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header><div class="run">{escape(subtitle)}</div><h1>{escape(verdict)}</h1>
<div class="tiles">{"".join(tiles)}</div></header>
<nav><div>{links}</div></nav>
<main>{body}</main>
<footer>Made by setibl_ray. This file holds everything it shows and opens without a network.</footer>
<script id="figures" type="application/json">{data}</script>
<script>{_script(get_plotlyjs())}</script>
<script>{own.joinpath("page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
