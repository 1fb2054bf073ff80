"""The notebooks are a text-book: what they show was really made by their code, and their code still runs."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import raft_diffusion as rd

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ["quickstart", "resolution_256", "monet_style_cat", "own_reward", "llm"]
LARGEST = 320_000  # bytes of one notebook
FEWEST = {"llm": 2}  # pictures of a notebook: its samples are words
PLACE = re.compile(r"(?<![\w.:/-])/(?:\w[\w.-]*/)+|[A-Za-z]:\\|\b0x[0-9a-f]{6,}")
STRAY = ("warning", "deprecat", "traceback")
SETUP = ('pip install "FOLDER[notebooks]"', "Stable Diffusion 1.5", "free GPU notebook service", "not yet measured")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(output):
    """What an output says in words."""
    return output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))


def pictures(outputs):
    found = (output.get("data", {}) for output in outputs)
    encoded = [data[kind] for data in found for kind in ("image/png", "image/jpeg") if kind in data]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def ends_with_a_picture(cells):
    """Whether the last output of all is a picture that can be seen."""
    return any(min(picture.size) >= 128 for picture in pictures(cells[-1].outputs[-1:]))


@pytest.fixture(scope="module")
def executor():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import execute

        yield execute
        del sys.modules["execute"]


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_what_the_code_printed(executor, name):
    notebook = read(name)
    cells = code_cells(notebook)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["ran"] == executor.fingerprint(notebook), f"run notebooks/execute.py {name}.ipynb again"


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_small_and_clean(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    outputs = [output for cell in code_cells(read(name)) for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    words = "\n".join(map(said, outputs))
    assert not PLACE.search(words) and not any(word in words.lower() for word in STRAY)
    assert not PLACE.search(json.dumps(read(name).metadata))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_its_ideas_and_ends_with_a_picture(name):
    cells = code_cells(read(name))
    assert sum(bool(pictures(cell.outputs)) for cell in cells) >= FEWEST.get(name, 4)
    assert ends_with_a_picture(cells)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_says_how_to_switch_to_stable_diffusion(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown" and all(words in " ".join(first.source.split()) for words in SETUP)
    names = {"rd": rd, "changes": []}
    exec(re.search(r"```python\n(.*?)```", first.source, re.DOTALL)[1], names)
    assert names["config"].model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert f"raft-diffusion plan {names['config'].name}" in first.source


def test_no_code_is_copied_between_notebooks():
    lines: dict[str, str] = {}
    for name in NAMES:
        for cell in code_cells(read(name))[1:]:
            key = re.sub(r"\s", "", cell.source)
            assert lines.setdefault(key, name) == name, f"{name} and {lines[key]} share a cell:\n{cell.source}"


def test_a_path_and_an_address_are_seen():
    for text in ("/home/me/x.png", "saved to /tmp/a/b", "C:\\Users", "<Image at 0x7F2a3b4c5d>".lower()):
        assert PLACE.search(text), text
    for text in ("https://arxiv.org/abs/2304.06767", "runs/quickstart/lora", "and/or", "16 / 8"):
        assert not PLACE.search(text), text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(executor, name, tmp_path):
    notebook = executor.execute(FOLDER / f"{name}.ipynb", tmp_path)
    assert ends_with_a_picture(code_cells(notebook))
