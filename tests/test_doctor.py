"""The doctor: each check by hand, and the command once on this machine. Real cards and other systems: not tested."""

import dataclasses
import hashlib
import json
import os
import py_compile
import shutil
import stat
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from raft_diffusion import doctor as module
from raft_diffusion import pocket, sd15
from raft_diffusion.commands.doctor import doctor
from raft_diffusion.doctor import (
    Check,
    Torch,
    check_card,
    check_folder,
    check_heads,
    check_hub,
    check_machine,
    check_optional,
    check_packages,
    check_python,
    check_the_model,
    check_torch,
    check_towers,
    check_weights,
    gpu_advice,
    reach,
)
from raft_diffusion.planning import machine as machines
from raft_diffusion.planning.machine import Machine, core_count, memory_bytes, nvidia_card, read_card, read_torch_cuda
from raft_diffusion.rewards.heads import HEADS
from raft_diffusion.sd15.source import DELETED

MEND = "uv pip install --reinstall torch torchvision --torch-backend=auto"
CARD = Machine(cores=8, card="NVIDIA A10", card_memory=24 * 10**9, torch_cuda="13.2")
CUDA = Torch(version="2.15.0+cu132", cuda="13.2", has_cuda=True, has_mps=False)
CPU = Torch(version="2.15.0+cpu", cuda=None, has_cuda=False, has_mps=False)

# --- the machine ------------------------------------------------------------------------------------------------------


def test_advice_only_where_a_card_lies_idle():
    advice = gpu_advice("NVIDIA A10", None)
    assert advice == f"there is an NVIDIA card (NVIDIA A10), but this torch is built without CUDA; mend it with: {MEND}"
    assert gpu_advice("NVIDIA A10", "13.2") is None
    assert gpu_advice(None, None) is None
    assert gpu_advice(None, "13.2") is None


def test_what_nvidia_smi_answers():
    assert read_card("NVIDIA A100-SXM4-40GB, 40960 MiB\nTesla T4, 15360 MiB\n") == ("NVIDIA A100-SXM4-40GB", 40 * 2**30)
    assert read_card("NVIDIA GB10, [N/A]\n") == ("NVIDIA GB10", None)
    assert read_card("No devices were found\n") == (None, None)
    assert read_card("") == (None, None)


def test_what_torchs_version_file_says():
    cuda = (
        "from typing import Optional\n__version__ = '2.15.0'\ncuda: Optional[str] = '13.2'\nhip: Optional[str] = None\n"
    )
    assert read_torch_cuda(cuda) == "13.2"
    assert read_torch_cuda(cuda.replace("'13.2'", "None")) is None
    assert read_torch_cuda("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.1'\n") == "ROCm 6.4.1"
    assert read_torch_cuda("cuda = '12.6'\n") == "12.6"


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for the tool")
@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo 'Tesla T4, 15360 MiB'", ("Tesla T4", 15 * 2**30)),
        ("echo 'cannot talk to the driver, 9 MiB'; exit 9", (None, None)),
    ],
)
def test_the_tool_is_asked_where_it_is_on_the_path(tmp_path, monkeypatch, script, answer):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_card() == (None, None)
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert nvidia_card() == answer


def test_cores_and_memory_of_this_machine():
    assert 1 <= core_count() <= (os.cpu_count() or 1)
    assert memory_bytes() > 2**28
    if Path("/proc/meminfo").is_file():
        kilobytes = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1])
        assert memory_bytes() == pytest.approx(1024 * kilobytes, rel=0.05)


@pytest.mark.skipif(os.name == "nt", reason="Windows answers")
def test_windows_memory_is_unknown_elsewhere():
    assert machines._windows_memory() is None


def test_the_installed_torchs_build_is_read_without_importing_it():
    import torch

    assert machines.torch_cuda() == torch.version.cuda


# --- the checks -------------------------------------------------------------------------------------------------------


def test_python():
    assert check_python((3, 11, 0)).verdict == "ok"
    assert check_python((3, 10, 12)) == Check(
        what="Python",
        found=check_python((3, 10, 12)).found,
        verdict="missing",
        advice="install Python 3.11 or later",
    )


def test_packages():
    good = check_packages(["typer>=0.15", 'wandb; extra == "track"', "pydantic"])
    assert good.verdict == "ok"
    assert good.found.startswith("typer 0.")
    bad = check_packages(["typer>=99", "no-such-package>=2,<3"])
    assert bad.verdict == "missing"
    assert "typer>=99 (0." in bad.found
    assert "no-such-package<3,>=2 (not installed here)" in bad.found
    assert "uv sync" in bad.advice


def test_torch():
    assert "built with CUDA 13.2" in check_torch(CUDA, "").found
    assert 'the device "auto" is cuda' in check_torch(CUDA, "").found
    assert "built without CUDA" in check_torch(CPU, "").found
    assert 'the device "auto" is mps' in check_torch(dataclasses.replace(CPU, has_mps=True), "").found
    assert "built with ROCm 6.4" in check_torch(dataclasses.replace(CUDA, cuda="ROCm 6.4"), "").found
    broken = check_torch(None, "libcudart.so is missing")
    assert (broken.verdict, broken.found) == ("missing", "cannot be imported: libcudart.so is missing")
    assert MEND in broken.advice


@pytest.mark.parametrize("set_so", [True, False])
def test_libraries_that_are_compiled_at_every_start(tmp_path, monkeypatch, set_so):
    (tmp_path / "slow_to_start.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", set_so)
    check = module.check_compiled("slow_to_start")
    assert (check.verdict, "PYTHONDONTWRITEBYTECODE" in check.found) == ("look", set_so)
    assert "--compile-bytecode" in check.advice
    py_compile.compile(str(tmp_path / "slow_to_start.py"))
    assert module.check_compiled("slow_to_start").verdict == "ok"
    assert "not installed" in module.check_compiled("not_installed_at_all").found


def test_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    torch, problem = module.look_at_torch()
    assert torch is None
    assert "torch" in problem


def test_the_card():
    assert check_card(Machine(cores=1), CPU) == Check(what="NVIDIA card", found="none seen")
    assert check_card(CARD, CUDA) == Check(what="NVIDIA card", found="NVIDIA A10, 24 GB")
    assert check_card(CARD, None).verdict == "ok"  # the row of torch says what is wrong
    idle = check_card(CARD, CPU)
    assert (idle.verdict, idle.advice) == ("look", gpu_advice("NVIDIA A10", None))
    driver = check_card(CARD, dataclasses.replace(CUDA, has_cuda=False))
    assert driver.verdict == "look"
    assert driver.advice.startswith("torch cannot use it: bring its driver up to date")
    assert check_card(dataclasses.replace(CARD, card_memory=None), CUDA).found == "NVIDIA A10"


def test_cores_and_memory():
    assert check_machine(Machine(cores=1)).found == "1 CPU core, memory unknown"
    assert check_machine(Machine(cores=4, memory=16 * 10**9)).found == "4 CPU cores, 16.0 GB of memory"
    assert check_machine(Machine(cores=4, memory=2 * 10**9)).verdict == "look"


def test_the_folder(tmp_path, monkeypatch):
    assert check_folder(tmp_path).verdict == "ok"
    assert list(tmp_path.iterdir()) == []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10 - 5 * 10**8, 5 * 10**8))
    full = check_folder(tmp_path)
    assert (full.verdict, full.found) == ("look", "0.5 GB free")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", refuse)
    locked = check_folder(tmp_path)
    assert (locked.verdict, locked.found) == ("missing", "cannot be written (Permission denied)")
    assert "--out DIR" in locked.advice


def test_the_carried_weights(tmp_path):
    good = check_weights(pocket.WEIGHTS)
    assert good.verdict == "ok"
    assert "21 files" in good.found
    assert check_weights(tmp_path).found == "its manifest.json cannot be read"
    entries = {name: {"sha256": hashlib.sha256(b"good").hexdigest(), "bytes": 4} for name in ("a", "b", "c")}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": entries}), encoding="utf-8")
    for name, content in (("a", b"good"), ("b", b"evil")):
        (tmp_path / name).write_bytes(content)
    bad = check_weights(tmp_path)
    assert (bad.verdict, bad.found) == ("missing", "b is damaged; c is missing")


def test_the_hubs_folder(tmp_path):
    place = tmp_path / ".cache" / "huggingface" / "hub"
    assert check_hub({}, tmp_path).found == f"0 models in {place}; not asked (--online asks)"
    (tmp_path / "there" / "hub" / "models--a--b").mkdir(parents=True)
    (tmp_path / "there" / "hub" / "version.txt").touch()
    home = {"HF_HOME": str(tmp_path / "there")}
    assert check_hub(home, tmp_path).found.startswith(f"1 model in {tmp_path / 'there' / 'hub'};")
    offline = check_hub({**home, "HF_HUB_OFFLINE": "YES"}, tmp_path)
    assert offline.verdict == "look"
    assert offline.found.endswith("offline")
    assert str(tmp_path / "mine") in check_hub({**home, "HF_HUB_CACHE": str(tmp_path / "mine")}, tmp_path).found
    assert str(tmp_path / "xdg") in check_hub({"XDG_CACHE_HOME": str(tmp_path / "xdg")}, tmp_path).found


def test_the_hubs_folder_is_the_one_that_the_hubs_library_takes():
    from huggingface_hub.constants import HF_HUB_CACHE

    assert check_hub(os.environ, Path.home()).found.startswith(
        f"{len(list(Path(HF_HUB_CACHE).glob('models--*')))} model"
    )
    assert f" in {HF_HUB_CACHE}" in check_hub(os.environ, Path.home()).found


class Hub(BaseHTTPRequestHandler):
    """Answers HEAD alone: there is a/good, a/private is not for us, and nothing else is known."""

    def do_HEAD(self):
        known = {
            "/": 200,
            "/a/good/resolve/main/model_index.json": 200,
            "/a/private/resolve/main/model_index.json": 401,
        }
        self.send_response(known.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The address of a hub on this machine, which is also the one that the hub's library takes."""
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield address
    server.shutdown()
    server.server_close()


def closed() -> str:
    """An address where nobody listens."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"


def test_reaching_the_hub(hub, tmp_path):
    there = check_hub({}, tmp_path, reach)
    assert there.verdict == "ok"
    assert there.found.endswith("; the hub answers")
    assert check_hub({"HF_ENDPOINT": hub}, tmp_path, reach).found.endswith(f"; the hub at {hub} answers")
    assert check_hub({"HF_HUB_OFFLINE": "1"}, tmp_path, reach).found.endswith("offline")  # it is not asked


def test_a_hub_out_of_reach(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", closed())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    gone = check_hub({}, tmp_path, reach)
    assert (gone.verdict, gone.found.endswith("; no answer")) == ("look", True)
    assert gone.advice.startswith("the hub cannot be reached (no answer: ")
    assert gone.advice.endswith("what is cached works without it")
    assert "HF_ENDPOINT" not in gone.advice
    model = check_the_model("a/good", tmp_path, offline=False, ask=reach)
    assert model.verdict == "look"
    assert model.advice.startswith("it cannot be had now (a/good: no answer: ")
    assert reach("nonsense").startswith("no answer: ")


def test_a_model_on_the_hub(hub, tmp_path):
    """4.26 GB: 859.5 + 123.1 + 83.7 million weights of 4 bytes."""
    unknown = check_the_model(sd15.HUB_ID, tmp_path, offline=False, ask=None)
    assert (unknown.verdict, unknown.found) == ("ok", f"{sd15.HUB_ID} not here, 4.26 GB")
    assert unknown.advice.startswith("the first run of Stable Diffusion that needs it downloads it; or give a folder")
    assert check_the_model("a/good", tmp_path, offline=False, ask=reach).advice.startswith("can be had; the first run")
    private = check_the_model("a/private", tmp_path, offline=False, ask=reach)
    assert private.verdict == "look"
    assert "(a/private: it is private or there is none)" in private.advice
    assert "(a/none: there is none)" in check_the_model("a/none", tmp_path, offline=False, ask=reach).advice
    offline = check_the_model("a/good", tmp_path, offline=True, ask=reach)
    assert offline.verdict == "look"
    assert offline.advice.startswith("HF_HUB_OFFLINE is set, so it cannot be downloaded: unset it once, or give")


def test_a_cached_model(tmp_path):
    snapshot = tmp_path / "models--a--good" / "snapshots" / "0123"
    for part in ("unet", "vae"):
        (snapshot / part).mkdir(parents=True)
        (snapshot / part / "diffusion_pytorch_model.safetensors").touch()
    assert "not here" in check_the_model("a/good", tmp_path, offline=True, ask=None).found  # one part is missing
    (snapshot / "text_encoder").mkdir()
    (snapshot / "text_encoder" / "model.fp16.safetensors").touch()
    assert check_the_model("a/good", tmp_path, offline=True, ask=None) == Check(
        what="model", found=f"a/good in {snapshot}"
    )


def test_a_model_on_this_machine(tmp_path):
    def look(model) -> Check:
        return check_the_model(str(model), tmp_path, offline=False, ask=None)

    assert look("pocket") == Check(what="model", found="the carried one")
    assert look(pocket.MODEL) == Check(what="model", found=f"{pocket.MODEL}, a folder")
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    for name, words in (
        (tmp_path / "old.ckpt", "is a pickle"),
        ("nothing", "no model at 'nothing'"),
        (tmp_path, "holds no model_index.json"),
        (next(iter(DELETED)), "was deleted from the hub"),
    ):
        bad = look(name)
        assert (bad.verdict, bad.found) == ("missing", f"{name} cannot be used")
        assert words in bad.advice


def test_the_towers_are_where_open_clip_gets_them(tmp_path):
    import open_clip

    for name, repo in module.TOWERS.items():
        config = open_clip.get_pretrained_cfg(*name.split(":"))
        assert config["hf_hub"].rstrip("/") == repo
    absent = check_towers(tmp_path, offline=False, ask=None)
    assert absent.found == ("ViT-L-14-quickgelu:openai not here, 1.71 GB; ViT-B-32:laion2b_s34b_b79k not here, 605 MB")
    folders = []
    for repo, file in zip(module.TOWERS.values(), ("model.safetensors", "pytorch_model.bin"), strict=True):
        folders.append(tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / "0")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "open_clip_config.json").touch()
        assert "not here" in check_towers(tmp_path, offline=False, ask=None).found
        (folders[-1] / f"open_clip_{file}").touch()
    there = check_towers(tmp_path, offline=True, ask=None)
    assert (there.verdict, there.advice) == ("ok", "")
    assert all(str(folder) in there.found for folder in folders)


def test_the_aesthetic_heads(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    absent = check_heads(HEADS, offline=False, ask=None)
    assert (absent.verdict, absent.found) == ("ok", "aesthetic_v1 not here; aesthetic_v2 not here")
    assert "rewards.sources.aesthetic_v2=FILE" in absent.advice
    heads = [dataclasses.replace(head, sha256=hashlib.sha256(b"good").hexdigest()) for head in HEADS]
    for head, content in zip(heads, (b"good", b"", b"evil"), strict=True):
        head.path.parent.mkdir(exist_ok=True)
        head.path.write_bytes(content)
    damaged = check_heads(heads, offline=True, ask=None)
    assert damaged.verdict == "look"
    assert damaged.found == f"aesthetic_v1 in {heads[0].path}; aesthetic_v2 not here"
    heads[2].path.write_bytes(b"good")
    assert check_heads(heads, offline=True, ask=None).verdict == "ok"


def test_trackers_are_optional():
    assert check_optional({"wandb": "0.20"}) == Check(
        what="trackers", found="tensorboard not installed, wandb 0.20 (optional)"
    )


# --- the command ------------------------------------------------------------------------------------------------------

app = typer.Typer()
app.command()(doctor)


def test_the_command_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    target = tmp_path / "doctor.json"
    result = CliRunner().invoke(app, ["--json", str(target)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "carried model" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:14])) <= 80
    numbers = json.loads(target.read_text(encoding="utf-8"))
    assert numbers["ready"] is True
    assert {"what", "found", "verdict", "advice"} == set(numbers["checks"][0])
    assert [check["what"] for check in numbers["checks"]][-5:] == [
        "hub",
        "model",
        "CLIP towers",
        "aesthetic heads",
        "trackers",
    ]


def test_the_command_looks_at_the_model_that_it_is_given(monkeypatch):
    monkeypatch.setattr(module, "look_at_torch", lambda: (CPU, ""))
    result = CliRunner().invoke(app, ["--model", "nothing"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "model: no model at 'nothing'" in result.stdout


def test_something_broken_is_exit_code_1_with_what_to_do(monkeypatch):
    broken = [Check(what="torch", found="[gone]", verdict="missing", advice=f"install it again: {MEND}")]
    monkeypatch.setattr(module, "examine", lambda *_, **__: broken)
    result = CliRunner().invoke(app, [], catch_exceptions=False)
    assert result.exit_code == 1
    assert "[gone]" in result.stdout
    assert f"torch: install it again: {MEND}" in result.stdout
    assert "All is well" not in result.stdout
