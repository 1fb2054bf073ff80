"""The disk fails at every single write of a round, and no half-written round is ever taken for whole."""

import errno
import io
import json
import os
import random
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image

from raft_diffusion.cli import advice_on
from raft_diffusion.core.config import Config
from raft_diffusion.core.files import write_atomically
from raft_diffusion.core.guard import Look
from raft_diffusion.core.loop import raft
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Prompt, Sample
from raft_diffusion.core.select import Select
from raft_diffusion.core.store import RunFolder, read_metrics, stored_rounds
from raft_diffusion.core.unfinished import Unfinished
from raft_diffusion.diffusion import Picture, PictureCodec

CALLS = ("open", "fsync", "rename", "replace", "mkdir")
CONFIG = Config.model_validate({"name": "run", "prompts": {"train": ["a cat"]}})


class BrokenDisk:
    """Lets `good` system calls that change the disk below `root` pass, then fails each one, or the next one alone."""

    def __init__(self, patch, root, *, good=10**9, code=errno.ENOSPC, once=False):
        self.root, self.good, self.code, self.once, self.seen = str(root), good, code, once, Counter()
        for name in CALLS:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))
        patch.setattr(io, "open", self._opening(io.open))

    @property
    def calls(self):
        return sum(self.seen.values())

    def check(self, name, path):
        if self.calls == self.good and self.once:
            self.seen[name] += 1
            raise OSError(self.code, os.strerror(self.code), path)
        if self.calls >= self.good and not self.once:
            raise OSError(self.code, os.strerror(self.code), path)
        self.seen[name] += 1

    def _failing(self, name, call):
        def failing(first, *more, **named):
            if not isinstance(first, int) and not str(first).startswith(self.root):
                return call(first, *more, **named)
            self.check(name, None if isinstance(first, int) else str(first))
            return call(first, *more, **named)

        return failing

    def _opening(self, call):
        def opening(file, mode="r", *more, **named):
            if isinstance(file, int) or not str(file).startswith(self.root) or not set(mode) & set("wax+"):
                return call(file, mode, *more, **named)
            self.check("open", str(file))
            return HalfWritten(call(file, mode, *more, **named), self)

        return opening


class HalfWritten:
    """A file whose write, when the disk is full, leaves the first half."""

    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        try:
            self._disk.check("write", None)
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)


class Grey:
    """Samples grey pictures about its mean; keeps what it sampled on its shelf, as a real policy does."""

    def __init__(self, shelf):
        self.mean, self.shelf = 100.0, shelf

    def generate(self, draws):
        samples = []
        for start in range(0, len(draws), 2):
            batch = draws[start : start + 2]
            samples += self.shelf.batch(batch, self.mean, lambda batch=batch: [self._sample(draw) for draw in batch])
        return samples

    def _sample(self, draw):
        value = self.mean + random.Random(draw.seed).gauss(0, 9)
        return Sample(draw, Picture(torch.full((1, 2, 2), value), Image.new("RGB", (4, 4), (int(value), 0, 0))))

    def save(self, folder):
        write_atomically(folder / "mean.json", json.dumps(self.mean))

    def load(self, folder):
        self.mean = json.loads((folder / "mean.json").read_text())


def tune(policy, winners, *, seed):
    policy.mean = sum(float(w.sample.data.latent.mean()) for w in winners) / len(winners) + seed * 1e-20
    return {"loss": policy.mean}


def reward(samples):
    return {"x": [float(sample.data.latent.mean()) for sample in samples]}


def run(root, rounds):
    """The run's rounds, each with the guard's look after it."""
    codec = PictureCodec()
    shelf = Unfinished(root, packer=codec, identity="").shelf("round")
    store = RunFolder.open(root, codec=codec, config=CONFIG, environment={})
    found = raft(
        Grey(shelf),
        [reward],
        Select(weights={"x": 1.0}),
        tune,
        store,
        lambda index: draw_round([Prompt("a cat")], index=index, seed=0, per_round=None, k=3),
        rounds=rounds,
        seed=0,
    )
    for round_ in found:
        shelf.clear()
        look(store, round_.index)
    shelf.clear()
    if store.completed():
        look(store, store.completed())  # as the guard catches up


def failure_of(root):
    """What stopped the second round."""
    try:
        run(root, 2)
    except OSError as error:
        return error
    return None


def look(store, index):
    store.save_look(
        Look(round=index, judge="j", reward="held_out.x", draws=("d",), scores=(1.0 * index,), distances=(0.5,))
    )


def tree(root):
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "environment.json"}


@pytest.fixture(scope="module", autouse=True)
def no_wait_for_the_real_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    root = tmp_path_factory.mktemp("before") / "run"
    run(root, 1)
    return root


@pytest.fixture(scope="module")
def after(tmp_path_factory, before):
    root = shutil.copytree(before, tmp_path_factory.mktemp("after") / "run")
    run(root, 2)
    return root


@pytest.mark.parametrize(
    ("code", "once"),
    [
        pytest.param(errno.ENOSPC, False, id="full"),
        pytest.param(errno.EACCES, False, id="closed", marks=pytest.mark.slow),
        pytest.param(errno.EIO, False, id="broken", marks=pytest.mark.slow),
        pytest.param(errno.ENOSPC, True, id="full for a moment", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fails_at_any_write_leaves_the_round_whole_or_absent(tmp_path, before, after, code, once):
    whole = {name: data for name, data in tree(after).items() if name.startswith("rounds/002/")}
    found, good = Counter(), 0
    while True:
        root = shutil.copytree(before, tmp_path / str(good))
        with pytest.MonkeyPatch.context() as patch:
            disk = BrokenDisk(patch, root, good=good, code=code, once=once)
            failed = failure_of(root)
        if failed is None and disk.calls <= good:
            break
        if failed is not None:  # else nothing but a leftover could not be removed
            assert (failed.errno, failed.filename is not None) == (code, True)
            assert ", then the same command goes on" in advice_on(failed)
        done = len(list(stored_rounds(root)))
        found[done] += 1
        now = tree(root)
        assert {name: now[name] for name in now if name.startswith("rounds/001/")} == {
            name: data for name, data in tree(before).items() if name.startswith("rounds/001/")
        }
        if done == 2:
            assert {n: d for n, d in now.items() if n.startswith("rounds/002/") and "guard" not in n} == {
                n: d for n, d in whole.items() if "guard" not in n
            }
        run(root, 2)  # the disk is mended
        assert tree(root) == tree(after)
        assert len(read_metrics(root)) == 2
        shutil.rmtree(root)
        good += 1
    assert good > 40
    assert set(found) == {1, 2}


def test_a_full_disk_gets_the_room_of_the_half_written_round_back(tmp_path, before):
    root = shutil.copytree(before, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        disk = BrokenDisk(patch, root)
        run(root, 2)
    shutil.rmtree(root)
    shutil.copytree(before, root)
    with pytest.MonkeyPatch.context() as patch:
        BrokenDisk(patch, root, good=disk.calls - 30)
        with pytest.raises(OSError, match="No space left"):
            run(root, 2)
    assert not list((root / "rounds").glob(".*"))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "the disk of {} is full; make room on it, then the same command goes on where this one stopped"),
        (errno.EROFS, "the disk of {} can only be read; make it writable, then the same command goes on where this"),
        (errno.EACCES, "{} is closed to you; give yourself the right to write there, then the same command goes on"),
        (errno.EIO, "the disk of {} failed (input/output error); check it or its cable, then the same command goes"),
    ],
)
def test_what_to_do_is_said_with_the_place(tmp_path, monkeypatch, code, sentence):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_atomically(tmp_path / "a.txt", "new")
    assert advice_on(caught.value).startswith(sentence.format(tmp_path / "a.txt"))
