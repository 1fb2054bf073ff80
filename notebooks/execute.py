"""Run the notebooks and keep what they show: `python notebooks/execute.py [NAME.ipynb ...]`, all without a name."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
PICTURES = ("image/png", "image/jpeg")
LONGEST = 3600  # seconds a cell: a busy machine takes its time


def execute(path: Path, folder: Path) -> Any:
    """The notebook at `path`, run in `folder`, with its new outputs. Raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=LONGEST,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _tidy(output)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "ran": fingerprint(notebook)}
    return notebook


def fingerprint(notebook: Any) -> str:
    """Of the code cells: what was changed since the outputs were made shows."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\x1f".join(code).encode()).hexdigest()


def _tidy(output: Any) -> None:
    """Keep the smaller form of a picture alone: its text holds an address in memory, which differs every time."""
    data = output.get("data", {})
    found = [kind for kind in PICTURES if kind in data]
    if found:
        smallest = min(found, key=lambda kind: len(data[kind]))
        output["data"] = {smallest: data[smallest]}


def main() -> None:
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
