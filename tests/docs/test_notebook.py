"""The notebook of `examples/` runs from a folder of pictures to a labelled map, with less work."""

import os
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # minutes on two cores: `make test-all`

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[2]
LESS = {
    '"1200"': '"64"',
    "data.size=64": "data.size=16",
    "data.batch=64": "data.batch=16",
    "encoder.width=16": "encoder.width=8",
    "train.length=8epochs": "train.length=2steps",
}


@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client = pytest.importorskip("nbclient")
    shutil.copy(ROOT / "examples" / "pictures.py", tmp_path)
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(ROOT / "examples" / "photos.ipynb", as_version=4)
    for cell in notebook.cells:
        for more, less in LESS.items():
            cell.source = cell.source.replace(more, less)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "untrained encoder" in "".join(output.get("text", "") for output in outputs)


def test_the_notebook_holds_no_outputs():
    notebook = nbformat.read(ROOT / "examples" / "photos.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
