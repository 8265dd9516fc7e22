"""The site: built without a warning, every link and anchor in it leads somewhere, every page fits a phone."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

REPOSITORY = Path(__file__).parents[1]
SITE = REPOSITORY / "build/site"
pytestmark = [pytest.mark.docs, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pages():
    done = subprocess.run(
        [sys.executable, REPOSITORY / "docs/site/build.py"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {path.relative_to(SITE).as_posix(): Page(path.read_text()) for path in SITE.rglob("*.html")}
    assert len(found) > 25
    return found


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.ids.add(own.get("id"))
        self.links |= {own[name] for name in ("href", "src") if own.get(name)}


def test_every_link_leads_somewhere(pages):
    wrong = []
    for name, page in pages.items():
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:", link):
                assert link.startswith(("https://", "data:", "mailto:")), (name, link)
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
            missing = anchor and path in pages and anchor not in pages[path].ids
            if missing or not (SITE / path.partition("?")[0]).is_file():
                wrong.append((name, link))
    assert not wrong


def test_nothing_is_fetched_from_elsewhere(pages):
    for name in pages:
        for tag in re.findall(r"<(?:script|link|img)[^>]*>", (SITE / name).read_text()):
            assert not re.search(r"(?:src|href)=\"(?:https?:)?//", tag), (name, tag)


@pytest.mark.parametrize("width", [390, 1400])
def test_pages_fit(pages, chromium, width):
    for name in pages:
        chromium.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        chromium.call("url", {"url": (SITE / name).as_uri()})
        assert chromium.run("return document.scrollingElement.scrollWidth") <= width, name
        assert chromium.errors() == [], name
        broken = (
            "return [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)"
        )
        chromium.run("for (const image of document.images) image.loading = 'eager'")
        assert chromium.run(broken) == [], name
