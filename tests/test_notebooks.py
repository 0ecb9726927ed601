"""The notebooks run to their end, leave nothing in the current folder, and are kept bare."""

import ast

import nbformat
import pytest
from nbclient import NotebookClient
from test_structure import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_SECONDS = 600  # of one cell, on a busy machine

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@notebooks
def test_a_notebook_is_committed_without_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@notebooks
def test_a_notebook_defines_nothing(path):
    """What is worth a function belongs in nowcast."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
            assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda}


@pytest.mark.slow
@notebooks
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    places = {"TMPDIR": temporary, "IPYTHONDIR": temporary, "JUPYTER_RUNTIME_DIR": temporary}
    for name, folder in places.items():
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # must not matter
    client = NotebookClient(
        notebook,
        timeout=LONGEST_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(here)}},
    )
    client.execute()
    assert list(here.iterdir()) == []
    drawn = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(drawn) >= 4
