"""candidates.html in a real browser: pictures, filters, verdicts; ten thousand candidates stay usable."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from setibl_ray.seti.observations.lines import span_s
from setibl_ray.seti.search.channel import picture
from setibl_ray.seti.search.page import render

ROWS = np.concatenate([k * 330 + (np.arange(16) + 0.5) * 18.25 for k in range(6)]).reshape(6, 16)
TIME_S = ROWS - (ROWS[0, 0] + ROWS[-1, -1]) / 2
EVIL = "</script><b id=evil>"


def page(n, evil=""):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 16, 400)).astype(np.float32)
    z[::2, :, 199:202] += 6
    one = picture(z, 200, 0.0, TIME_S, 2.794)
    rows = [
        {
            "rank": k + 1, "id": f"x-{k}{evil}", "observation": "x", "score": round(1 - 0.5 * k / n, 6),
            "f_start_mhz": 1400 + k / 1e4, "f_end_mhz": 1400 + k / 1e4, "drift_hz_s": 0.01 * (k % 7), "width_hz": 3.0,
            "snr_on1": 20.0, "snr_on2": 21.0, "snr_on3": 22.0, "snr_off1": 1.0, "snr_off2": 0.0, "snr_off3": 2.0,
            "n_windows": 1, "bin": 1, "flags": "excluded" if k % 2 else "", "source": "A", "picture": one,
        }
        for k in range(n)
    ]  # fmt: skip
    summary = {
        "run": {"root": f"runs/a{evil}", "weights_sha256": ["0" * 64]}, "settings": {"bins": [1, 8]},
        "observations": [{"observation": "x"}], "candidates": n, "ghz": 0.002, "channels": 3, "n_windows": 1234,
        "max_drift_hz_s": 3.0, "threshold": {"value": 0.5, "how": f"given {evil}"},
        "on_off_exchanged": [{"threshold": 0.5, "candidates": 2, "per_ghz": 900.0}],
        "recall": [{"bin": 1, "snr_from": 8.0, "snr_to": 10.0, "injected": 4, "found": 3, "recall": 0.75}],
        "damage": [{"observation": "x", "channel": 0, "file": f"a.h5{evil}", "what": "1 % not finite"}],
    }  # fmt: skip
    header = SimpleNamespace(source="A")
    observation = SimpleNamespace(name="x", dt_s=18.25, time_s=TIME_S, headers=[header] * 6)
    assert span_s(TIME_S) > 1900
    return render(rows, summary, [observation])


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page(chromium, tmp_path, width):
    path = tmp_path / "candidates.html"
    path.write_text(page(60))
    chromium.open(path, width=width)
    assert chromium.errors() == []
    assert chromium.run("return document.scrollingElement.scrollWidth") <= width
    assert chromium.run("return document.querySelectorAll('.candidate').length") == 24
    colours = chromium.run(
        "const c = document.querySelector('canvas'), all = [0, 0, c.width, c.height];"
        "const d = c.getContext('2d').getImageData(...all).data; const seen = new Set();"
        "for (let i = 0; i < d.length; i += 4) seen.add(d[i] << 16 | d[i+1] << 8 | d[i+2]);"
        "return seen.size"
    )
    assert colours > 8
    shown = "return document.getElementById('count').textContent"
    assert chromium.run(shown) == "60 of 60"
    change = (
        "{{ const s = document.getElementById('{}'); s.value = '{}'; s.dispatchEvent(new Event('{}')); }} "
    )
    assert chromium.run(change.format("show", "clean", "change") + shown) == "30 of 60"
    assert chromium.run(change.format("least", "0.75", "input") + shown) == "16 of 60"
    find = change.format("show", "all", "change") + change.format("find", "1400.0012", "input")
    assert chromium.run(find + shown) == "1 of 60"
    chromium.run("document.querySelector('[data-verdict=keep]').click()")
    assert chromium.run("return document.querySelector('[data-verdict=keep]').ariaPressed") == "true"
    assert "x-12" in chromium.run("return exported().split('\\n').find((line) => line.endsWith(',keep'))")
    chromium.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '2', bubbles: true}))")
    assert chromium.run("return document.querySelector('[data-verdict=rfi]').ariaPressed") == "true"
    assert chromium.errors() == []


def test_names_are_text_wherever_they_come_from(chromium, tmp_path):
    path = tmp_path / "candidates.html"
    path.write_text(page(2, EVIL))
    chromium.open(path, width=1400)
    assert chromium.run("return document.getElementById('evil')") is None
    assert chromium.run("return document.querySelectorAll('.candidate').length") == 2


def test_ten_thousand_candidates(chromium, tmp_path):
    path = tmp_path / "candidates.html"
    path.write_text(page(10_000))
    assert path.stat().st_size < 90e6
    chromium.open(path, width=1400)
    assert chromium.run("return document.getElementById('count').textContent") == "10000 of 10000"
    shown = chromium.run(
        "document.getElementById('find').value = 'x-77'; select(); return document.getElementById('count').textContent"
    )
    assert shown == f"{sum('x-77' in f'x-{k} ' for k in range(10_000))} of 10000"
    assert chromium.run("return document.querySelectorAll('.candidate').length") == 24


def test_the_data_are_json(tmp_path):
    text = page(1, EVIL)
    data = text.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["candidates"][0]["id"] == f"x-0{EVIL}"
