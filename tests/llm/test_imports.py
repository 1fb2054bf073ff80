import subprocess
import sys

import pytest


def test_what_a_command_imports_loads_no_model_library():
    """`--help`, `plan` and the checks must not wait for torch."""
    code = (
        "import sys, raft_diffusion.cli, raft_diffusion.report, raft_diffusion.llm.assemble as assemble;"
        "from raft_diffusion.jobs import load_config;"
        "config = load_config('pocket-sums');"
        "assemble.check(config); assemble.outlook(config); assemble.watch_of(config);"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_text_run_loads_no_library_of_pictures():
    code = (
        "import sys, raft_diffusion.llm.assemble as assemble;"
        "assemble.prepare(1);"
        "import raft_diffusion.llm.policy, raft_diffusion.llm.tuner, raft_diffusion.llm.rewards;"
        "print([name for name in ('diffusers', 'open_clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
