"""The notebooks of docs/, each executed in an empty folder; with WRITE_DOCS=1 they are stored with what they showed.

Figures are stored as pictures, which every reader of notebooks shows, not as a few hundred kilobytes of JavaScript.
"""

import base64
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))
PLOTLY = "application/vnd.plotly.v1+json"
CODES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    own = nbformat.read(request.param, as_version=4)
    own.path = request.param
    return own


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4


def test_what_is_stored_is_whole_and_small(notebook):
    path = notebook.pop("path")
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(TransformerManager().transform_cell(cell.source), cell.id, "exec")
            assert cell.execution_count, f"{path.name}: a cell was not executed: WRITE_DOCS=1"
        for link in re.findall(r"\]\(([^)#:]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / link).exists(), link
    shown = [
        output
        for output in outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not shown, f"{path.name}: {shown[0]}"


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_it_runs(notebook, tmp_path, monkeypatch, request):
    path = notebook.pop("path")
    # For !python.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        notebook, timeout=1500, coalesce_streams=True, record_timing=False, resources=place
    ).execute()
    for output in outputs(notebook):
        assert output.get("name") != "stderr", f"{path.name}: {output}"
        assert "error:" not in output.get("text", ""), f"{path.name}: {output}"
    if os.environ.get("WRITE_DOCS"):
        chromium = request.getfixturevalue("chromium")
        for output in outputs(notebook):
            tidy(output, tmp_path, chromium)
        notebook.metadata.pop("widgets", None)
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        nbformat.write(notebook, path)


def tidy(output, folder, chromium):
    """Leave no path of this machine, no colour codes, and pictures for figures."""
    if "text" in output:
        output["text"] = CODES.sub("", output["text"].replace(f"{folder}/", ""))
    data = output.get("data", {})
    if PLOTLY in data:
        output["data"] = {
            "image/png": picture(data[PLOTLY], folder, chromium),
            "text/plain": "a Plotly figure",
        }
    for kind in ("text/plain", "text/html"):
        if kind in data:
            data[kind] = CODES.sub("", data[kind].replace(f"{folder}/", ""))


def picture(figure, folder, chromium):
    from plotly import io

    done = "document.documentElement.dataset.drawn = 1"
    page, png = folder / "figure.html", folder / "figure.png"
    io.write_html(figure, page, include_plotlyjs=True, post_script=done, config={"displayModeBar": False})
    chromium.open(page, width=760)
    chromium.screenshot(png, height=figure["layout"]["height"] + 10)
    return base64.b64encode(png.read_bytes()).decode()
