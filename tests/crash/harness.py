"""Kill runs of the carried model with SIGKILL at random moments, start them again, and compare with one left alone.

    uv run python tests/crash/harness.py --kills 100

One process imports everything and loads the models once; every run is a fork of it. A run tells its progress through a
pipe, so that the parent knows what it is doing; nothing in the package knows of the harness. Sampling is told before
each batch of pictures by a wrapper around the policy's own method.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PHASES = ("sampling", "scoring", "tuning", "writing")
BATCH = 4
CONFIG = f"""
name = "tiny"
rounds = 2
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
[sampling]
width = 32
height = 32
num_inference_steps = 1
guidance_scale = 3.0
collect_guidance_scale = 1.5
samples_per_prompt = 4
groups_per_prompt = 2
batch_size = {BATCH}
[rewards]
held_out = "pocket-held-out"
weights = {{ text_image = 1.0, aesthetic = 0.5 }}
[tuning]
rank = 2
alpha = 2
steps = 5
batch_size = 2
[guard]
pairs = 8
[evaluation]
pairs = 4
ood_pairs = 0
best_of = 2
"""


@dataclass
class Trace:
    """What a run told: (seconds since it began, phase from then on), and the pictures whose sampling began, by seed."""

    phases: list[tuple[float, str]] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)
    ended: bool = False


def warm_up() -> None:
    """Import everything and load every model once: forks find them."""
    from raft_diffusion import assemble, diffusion, evaluate, report, runs, scales, scorers  # noqa: F401
    from raft_diffusion.core.config import Config

    config = Config.parse(CONFIG)
    assemble.prepare(1)
    diffusion.load = cache(diffusion.load)  # a fork's adapter goes into its own copy
    scales.make_judge = _once(scales.make_judge)
    scorers.make_tower = _once(scorers.make_tower)
    assemble.make_base(config)
    assemble.make_rewards(config)
    scales.make_judge(config)


def _once(make: Callable) -> Callable:
    """The same result for the same words."""
    known: dict[str, object] = {}

    def made(*words, **more):
        key = repr((words, more))
        if key not in known:
            known[key] = make(*words, **more)
        return known[key]

    return made


def work(folder: Path, pipe: int) -> None:
    """A whole run, in a fork: rounds, then the evaluation."""
    from raft_diffusion.core.config import Config
    from raft_diffusion.diffusion import DiffusionPolicy
    from raft_diffusion.runs import Run

    denoise = DiffusionPolicy._denoise

    def told(self, draws, settings, scheduler):
        tell(pipe, "batch", *(f"{draw.seed}{'-base' if self._is_base else ''}" for draw in draws))
        return denoise(self, draws, settings, scheduler)

    DiffusionPolicy._denoise = told
    run = Run(Config.parse(CONFIG), folder, progress=lambda *event: tell(pipe, *map(str, event)))
    for _ in run.rounds():
        tell(pipe, "round")
    run.evaluate()
    tell(pipe, "end")


def tell(pipe: int, *words: str) -> None:
    os.write(pipe, (" ".join(words) + "\n").encode())


def start(folder: Path) -> tuple[int, int]:
    """(process, reading end of its pipe) of a fork that runs in `folder`."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    code = 1
    try:
        os.close(reader)
        work(folder, writer)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def phase_after(words: list[str]) -> str | None:
    """What a run does once it has told this; None: what it did before."""
    stage, *rest = words
    if stage in ("sample", "guard", "evaluate"):
        return "scoring" if rest[0] == rest[1] else "sampling"
    if stage == "batch":
        return "sampling"
    if stage == "score":
        return "tuning" if rest[0] == rest[1] else "scoring"
    if stage == "tune":
        return "writing" if rest[0] == rest[1] else "tuning"
    return None


def watch(process: int, reader: int, *, kill: Callable[[str, int], float | None] | None = None) -> Trace:
    """Follow a run to its end. kill(phase, how often it began): seconds after which it is to die, None to go on."""
    trace, times, rest, began, candidates = Trace(), Counter(), b"", time.monotonic(), False
    while chunk := os.read(reader, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            words = line.decode().split()
            if words[0] == "batch":
                trace.images.update(words[1:])
            trace.ended |= words[0] == "end"
            candidates |= words[0] == "sample"
            phase = phase_after(words)
            if not candidates or phase is None or (trace.phases and trace.phases[-1][1] == phase):
                continue  # what comes before the first batch of candidates is not aimed at
            trace.phases.append((time.monotonic() - began, phase))
            times[phase] += 1
            if kill and (delay := kill(phase, times[phase])) is not None:
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
                kill = None
    os.close(reader)
    _, status = os.waitpid(process, 0)
    if not (os.WIFSIGNALED(status) or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0)):
        raise SystemExit(f"a run failed with status {status}")
    return trace


def result(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves but what depends on the clock."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    evaluation = json.loads(files["evaluation/evaluation.json"])
    files["evaluation/evaluation.json"] = json.dumps(evaluation | {"seconds": 0}).encode()
    return {name: data for name, data in files.items() if not name.endswith(("time.json", "environment.json"))}


def spans(trace: Trace) -> dict[str, list[float]]:
    """How long each stretch of each phase took, in the order of the run."""
    times = [moment for moment, _ in trace.phases]
    ends = [*times[1:], times[-1] + 0.05]
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for (begun, phase), end in zip(trace.phases, ends, strict=True):
        found[phase].append(end - begun)
    return found


def moments(lengths: dict[str, list[float]], counts: Counter[str], chance: random.Random) -> Iterator[tuple]:
    """(phase, which stretch of it, seconds into it), of the phase that was hit least so far."""
    while True:
        phase = min(PHASES, key=lambda name: counts[name])
        nth = chance.randrange(len(lengths[phase]))
        yield phase, nth + 1, chance.random() * lengths[phase][nth]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    warm_up()
    place = Path(tempfile.mkdtemp(prefix="raft-crash-"))
    began, cpu = time.monotonic(), os.times()
    alone = watch(*start(place / "alone"))
    expected, chance, counts = result(place / "alone"), random.Random(asked.seed), Counter()
    same, repeated, tried = 0, [], 0
    for phase, nth, delay in moments(spans(alone), counts, chance):
        tried += 1
        folder = place / f"killed-{tried}"
        kill = lambda now, times, at=(phase, nth), after=delay: after if (now, times) == at else None  # noqa: E731
        first = watch(*start(folder), kill=kill)
        if first.ended:
            shutil.rmtree(folder)
            continue  # it was done before the signal came
        counts[first.phases[-1][1]] += 1
        folder = folder.rename(place / f"moved-{tried}")
        second = watch(*start(folder))
        found = result(folder)
        differing = [name for name in expected | found if expected.get(name) != found.get(name)]
        same += not differing
        repeated.append(sum((first.images + second.images).values()) - sum(alone.images.values()))
        if differing:
            print(f"kill {tried} in {first.phases[-1][1]}: {differing[:5]}", flush=True)
        shutil.rmtree(folder)
        if sum(counts.values()) % 10 == 0:
            print(f"{same} of {sum(counts.values())} the same: {dict(counts)}", flush=True)
        if sum(counts.values()) >= asked.kills:
            break
    after = os.times()
    spent = sum(after[:4]) - sum(cpu[:4])
    print(f"killed in {', '.join(f'{name} {counts[name]}' for name in PHASES)}; {tried} tries")
    print(f"{same} of {sum(counts.values())} ended with every byte of the run that was left alone")
    print(
        f"pictures sampled twice: {max(repeated)} at most, {statistics.fmean(repeated):.1f} on average, batch {BATCH}"
    )
    print(f"{time.monotonic() - began:.0f} s, of CPU {spent:.0f} s", flush=True)
    shutil.rmtree(place)
    sys.exit(0 if same == sum(counts.values()) and max(repeated) <= BATCH else 1)


if __name__ == "__main__":
    main()
