"""Stable Diffusion 1.5 at full size with random weights: three ways in, and a whole round, on a CPU within 24 GiB."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

Hub = runpy.run_path(str(Path(__file__).with_name("hub.py")))["Hub"]
pytestmark = pytest.mark.slow
UNET = 859_520_964  # parameters, as published
GIB = 2**30
PEAK = """
def peak():
    try:
        import resource, sys
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""
SAMPLE = f"""{PEAK}
import json, sys
import torch
from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion import DiffusionPolicy, Settings, load

settings = Settings(
    width=256, height=256, num_inference_steps=2, guidance_scale=1.0, scheduler="DDIM", batch_size=1
)
latents, sizes = [], []
for model in json.loads(sys.argv[1]):
    policy = components = None  # one model at a time
    components = load(model, device="cpu", dtype=torch.float32)
    policy = DiffusionPolicy(components, settings=settings)
    (sample,) = policy.generate([Draw(Prompt("monet style cat"), 0, 7)])
    latents.append(sample.data.latent)
    sizes.append(sum(parameter.numel() for parameter in components.unet.parameters()))
same = [torch.equal(latents[0], other) for other in latents]
print(json.dumps({{"same": same, "deviation": latents[0].std().item(), "sizes": sizes, "peak": peak()}}))
"""
ROUND = f"""{PEAK}
import json, sys
import raft_diffusion as rd

run = rd.Run(rd.load_config(sys.argv[1]), sys.argv[2])
(round_,) = run.rounds()
print(json.dumps({{"candidates": sum(len(group.candidates) for group in round_.groups), "peak": peak()}}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(folder, file, the UNet's parameters) in float16, 2.1 GB each; taken away afterwards."""
    path = tmp_path_factory.mktemp("full")
    write_model = runpy.run_path(str(Path(__file__).with_name("checkpoints.py")))["write_model"]
    (path / "folder").mkdir()
    count = write_model(path / "folder", path / "model.safetensors")
    yield path / "folder", path / "model.safetensors", count
    shutil.rmtree(path)


def call(code, *arguments, **env):
    given = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=given | env, stdout=subprocess.PIPE, text=True, check=True
    )
    answer = json.loads(process.stdout.splitlines()[-1])
    print(f"peak {answer['peak'] / GIB:.1f} GiB")
    return answer


def test_a_folder_a_file_and_the_hub_give_the_same_latents(model, tmp_path):
    folder, file, count = model
    assert count == UNET
    models = [str(folder), str(file), "owner/full"]
    with Hub({"owner/full": {"main": folder}}) as hub:
        answer = call(SAMPLE, json.dumps(models), HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
    shutil.rmtree(tmp_path / "home")
    assert answer["same"] == [True, True, True] and answer["sizes"] == [UNET] * 3
    assert 0 < answer["deviation"] < 10
    assert answer["peak"] < 24 * GIB


def test_a_whole_round_at_256_pixels(model, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        f"name = 'full'\nmodel = '{model[1]}'\nrounds = 1\ndevice = 'cpu'\n"
        "[prompts]\ntrain = ['monet style cat', 'monet style dog']\n"
        "[sampling]\nwidth = 256\nheight = 256\nnum_inference_steps = 2\nsamples_per_prompt = 2\nbatch_size = 2\n"
        "[rewards.weights]\ncompressibility = 1.0\n"
        "[tuning]\nsteps = 2\nbatch_size = 1\ngradient_checkpointing = true\n"
    )
    answer = call(ROUND, str(config), str(tmp_path / "run"))
    assert answer["candidates"] == 4 and answer["peak"] < 24 * GIB
    pictures = sorted((tmp_path / "run" / "rounds" / "001").rglob("*.png"))
    with Image.open(pictures[0]) as image:
        assert image.size == (256, 256)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    figures = json.loads(line)["figures"]
    assert figures["loss"] > 0 and figures["grad_norm"] > 0
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
