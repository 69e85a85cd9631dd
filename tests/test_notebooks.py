"""Every notebook runs from top to bottom, and is kept with what it shows.

`uv run python tests/test_notebooks.py` runs them all and writes their outputs into them.
"""

import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SECONDS_PER_CELL = 600  # enough for a busy machine; a cell that hangs fails
OF_A_MACHINE = re.compile(r"(/root|/home|/Users|/tmp|/private|/var|/work)/|[A-Z]:\\\\")


def execute(notebook: nbformat.NotebookNode, directory: Path) -> None:
    """Runs a notebook in place, in a process of its own, as a reader would on a CPU."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TMPDIR": str(directory)}
    environment.pop("XLA_FLAGS", None)  # the suite's eight devices
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(directory)}},
    )
    client.execute(env=environment)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_is_a_notebook():
    assert NOTEBOOKS


def test_a_notebook_is_kept_with_its_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert not any(output.get("name") == "stderr" for output in outputs)  # no warnings
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert notebook.metadata.keys() <= {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)


def test_a_notebook_says_nothing_of_the_machine_that_ran_it(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/png", None)
    assert not OF_A_MACHINE.search(nbformat.writes(notebook))


@pytest.mark.slow
def test_a_notebook_runs(notebook, tmp_path):
    execute(notebook, tmp_path)
    assert not list(tmp_path.iterdir()), "a notebook leaves nothing behind"


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as directory:
            execute(notebook, Path(directory))
        # What the kernel reports of itself differs from one Python to the next.
        notebook.metadata.language_info = {"name": "python"}
        for cell in notebook.cells:
            cell.metadata.clear()
        nbformat.write(notebook, path)
