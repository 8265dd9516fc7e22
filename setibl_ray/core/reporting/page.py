"""Self-contained HTML files from templates, which escape all values."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib import resources
from typing import Any

from setibl_ray.core import text
from setibl_ray.core.reporting.charts import Spec


def render(package: str, template: str, *, figures: Mapping[str, Spec], **content: Any) -> str:
    """A page with styles, scripts, Plotly, numbers and pictures inside it.

    Args:
      package: its folder `templates` holds the template, which may extend page.html and import macros.html.
      figures: by name; the template shows each with `figure(name, …)`.
      content: all other variables of the template; a missing one is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    loaders = [PackageLoader(name) for name in dict.fromkeys((package, __package__))]
    pages = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    pages.filters |= {
        name: getattr(text, name) for name in ("number", "percent", "spread", "gained", "counted")
    }
    own = resources.files(__package__)
    scripts = {
        name: Markup(source.replace("</script", "<\\/script"))  # our own and Plotly's: nothing from data
        for name, source in (
            ("style", own.joinpath("page.css").read_text(encoding="utf-8")),
            ("script", own.joinpath("page.js").read_text(encoding="utf-8")),
            ("plotly", get_plotlyjs()),
        )
    }
    return pages.get_template(template).render(figures=figures, **scripts, **content)


def image_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
