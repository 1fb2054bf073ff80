"""A run that learns from a folder of pictures alone gets better at what they show."""

import json
import runpy
from pathlib import Path

import pytest
import torch

OFFLINE = runpy.run_path(str(Path(__file__).parent / "bench" / "offline.py"))
CHANGES = [
    "threads=1",
    "rounds=2",
    "guard.enabled=false",
    "prompts.held_out=[]",
    "evaluation.pairs=64",
    "evaluation.ood_pairs=0",
    "evaluation.best_of=2",
]


@pytest.mark.slow
def test_the_judge_sees_more_of_what_the_folder_shows(tmp_path):
    threads = torch.get_num_threads()
    result = OFFLINE["learn"](tmp_path, pictures=128, changes=CHANGES)
    torch.set_num_threads(threads)
    low, _ = result["judge"]["object"]["ci95"]
    assert low > 0.2
    rows = (
        (tmp_path / "run" / "rounds" / "001" / "candidates" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert {json.loads(row)["source"] for row in rows} == {f"folder:{tmp_path / 'pictures'}"}
