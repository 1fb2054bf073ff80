"""A user's own function that hangs: told by the sample, and stopped."""

import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.rewards.custom import load_custom

MODULE = """
import threading, time

release = threading.Event()

def quick(images, prompts):
    return [float(image) for image in images]

def hangs(images, prompts):
    scores = []
    for image in images:
        if image == 2:
            release.wait(60)
        scores.append(float(image))
    return scores

def hangs_at_once(images, prompts):
    release.wait(60)

def hangs_with_all(images, prompts):
    numbers = [float(image) for image in images]
    release.wait(60)
    return numbers

def breaks(images, prompts):
    if 1 in images:
        raise KeyError("no face")
    return [1.0 for _ in images]

def whose(images, prompts):
    threads.append(threading.current_thread() is threading.main_thread())
    return [1.0 for _ in images]

threads = []
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "slow_rewards", raising=False)
    (tmp_path / "slow_rewards.py").write_text(MODULE)
    load_custom("slow_rewards:quick")
    yield sys.modules["slow_rewards"]
    sys.modules["slow_rewards"].release.set()


def samples(count: int) -> list[Sample]:
    return [Sample(Draw(Prompt("cat"), k, k), SimpleNamespace(image=k)) for k in range(count)]


def test_a_function_that_is_in_time_scores_as_without_a_limit(module):
    assert load_custom("slow_rewards:quick", timeout=60)(samples(3)) == {"quick": [0.0, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("function", "where"),
    [
        ("hangs", r"sample [0-9a-f]{10}-002 \('cat'\), the last that it took"),
        ("hangs_at_once", "the 4 samples from [0-9a-f]{10}-000 on"),
        ("hangs_with_all", "the 4 samples from [0-9a-f]{10}-000 on"),
    ],
)
def test_one_that_hangs_is_told_by_the_sample_that_it_took_last(module, function, where):
    reward = load_custom(f"slow_rewards:{function}", timeout=0.3)
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"reward 'slow_rewards:{function}' took more than 0\.3 s for {where}; mend it"
    ):
        reward(samples(4))
    assert time.monotonic() - began < 10


def test_one_that_fails_is_told_as_without_a_limit(module):
    with pytest.raises(ValueError, match=r"failed on sample [0-9a-f]{10}-001 \('cat'\): KeyError: 'no face'"):
        load_custom("slow_rewards:breaks", timeout=60)(samples(3))


def test_only_a_limit_takes_a_thread(module):
    load_custom("slow_rewards:whose")(samples(1))
    load_custom("slow_rewards:whose", timeout=60)(samples(1))
    assert module.threads == [True, False]


def test_the_process_ends_though_the_function_does_not(tmp_path):
    (tmp_path / "forever.py").write_text("import time\ndef sleeps(images, prompts):\n    time.sleep(600)\n")
    code = """
        from types import SimpleNamespace
        from raft_diffusion.core.records import Draw, Prompt, Sample
        from raft_diffusion.rewards.custom import load_custom
        try:
            load_custom("forever:sleeps", timeout=0.2)([Sample(Draw(Prompt("cat"), 0, 0), SimpleNamespace(image=0))])
        except ValueError as error:
            raise SystemExit(2 if "took more than 0.2 s" in str(error) else 1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2
