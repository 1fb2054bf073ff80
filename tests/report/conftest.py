"""A whole run to report on, and a copy of it that a test may change."""

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RUNS.make_whole(tmp_path_factory.mktemp("runs") / "monet")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "monet")
