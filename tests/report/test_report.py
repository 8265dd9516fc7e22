"""report.html: what it holds, what it costs, and that a real browser draws it."""

import html.parser
import io
import json
import re
import time

import browser
import numpy as np
import pytest
import runs as fake
from PIL import Image

from setibl_ray import evaluate, report
from setibl_ray.reporting import figures, gallery, page
from setibl_ray.reporting.captions import CAPTIONS
from setibl_ray.runs import load_run

SECTIONS = {"result", "trust", "found", "candidates", "scores", "training", "time", "data", "making"}


class Outline(html.parser.HTMLParser):
    """Ids, addresses of everything loaded, and the figures' JSON of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.loaded, self.figures, self._in_figures = set(), [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.ids.add(own.get("id"))
        self.loaded += [own[name] for name in ("src", "href") if name in own and tag != "a"]
        self._in_figures = own.get("id") == "figures"

    def handle_data(self, data):
        if self._in_figures:
            self.figures += data


@pytest.fixture(scope="module")
def examined(trained):
    """The run over real shards, with metrics, baselines and report."""
    assert evaluate.entry([str(trained), "--baselines", "--bootstrap", "50"]) == 0
    assert report.entry([str(trained)]) == 0
    return trained


def test_the_page_holds_everything_and_loads_nothing(examined):
    text = (examined / "report.html").read_text()
    outline = Outline(text)
    assert outline.ids >= SECTIONS
    assert all(address.startswith("data:") for address in outline.loaded)
    drawn = json.loads(outline.figures)
    assert set(drawn) == set(CAPTIONS) - {"compared-auc", "compared-roc"}
    assert {f"figure-{name}" for name in drawn} <= outline.ids
    assert text.count('class="cadence"') == 3 * 6 + 2 * 6
    assert ">ON<" in text
    assert ">OFF<" in text
    assert " Hz<" in text
    assert " s<" in text


def test_without_shards_the_report_says_so(tmp_path, capsys):
    path = fake.write_run(tmp_path / "run", n_train=100, folds=2, epochs=2, root=str(tmp_path / "gone"))
    assert report.entry([str(path)]) == 0
    text = (path / "report.html").read_text()
    assert "No pictures" in text
    assert 'class="cadence"' not in text
    assert "evaluate" in text  # how to have it checked
    assert report.entry([str(path), "--data", str(tmp_path / "elsewhere")]) == 2
    assert "elsewhere" in capsys.readouterr().err


def test_a_run_without_kinds_groups_or_test_set(tmp_path):
    path = fake.write_run(tmp_path / "run", n_train=100, folds=2, epochs=1, kinds=False)
    (path / "submission.csv").unlink()
    assert report.entry([str(path)]) == 0
    assert "found" not in Outline((path / "report.html").read_text()).ids


def test_names_from_the_data_are_text_not_markup(tmp_path):
    rows = fake.records(60, 2, np.random.default_rng(0))
    rows["image_id"] = [f"</script><b id=injected{i}>" for i in range(60)]
    rows["kind"] = "<i id=kind>"
    path = fake.write_run(tmp_path / "run", rows=rows, folds=2, epochs=1)
    assert report.entry([str(path)]) == 0
    assert not {"injected0", "kind"} & Outline((path / "report.html").read_text()).ids


def test_comparing_runs(tmp_path, capsys):
    rows = fake.records(200, 4, np.random.default_rng(0))
    paths = [
        str(
            fake.write_run(tmp_path / name, rows=rows, folds=4, epochs=epochs, seed=epochs, strength=strength)
        )
        for name, epochs, strength in (("short", 2, 0.5), ("long", 3, 3.0))
    ]
    assert report.entry([*paths, "--out", str(tmp_path / "both.html")]) == 0
    text = (tmp_path / "both.html").read_text()
    assert "long ranks best of 2 runs" in text
    assert "<td>epochs</td><td>(2,)" not in text
    assert "<td>epochs</td><td>[2]</td><td>[3]</td>" in text
    other = fake.write_run(tmp_path / "other", n_train=120, folds=4, epochs=2)
    assert report.entry([paths[0], str(other), "--out", str(tmp_path / "no.html")]) == 2
    assert "oof.csv" in capsys.readouterr().err


def test_60000_rows_take_less_than_30_s_and_15_mb(tmp_path):
    path = fake.write_run(tmp_path / "run", n_train=60_000, n_test=40_000, positive=0.1, epochs=12)
    start = time.process_time()  # what it takes on a machine of its own
    assert report.entry([str(path)]) == 0  # metrics with 500 resamples are part of it
    assert time.process_time() - start < 30
    assert (path / "report.html").stat().st_size < 15e6


def test_thinned_curves_stay_on_the_curve():
    rng = np.random.default_rng(0)
    x = np.sort(np.concatenate([[1e-5, 1], rng.random(5000), rng.random(5000) ** 6]))
    y = np.sqrt(x)
    thin_x, thin_y = figures.thin(x, y)
    assert len(thin_x) <= figures.MAX_POINTS
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])
    assert np.abs(np.interp(x, thin_x, thin_y) - y).max() < 0.02
    at = np.log(x)
    assert np.abs(np.interp(at, np.log(thin_x), thin_y) - y).max() < 0.02


def test_many_folds_share_one_colour(tmp_path):
    path = fake.write_run(tmp_path / "run", n_train=400, folds=20, epochs=2)
    traces = figures.roc(load_run(str(path)).oof)["data"]
    assert len(traces) == 22
    assert sum(trace.get("showlegend", True) for trace in traces) == 3


def test_waterfalls_show_panels_in_order_with_gaps():
    panels = np.zeros((112, 40, 6), np.uint8)
    panels[:, :, 4] = 200
    image = np.asarray(Image.open(io.BytesIO(gallery.waterfall(panels))).convert("RGB")).astype(int)
    rows = gallery.MAX_ROWS + gallery.GAP
    assert image.shape == (6 * rows - gallery.GAP, 40, 3)
    first, fifth = image[10], image[4 * rows + 10]
    assert (fifth.sum(axis=1) > 2 * first.sum(axis=1)).all()
    three = gallery.card(panels[:, :, :3], "caption", {})
    assert three.count(">ON<") == 3
    assert "OFF" not in three


def test_every_figure_has_a_caption_and_every_token_a_colour():
    css = page.resources.files("setibl_ray.reporting").joinpath("page.css").read_text()
    source = page.resources.files("setibl_ray.reporting").joinpath("figures.py").read_text()
    tokens = set(re.findall(r'"@([a-z]+\d?)(?=["/])', source))
    assert tokens
    assert all(f"--{token}:" in css for token in tokens)
    assert all(title and how.endswith((".", "?")) for title, how in CAPTIONS.values())


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "chromium is there")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, False), (390, True)])
def test_a_real_browser_draws_every_figure(examined, width, dark):
    with browser.browser() as chromium:
        chromium.open(examined / "report.html", width=width, dark=dark)
        assert chromium.errors() == []
        names = chromium.run("return Object.keys(JSON.parse(document.getElementById('figures').textContent))")
        for name in names:
            shown = chromium.run(
                f"const own = document.getElementById('figure-{name}');"
                "const box = own.querySelector('.main-svg').getBoundingClientRect();"
                "const marks = own.querySelectorAll('.trace path, .trace rect, .point path, .points path').length;"
                "return [box.width, box.right, marks]"
            )
            assert shown[0] > 200, name
            assert shown[1] <= width, name
            assert shown[2] > 0, name
        assert chromium.run("return document.scrollingElement.scrollWidth") <= width
        broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
        assert chromium.run(broken) == 0
        ink, paper = chromium.run(
            "const own = getComputedStyle(document.body); return [own.color, own.backgroundColor]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1]) == dark
