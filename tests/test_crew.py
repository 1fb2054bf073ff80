"""Several processes at one run: what they share, what they refuse, how they end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.crew import Crew, Hands, Stance, in_parts, made

HANDS = """
import os, signal, sys
from pathlib import Path
from raft_diffusion import crew
from raft_diffusion.crew import Hands, Stance

class Policy:
    strength = 2.0
    def stance(self):
        return Stance(weights={"a": 3}, on=True, strength=self.strength)
    def take(self, stance):
        self.strength = 10 * stance.strength + stance.weights["a"]
    def answer(self, batch, settings):
        if batch == ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if batch == ["refuse"]:
            raise ValueError("no such picture")
        if batch == ["break"]:
            raise ZeroDivisionError("of the helper")
        return [f"{word} {settings} {self.strength:g}" for word in batch]

def count(samples):
    return {"length": [len(word) for word in samples], "process": [os.getpid()] * len(samples)}
count.in_parts = True

def whole(samples):
    return {"all": [len(samples)] * len(samples)}

def hands():
    if "unloadable" in sys.argv:
        raise OSError("no weights here")
    return Hands(Policy(), [count, whole])

if crew.is_helper():
    crew.help_out(hands)
    print("home")
else:
    with crew.assembled() as together:
        policy = Policy()
        together.meet(policy, [count, whole])
        {work}
"""


def run(work: str, *words: str, processes: int = 2) -> tuple[list[int], str, str]:
    """Exit codes, what the first process printed, and what the second did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"PYTHONPATH": str(Path(__file__).parents[1]), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HANDS.replace("{work}", work), *words],
            env=os.environ | here | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=300) for process in started]
    return [process.returncode for process in started], said[0][0] + said[0][1], said[1][0] + said[1][1]


def test_each_process_answers_a_part_as_the_first_policy_stands():
    work = """print(together.size, together.share("sample", [["a", "b"], ["c"]], "how"))
        print(together.share("sample", [["alone"]], "how"))
        asked = together.rewards([count, whole])
        scores = asked[0](["x", "xx", "xxx"])
        print(scores["length"], len(set(scores["process"])), scores["process"][0] == os.getpid())
        print(asked[1](["x", "xx", "xxx"]), asked[1] is whole)"""
    codes, first, second = run(work)
    assert codes == [0, 0], first + second
    lines = first.splitlines()
    assert lines[0] == "2 [['a how 2', 'b how 2'], ['c how 23']]"  # the helper stands as the first one: 10 x 2 + 3
    assert lines[1] == "[['alone how 2']]"
    assert lines[2] == "[1, 2, 3] 2 True"
    assert lines[3] == "{'all': [3, 3, 3]} True"
    assert second == "home\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("refuse", "ValueError: no such picture"),
        ("break", "ZeroDivisionError: of the helper"),
        ("die", "ValueError: another process of this run has ended; what was finished is kept"),
    ],
)
def test_what_a_helper_cannot_do_the_first_process_tells(word, said):
    codes, first, _ = run(f"""together.share("sample", [["a"], ["{word}"]], "how")""")
    assert said in first
    assert codes == [1, -9 if word == "die" else 0]


def test_a_helper_that_cannot_load_says_so_at_its_first_part():
    codes, first, _ = run("""together.share("sample", [["a"], ["b"]], "how")""", "unloadable")
    assert "ValueError: no weights here" in first
    assert codes == [1, 0]


def test_other_commands_are_the_first_process_s_alone():
    said = []
    for rank in ("0", "1"):
        words = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        command = [sys.executable, "-m", "raft_diffusion.cli", "presets"]
        said.append(subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=True).stdout)
    assert "pocket-monet" in said[0]
    assert said[1] == ""


def test_helpers_end_when_the_first_process_fails_on_its_own():
    codes, first, second = run("""together.share("sample", [["refuse"], ["b"]], "how")""")
    assert "ValueError: no such picture" in first
    assert codes == [1, 0]
    assert second == "home\n"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the kernel names threads on Linux")
def test_no_thread_of_the_processes_talk_is_left_when_they_part():
    """One that still lets go of a tensor while Python ends would end the process with an abort."""
    work = """print(together.share("sample", [["a"], ["b"]], "how"))
        import torch.distributed.nn.functional  # its functions would keep the group that they find, as a default
        names = lambda: [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        print(any("gloo" in name for name in names()))
    print(*names())"""
    codes, first, _ = run(work)
    assert codes == [0, 0], first
    within, after = first.splitlines()[-2:]
    assert within == "True"
    assert "gloo" not in after


@pytest.mark.parametrize(
    ("items", "count", "parts"),
    [
        ("abcde", 2, ["abc", "de"]),
        ("ab", 4, ["a", "b"]),
        ("abcd", 4, ["a", "b", "c", "d"]),
        ("abcdef", 4, ["ab", "cd", "ef"]),
    ],
)
def test_parts(items, count, parts):
    assert in_parts(items, count) == parts


class Shelf:
    """Holds what it was given."""

    def __init__(self, held):
        self.held = dict(held)

    def find(self, draws, made_of):
        return self.held.get((draws[0].k, made_of))

    def keep(self, draws, made_of, samples):
        self.held[draws[0].k, made_of] = samples


class Policy:
    def __init__(self):
        self.waves = []

    def stance(self):
        return Stance(weights={}, on=True, strength=1.0)

    def answer(self, batch, settings):
        return [f"{settings} {draw.k}" for draw in batch]


class Pair(Crew):
    """Two processes, both of them this one."""

    def share(self, task, parts, how):
        POLICY.waves.append([part[0].k for part in parts])
        return [POLICY.answer(part, how) for part in parts]


POLICY = Policy()


def test_kept_batches_are_not_made_again_and_the_others_two_at_a_time():
    POLICY.waves.clear()
    batches = [[Draw(Prompt("cat"), k, k)] for k in range(5)]
    shelf = Shelf({(1, "w"): ["kept"]})
    crew = Pair(2)
    crew.meet(POLICY, [])
    found = list(made(batches, "s", POLICY, shelf=shelf, made_of="w", crew=crew))
    assert found == [["s 0", "kept"], ["s 2", "s 3"], ["s 4"]]
    assert POLICY.waves == [[0], [2, 3], [4]]
    assert sorted(k for k, _ in shelf.held) == [0, 1, 2, 3, 4]
    assert list(made(batches[:2], "s", POLICY, shelf=None, made_of="w", crew=None)) == [["s 0"], ["s 1"]]
    assert Hands(POLICY, []).do("sample", "t", batches[4]) == ["t 4"]


@pytest.mark.slow
def test_two_processes_choose_the_same_winners_and_one_goes_on_when_the_other_is_killed():
    script = Path(__file__).parent / "bench" / "processes.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=1200, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "another process of this run has ended; what was finished is kept" in done.stdout
