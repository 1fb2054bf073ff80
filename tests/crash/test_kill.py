import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="Windows has no fork and no SIGKILL")


def kill(count):
    """Run the harness, which compares every byte, and return what it printed."""
    harness = Path(__file__).with_name("harness.py")
    done = subprocess.run([sys.executable, str(harness), "--kills", str(count)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_that_is_killed_ends_as_one_that_was_not():
    assert "1 of 1 ended with every byte of the run that was left alone" in kill(1)


@pytest.mark.slow
def test_a_hundred_kills():
    printed = kill(100)
    assert "100 of 100 ended with every byte" in printed
    counts = dict(re.findall(r"(sampling|scoring|tuning|writing) (\d+)", printed))
    assert len(counts) == 4 and min(map(int, counts.values())) >= 15
