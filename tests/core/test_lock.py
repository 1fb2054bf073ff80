import gc
import os
import subprocess
import sys
import time

import pytest

from raft_diffusion.core import lock
from raft_diffusion.core.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from raft_diffusion.core.lock import RunLock
held = RunLock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path, other):
    with pytest.raises(ValueError, match=r"^another process works in .*; wait until it ends, stop it, or"):
        RunLock.take(tmp_path)
    other.kill()
    other.wait()
    assert RunLock.take(tmp_path)


def test_an_old_lock_file_of_a_dead_owner_and_a_clock_that_goes_backwards_stop_nobody(tmp_path):
    (tmp_path / lock.FILE).write_bytes(b"left over")
    later = time.time() + 1e6
    os.utime(tmp_path / lock.FILE, (later, later))
    assert RunLock.take(tmp_path)


def test_this_process_may_ask_again_also_where_the_folder_was_moved(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    held = RunLock.take(root)
    assert RunLock.take(root) is held
    moved = root.rename(tmp_path / "moved")
    assert RunLock.take(moved) is held


@pytest.mark.parametrize("how", ["release", "forget"])
def test_others_may_come_when_the_owner_has_let_go(tmp_path, how):
    held = RunLock.take(tmp_path)
    held.release() if how == "release" else None
    del held
    gc.collect()
    code = f"from raft_diffusion.core.lock import *; RunLock.take(Path({str(tmp_path)!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="flock is POSIX's")
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match=r"has no locks \(No locks available\); see to it that one process"):
        assert RunLock.take(tmp_path)
