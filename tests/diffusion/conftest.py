"""A random Stable Diffusion model of a few thousand weights in the diffusers folder layout."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raft_diffusion.core.records import Draw, Prompt, Sample, Scored, Winner
from raft_diffusion.diffusion.load import Components, load
from raft_diffusion.diffusion.pictures import Picture
from raft_diffusion.diffusion.sampler import DiffusionPolicy, Settings

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCHEDULER = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
)


def pytest_configure(config):
    # diffusers' schedulers hand torch tensors to np.array in a way that numpy 2 will stop accepting.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:__array_wrap__ must accept context:DeprecationWarning")


def _tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ca", "cat</w>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=77)
    assert len(tokenizer) == len(words)
    return tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A saved model: UNet of two levels with attention in the second, VAE of factor 4, float16 as published ones."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=SCHEDULER,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("model")
    pipe.to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _loaded(model_folder) -> Components:
    return load(model_folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def components(_loaded) -> Components:
    """A model of the test's own, to put an adapter into."""
    return copy.deepcopy(_loaded)


@pytest.fixture
def settings() -> Settings:
    return Settings(width=32, height=24, num_inference_steps=4, guidance_scale=5.0, scheduler="DPM++ 2M", batch_size=2)


@pytest.fixture
def policy(components, settings) -> DiffusionPolicy:
    """A policy with a fresh LoRA of rank 4 and alpha 6 on all its UNet's targets."""
    policy = DiffusionPolicy(components, settings=settings)
    policy.add_adapter(rank=4, alpha=6.0, targets=("attention", "feed_forward", "projection", "convolution"))
    return policy


@pytest.fixture
def draws() -> list[Draw]:
    cat, dog = Prompt("cat", negative="dog"), Prompt("a big dog")
    return [Draw(cat, 0, 11), Draw(cat, 1, 12), Draw(dog, 0, 2**63 - 1)]


@pytest.fixture
def winners() -> list[Winner]:
    """Four winners of random latents (4, 6, 8) for two prompts, all of weight 1."""
    generator = torch.Generator().manual_seed(0)
    pictures = [Picture(torch.randn(4, 6, 8, generator=generator), None) for _ in range(4)]  # type: ignore[arg-type]
    prompts = [Prompt("cat"), Prompt("cat"), Prompt("a dog"), Prompt("a dog")]
    samples = [
        Sample(Draw(prompt, k, k), picture) for k, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
    ]
    return [Winner(Scored(sample, {}), key=0.0) for sample in samples]


@pytest.fixture
def shake():
    """Gives every weight of a policy's adapter a random value, B included, as if it had learned."""

    def shake(policy: DiffusionPolicy, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in policy.trained.parameters().values():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)

    return shake
