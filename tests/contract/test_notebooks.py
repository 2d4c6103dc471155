"""Every tutorial runs from top to bottom, offline, with its fits shortened; each is stored with outputs of a run."""

import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

MOST = 1_500_000
"""Characters of a notebook with its pictures."""
TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_notebooks_are_stored_with_the_outputs_of_one_run(path):
    """If this fails, see CONTRIBUTING.md for the command."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = path.read_text(encoding="utf-8")
    assert "/tmp/" not in text  # nothing of the machine
    assert len(text) < MOST


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_notebooks_run(path, small, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, 4)
    shortened = (
        f"from oneshot_medad import config\nconfig.RECIPES['default'] = config.Recipe.from_dict({small.to_dict()})"
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(shortened))
    execute(notebook, tmp_path)


@pytest.mark.slow
def test_a_fresh_kernel_shows_pictures_and_short_texts(fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "detector")
    first = (
        "from oneshot_medad import AnomalyDetector, datasets\nsample = datasets.load_sample(1, 1)\n"
        "detector = AnomalyDetector.from_pretrained('detector')\nfound = detector.predict(sample.images)"
    )
    shown = {
        "found": {"text/html"},
        "found.plot()": {"image/png"},
        "found.overlay(1)": {"image/png"},
        "detector.explain(sample.images[1])": {"image/png"},
        "found.verdicts": set(),
    }
    cells = [nbformat.v4.new_code_cell(text) for text in (first, *shown)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute(notebook, tmp_path)
    for cell, kinds in zip(notebook.cells[1:], shown.values(), strict=True):
        (output,) = cell.outputs
        assert kinds <= output.data.keys(), cell.source
        assert len(output.data["text/plain"]) < 200, cell.source


def execute(notebook, folder):
    """Run all cells in a kernel of their own, as nobody has set it up."""
    with tempfile.TemporaryDirectory() as sockets:  # the kernel speaks over files: no port is opened
        channel = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        where = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, config=channel, timeout=1200, kernel_name="python3", resources=where).execute()
