"""Run the tutorials from top to bottom and store them with their outputs.

python docs/tutorials/store.py [NAME.ipynb …]

What belongs to the machine is left out: standard error, execution times, and second forms of a picture.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def clean(cell) -> None:
    """Leave what a reader sees."""
    cell.metadata.pop("execution", None)
    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            output.data = {"image/png": output.data["image/png"]}


def store(path: Path) -> None:
    """Run one notebook in an empty folder, and write it where it was."""
    notebook = nbformat.read(path, 4)
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            clean(cell)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for chosen in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        store(chosen)
