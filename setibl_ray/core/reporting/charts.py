"""Building blocks of Plotly figures, as plain dictionaries that page.js draws, or `plotly_figure` in a notebook.

Colours are names ("@needle", "@muted/0.3" with opacity), resolved in the browser, so that one figure serves light and
dark. `colour` is that of a trace's line or marker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Spec = dict[str, Any]

DOTTED = {"width": 1, "dash": "dot"}


def numbers(values: Any) -> list[float | None]:
    """JSON numbers of six digits; values that are not finite become gaps in a line."""
    array = np.asarray(values, np.float64)
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in array]


def line(
    x: Any, y: Any, name: str, colour: str, *, width: float = 2, dash: str = "solid", **more: Any
) -> Spec:
    """A curve; `shape` is Plotly's, such as "hv" for steps."""
    pen = {"color": colour, "width": width, "dash": dash, "shape": more.pop("shape", "linear")}
    trace = {"type": "scatter", "mode": "lines", "x": numbers(x), "y": numbers(y), "name": name, "line": pen}
    return trace | more


def points(
    x: Sequence[Any], y: Sequence[Any], colour: Any, *, size: float = 9, symbol: Any = "circle", **more: Any
) -> Spec:
    """Markers; `colour` and `symbol` may be lists with one item for each."""
    marker = {"size": size, "color": colour, "symbol": symbol, **more.pop("marker", {})}
    return {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "marker": marker} | more


def bars(x: Any, y: Any, colour: Any, **more: Any) -> Spec:
    """Upright bars, or horizontal ones with `orientation="h"`."""
    return {"type": "bar", "x": list(x), "y": list(y), "marker": {"color": colour}} | more


def error_bars(values: Any, low: Any, high: Any, colour: str, **more: Any) -> Spec:
    """`error_x` or `error_y` of a trace at `values` (n,) with intervals `low` to `high` (n,); none where nan."""
    value, low, high = (np.asarray(part, np.float64) for part in (values, low, high))
    arms = {"array": numbers(high - value), "arrayminus": numbers(value - low)}
    return {"type": "data", **arms, "color": colour, "thickness": 1.5} | more


def upright(at: float, pen: Spec) -> Spec:
    """A vertical line through the whole plot."""
    return {"type": "line", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": pen}


def across(low: float, high: float, **more: Any) -> Spec:
    """A horizontal band through the whole plot; a line if `low` is `high`."""
    kind = "line" if low == high else "rect"
    return {"type": kind, "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high} | more


def figure(traces: Sequence[Spec], x: str, y: str, **more: Any) -> Spec:
    """Traces with titled axes; `xaxis` and `yaxis` add to them, everything else goes to the layout."""
    layout: Spec = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name, value in more.items():
        layout[name] = layout.get(name, {}) | value if name in ("xaxis", "yaxis") else value
    return {"data": list(traces), "layout": layout}


def plotly_figure(spec: Spec) -> Figure:
    """A figure for notebooks: with the page's light colours, on white, as page.js lays it out."""
    from plotly.graph_objects import Figure

    css = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css.partition("}")[0]))
    own: Spec = spec["layout"]
    layout = {
        "template": "plotly_white",
        "height": 420,
        "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
        **own,
    }
    layout["legend"] = {"orientation": "h", "y": -0.2, "yanchor": "top"} | own.get("legend", {})
    place = {
        "type": "buttons",
        "direction": "right",
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
    }
    if menus := own.get("updatemenus"):
        layout["updatemenus"] = [place | menu for menu in menus]
    return Figure(_painted(spec["data"], colours), _painted(layout, colours))


def _painted(value: Any, colours: dict[str, str]) -> Any:
    """`value` with each name of a colour replaced by the colour."""
    if isinstance(value, dict):
        return {key: _painted(item, colours) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_painted(item, colours) for item in value]
    if not isinstance(value, str) or not (named := re.fullmatch(r"@(\w+)(?:/([\d.]+))?", value)):
        return value
    colour = colours[named[1]]
    if not named[2]:
        return colour
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {named[2]})"
