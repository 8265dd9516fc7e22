"""report.html: what it holds, what it costs, and that a real browser draws it."""

import html.parser
import inspect
import io
import json
import re

import numpy as np
import pytest
import runs as fake
from PIL import Image

from setibl_ray import evaluate, report
from setibl_ray.core.reporting import page, sweep_page
from setibl_ray.seti.evaluation import metrics, postprocess
from setibl_ray.seti.evaluation.finished import load_run
from setibl_ray.seti.reporting import figures, gallery

FIGURES = {
    "roc", "precision-recall", "folds", "snr", "needles", "interference", "distribution", "calibration", "auc", "loss",
    "learning-rate", "timeline", "classes", "balance",
}  # fmt: skip
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
    assert set(drawn) == FIGURES
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
    text = (path / "report.html").read_text()
    assert not {"injected0", "kind"} & Outline(text).ids
    figures = text.split('<script id="figures" type="application/json">')[1].split("</script>")[0]
    figures = json.dumps(json.loads(figures))  # without the escapes of JSON in HTML
    assert "<i id=kind>" not in figures  # Plotly would take it for HTML, too
    assert "&lt;i id=kind&gt;" in figures


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs over the same rows, the second better than the first."""
    base, rows = tmp_path_factory.mktemp("pair"), fake.records(200, 4, np.random.default_rng(0))
    common = {"rows": rows, "folds": 4}
    return [
        str(fake.write_run(base / "short", epochs=2, seed=2, strength=0.5, **common)),
        str(fake.write_run(base / "long", epochs=3, seed=3, strength=3.0, **common)),
    ]


@pytest.fixture(scope="module")
def compared(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "both.html"
    assert report.entry([*pair, "--out", str(out)]) == 0
    return out


def test_comparing_runs(pair, compared, tmp_path, capsys):
    text = compared.read_text()
    assert "long ranks best of 2 runs" in text
    assert "<td>epochs</td><td>2</td><td>3</td>" in text
    assert set(json.loads(Outline(text).figures)) == {"compared-auc", "compared-roc", "compared-snr"}
    other = fake.write_run(tmp_path / "other", n_train=120, folds=4, epochs=2)
    assert report.entry([pair[0], str(other), "--out", str(tmp_path / "no.html")]) == 2
    assert "oof.csv" in capsys.readouterr().err


def test_the_page_hardly_grows_with_the_rows(tmp_path):
    sizes = []
    for n in (2_000, 20_000):
        path = fake.write_run(tmp_path / str(n), n_train=n, n_test=n, positive=0.1, epochs=2)
        summary = metrics.summarise(load_run(str(path)).oof, n_bootstrap=2)
        (path / "metrics.json").write_text(json.dumps(summary))
        assert report.entry([str(path)]) == 0
        sizes.append((path / "report.html").stat().st_size)
    assert sizes[1] - sizes[0] < 300_000
    assert sizes[1] < 15e6


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
    assert [lane.on for lane in gallery.card(panels, {}).lanes] == [True, False] * 3
    assert [lane.on for lane in gallery.card(panels[:, :, :3], {}).lanes] == [True] * 3


def test_every_colour_that_a_figure_names_is_the_page_s():
    css = page.resources.files("setibl_ray.core.reporting").joinpath("page.css").read_text()
    sources = [inspect.getsource(module) for module in (figures, sweep_page)]
    tokens = set(re.findall(r'"@([a-z]+\d?)(?=["/])', "".join(sources)))
    assert tokens
    assert all(f"--{token}:" in css for token in tokens)


def test_every_figure_has_a_title_and_a_caption(examined):
    cards = re.findall(r'<figure class="card">(.*?)</figure>', (examined / "report.html").read_text(), re.S)
    assert len(cards) == len(FIGURES)
    for card in cards:
        title, how = (
            re.search(r"<h3>(.+)</h3>", card)[1],
            re.search(r'<p class="how">(.+)</p>', card, re.S)[1],
        )
        assert title
        assert how.endswith((".", "?"))


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, False), (390, True)])
def test_a_real_browser_draws_every_figure(chromium, examined, width, dark):
    drawn = chromium.check(examined / "report.html", width=width, dark=dark)
    assert set(drawn) == FIGURES
    ink, paper = chromium.run(
        "const own = getComputedStyle(document.body); return [own.color, own.backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1]) == dark


def test_a_real_browser_draws_a_comparison(chromium, compared):
    assert chromium.check(compared, width=390) == ["compared-auc", "compared-roc", "compared-snr"]


# What colour-blind eyes make of linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear(colour):
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_can_be_told_apart_by_everybody():
    css = page.resources.files("setibl_ray.core.reporting").joinpath("page.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(themes) == 2  # light and dark
    for theme in themes:
        named = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for sight, matrix in SIGHT.items():
            for group, least in (([f"c{i}" for i in range(8)], 15), (["needle", "haystack"], 60)):
                seen = [lab(np.array(matrix) @ linear(named[name])) for name in group]
                apart = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
                assert apart > least, (sight, group)
        paper = lab(linear(named["card"]))
        assert min(abs(lab(linear(named[f"c{i}"]))[0] - paper[0]) for i in range(8)) > 25


def test_the_timeline_shows_attempts_phases_and_spans_of_the_test_set():
    folds = {str(fold): {"timings": {}, "attempts": []} for fold in range(2)}
    lost = {"outcome": "failed", "cause": "node-died", "decision": "retry-elsewhere"}
    folds["0"] |= {
        "timings": {"open_s": 1, "build_s": 2, "train_s": 20, "predict_valid_s": 3},
        "attempts": [
            {"started_s": 110, "ended_s": 120, "node": "a", **lost},
            {"started_s": 125, "ended_s": 155, "node": "b", "outcome": "done"},
        ],
        "predictions": [
            {"rows": [0, 600], "started_s": 155, "ended_s": 160, "node": "a", "outcome": "done"},
            {"rows": [600, 1200], "started_s": 156, "ended_s": 158, "node": "b", **lost},
            {"rows": [600, 1200], "started_s": 158, "ended_s": 163, "node": "c", "outcome": "done"},
        ],
    }
    folds["1"]["attempts"] = [
        {"started_s": 110, "ended_s": 112, "outcome": "interrupted"},
        {"started_s": 112, "ended_s": None, "outcome": "running"},
    ]
    drawn = figures.timeline({"started_s": 100, "folds": folds})["data"]
    bars = {trace["name"]: list(zip(trace["y"], trace["base"], trace["x"])) for trace in drawn}
    assert bars == {
        "start": [("fold 0", 25, 4)],
        "open data": [("fold 0", 29, 1)],
        "build model": [("fold 0", 30, 2)],
        "train": [("fold 0", 32, 20)],
        "predict held-out rows": [("fold 0", 52, 3)],
        "predict test rows": [("fold 0", 55, 5), ("fold 0", 58, 5)],
        "failed attempt": [("fold 0", 10, 10), ("fold 0", 56, 2)],
        "interrupted or discarded": [("fold 1", 10, 2)],
    }
    test = next(trace for trace in drawn if trace["name"] == "predict test rows")
    assert test["width"] == [0.4, 0.4]  # two at a time, so two strips of the lane
    assert test["offset"] == pytest.approx([-0.4, 0.0])
    assert "test rows 600–1,199, attempt" in test["customdata"][1]
    assert (
        "node-died, then retry-elsewhere"
        in next(t for t in drawn if t["name"] == "failed attempt")["customdata"][1]
    )


def test_what_was_done_after_the_folds_is_shown(tmp_path):
    path = fake.write_run(tmp_path / "run", n_train=100, folds=2, epochs=1)
    run = load_run(str(path))
    done = postprocess.finish(
        run.oof, run.submission.assign(group="sky"), postprocess="group-mean", calibrate="platt"
    )
    summary = metrics.summarise(run.oof.assign(pred=done.oof), n_bootstrap=10) | done.report
    run.oof[["image_id", "target", "fold"]].assign(pred=done.oof).to_csv(path / "oof.csv", index=False)
    (path / "metrics.json").write_text(json.dumps(summary))
    assert report.entry([str(path)]) == 0
    text = (path / "report.html").read_text()
    assert "post-processing: group-mean" in text
    assert "calibration: platt" in text
    curves = json.loads(Outline(text).figures)["calibration"]["data"]
    assert "as the models gave it" in [curve["name"] for curve in curves]
