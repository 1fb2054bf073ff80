import subprocess
import sys

import pytest

IMPORT_CORE = """
import importlib, pkgutil, raft_diffusion.core as core
names = [module.name for module in pkgutil.walk_packages(core.__path__, "raft_diffusion.core.")]
assert "raft_diffusion.core.loop" in names
for name in names:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (IMPORT_CORE, {"torch", "PIL", "diffusers", "transformers"}),
        ("import raft_diffusion.cli", {"torch", "diffusers", "transformers", "open_clip"}),
    ],
    ids=["core", "cli"],
)
def test_a_fresh_process_imports_nothing_heavy(code, absent):
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert not absent & set(done.stdout.split())
