"""The carried language models, as they lie in the package."""

import hashlib
import json
from pathlib import Path

import raft_diffusion
from raft_diffusion.llm import pocket
from raft_diffusion.llm.pocket import recipe

MANIFEST = json.loads((pocket.WEIGHTS / "manifest.json").read_text(encoding="utf-8"))


def test_the_manifest_names_every_file_and_its_hash():
    found = {path.relative_to(pocket.WEIGHTS).as_posix(): path for path in pocket.WEIGHTS.rglob("*") if path.is_file()}
    assert set(found) == {*MANIFEST["files"], "manifest.json", "MODEL_CARD.md"}
    for name, row in MANIFEST["files"].items():
        data = found[name].read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["sha256"], row["bytes"]), name


def test_they_were_made_by_this_recipe_within_half_an_hour():
    assert (MANIFEST["recipe_version"], MANIFEST["seed"]) == (recipe.VERSION, recipe.SEED)
    assert {name: row["steps"] for name, row in MANIFEST["stages"].items()} == recipe.STEPS
    assert MANIFEST["seconds"] < 30 * 60
    assert all(MANIFEST["stages"][name]["accuracy"] > 0.9 for name in ("sentiment", "held_out", "judge"))


def test_they_stay_within_4_mb_and_all_carried_weights_within_20():
    package = Path(raft_diffusion.__file__).parent
    sizes = [sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in package.rglob("weights")]
    own = sum(path.stat().st_size for path in pocket.WEIGHTS.rglob("*") if path.is_file())
    assert len(sizes) == 2
    assert own <= 4_000_000
    assert sum(sizes) <= 20_000_000
