"""The blocks of docs/python.md run in order, as they are printed there; so do the cells of the tutorial notebook."""

import json
import re
from pathlib import Path

import pytest

from privtune.device.client import client as client_module
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    models = {
        "minilm": save_model(folder / "enc", "bert", "classification", num_labels=2),
        "smollm2": save_model(folder / "dec", "llama", "causal-lm"),
    }
    made = ProcessCloud(folder / "cloud", models)
    yield made
    made.stop()


@pytest.fixture
def namespace(cloud, tmp_path, monkeypatch):
    """Where a reader is: beside his reviews, with a home whose `privtune.yaml` spares the test the recognisers."""

    class Local:
        url, api_key = cloud.http_url, cloud.api_key

        def __init__(self, models, folder):
            assert list(models) == ["minilm"]

        def stop(self):
            pass

    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "privtune.yaml").write_text("protect: none\n")
    sentences = write_sentences(tmp_path / "reviews.tsv", 48).read_text()
    (tmp_path / "reviews.csv").write_text(sentences.replace("\t", ",").replace("sentence,", "text,"))
    monkeypatch.setenv("PRIVTUNE_HOME", str(home))
    monkeypatch.setattr(client_module, "LocalCloud", Local)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    yield names
    if "client" in names:
        names["client"].close()


def _blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def test_every_block_of_the_page_runs(cloud, namespace, capsys):
    blocks = _blocks(DOCS / "python.md")
    assert len(blocks) > 8
    for number, block in enumerate(blocks, start=1):
        here = block.replace("http://127.0.0.1:8080", cloud.http_url).replace("pt-...", cloud.api_key)
        exec(compile(here, f"block {number} of python.md", "exec"), namespace)
    shown = capsys.readouterr().out
    for expected in ("['minilm', 'smollm2']", "INVALID_INPUT 2 --max-length 1", "finished\n", "Done: 6 steps"):
        assert expected in shown


def test_the_block_of_the_readme_runs(cloud, namespace, tmp_path, monkeypatch):
    (block,) = (one for one in _blocks(DOCS.parent / "README.md") if "privtune.device" in one)
    monkeypatch.setenv("PRIVTUNE_CLOUD", cloud.http_url)
    monkeypatch.setenv("PRIVTUNE_API_KEY", cloud.api_key)
    (tmp_path / "reviews.tsv").write_text((tmp_path / "reviews.csv").read_text().replace(",", "\t"))
    exec(compile(block.replace('protect="names"', 'protect="none"'), "README.md", "exec"), namespace)


def test_every_cell_of_the_tutorial_runs(namespace):
    """Without a kernel; `make test-slow` runs it as a notebook does."""
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        exec(compile(cell, f"cell {number} of tutorial.ipynb", "exec"), namespace)
    assert namespace["losses"][-1] > 0
    assert "finished" in namespace["job"]._repr_html_()


@pytest.mark.slow
def test_the_tutorial_runs_as_a_notebook(tmp_path, monkeypatch):
    """With a kernel, a real local cloud and the default protection, on a tiny model."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUTORIAL_MODEL", str(save_model(tmp_path / "enc", "bert", "classification", num_labels=2)))
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    html = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert "<table>" in html[0]
    assert "finished" in html[1]
