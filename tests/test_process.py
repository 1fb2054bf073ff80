"""The process that a run works in."""

import platform
from pathlib import Path

import pytest

from raft_diffusion.process import Heap, _wait_briefly

GLIBC = platform.libc_ver()[0] == "glibc"


def resident() -> int:
    """Bytes of this process in memory, by the kernel."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.skipif(not GLIBC, reason="only the GNU C library is asked to tidy up")
def test_gaps_between_what_is_kept_are_given_back():
    heap, patient = Heap(seconds=0), Heap(seconds=3600)
    kept, gone = [], []
    for _ in range(800):
        gone.append(bytearray(b"\1") * 100_000)
        kept.append(bytearray(b"\1") * 2_000)
    gone.clear()
    full = resident()
    patient.tidy()
    assert full - resident() < 20e6
    heap.tidy()
    assert full - resident() > 60e6
    assert len(kept) == 800


def test_how_threads_wait_is_the_users_to_say():
    empty: dict[str, str] = {}
    _wait_briefly(empty)
    assert int(empty["GOMP_SPINCOUNT"]) > 0
    for said in ({"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "0"}):
        kept = dict(said)
        _wait_briefly(kept)
        assert kept == said
