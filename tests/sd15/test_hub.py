"""What the hub's answers become, asked of a hub on this machine by huggingface_hub itself; no torch."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

Hub = runpy.run_path(str(Path(__file__).parents[1] / "hub.py"))["Hub"]
CODE = """
import json, sys, time
time.sleep = lambda _: None  # huggingface_hub asks six times, with pauses
from raft_diffusion.sd15.hub import fetch
for repo, name, revision in json.loads(sys.argv[1]):
    try:
        print("found", fetch(repo, name, revision=revision).read_text())
    except ValueError as error:
        print(error)
"""
UNKNOWN = "the hub has no model owner/none, or it is private: check the spelling, or log in with `hf auth login` if it"
GATED = "the model owner/gated is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
REVISION = "the model owner/name has no revision 'v9'; give one of its branches, tags or commits"
ENTRY = (
    "owner/name on the hub holds no config.json, so it is no model in the diffusers layout; download its single file"
)


@pytest.fixture
def ask(tmp_path):
    """One line for each (repository, file, revision); `env` for a hub that is elsewhere."""

    def ask(*wanted, home="home", **env):
        given = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        process = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(wanted)],
            env=given | {"HF_HOME": str(tmp_path / home), "HF_HUB_DISABLE_TELEMETRY": "1"} | env,
            capture_output=True,
            text=True,
            check=True,
        )
        return process.stdout.splitlines()

    return ask


def test_every_answer_of_the_hub_is_one_sentence(ask, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(name)
    main, v2, none = (
        ("owner/name", "model_index.json", None),
        ("owner/name", "model_index.json", "v2"),
        ("owner/none", "model_index.json", None),
    )
    with Hub({"owner/name": {"main": tmp_path / "a", "v2": tmp_path / "b"}, "owner/gated": None}) as hub:
        others = [
            ("owner/name", "model_index.json", "v9"),
            none,
            ("owner/gated", "model_index.json", None),
            ("owner/name", "config.json", None),
            ("own--er/name", "model_index.json", None),
        ]
        answers = ask(main, v2, *others, HF_ENDPOINT=hub.url)
        assert answers[:2] == ["found a", "found b"]
        expected = [REVISION, UNKNOWN, GATED, ENTRY, "'own--er/name' is no hub id; one looks like owner/name"]
        assert len(answers) == 7
        for answer, start in zip(answers[2:], expected, strict=True):
            assert answer.startswith(start)
        (tmp_path / "file").touch()
        (broken,) = ask(main, home="file", HF_ENDPOINT=hub.url)
        assert broken.startswith("cannot get the model owner/name from the hub (") and "try again later" in broken
        asked = len(hub.requests)
        cached, missing = ask(v2, none, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert len(hub.requests) == asked
    assert cached == "found b"
    cache = tmp_path / "home" / "hub"
    assert missing == (
        f"the model owner/none is not in the cache ({cache}), and HF_HUB_OFFLINE forbids to ask the hub: unset it once "
        "to download, or give a folder or file"
    )
    cached, missing = ask(main, none, HF_ENDPOINT=hub.url)  # the hub is gone
    assert cached == "found a"
    assert missing.startswith(f"the model owner/none is not in the cache ({cache}), and the hub did not answer (")
    assert missing.endswith("): check the network, or give a folder or file")
