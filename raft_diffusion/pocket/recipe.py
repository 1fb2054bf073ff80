"""How each carried model is trained. Every stage is a function (folder, scale, report) that can be killed and goes on.

Pictures come from the drawn world, seeds from (stage, step): the same machine and thread count give the same weights.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.records import derive_seed
from . import nets, world
from .damage import BREAKING, KINDS, damage
from .judge import NAMES, JudgeNet

SEED = 20261120
VERSION = 1
Report = Callable[[int, int, float], None]  # (step, steps, loss)

STEPS = {"vae": 4200, "clip": 2400, "held_out": 1600, "judge": 1800, "unet": 10000}
# The UNet's life, as shares of its steps: first 32 px, then 64 px, then 64 px with more true pictures in the tail and,
# until REMINDED_UNTIL, every SMALL_EVERY-th batch at 32 px again: both stay rare but not lost (measured).
SMALL_UNTIL, LATE_FROM, REMINDED_UNTIL = 0.3, 0.725, 0.85
SMALL_EVERY, LATE_TRUE = 10, 0.4


def steps_of(stage: str, scale: float) -> int:
    return max(4, round(STEPS[stage] * scale))


# --- pictures ------------------------------------------------------------------------------------------------------


class Pool:
    """`count` pictures of the world in memory: pixels uint8 (N, 3, S, S), style, caption and truth as indices (N,)."""

    def __init__(self, name: str, count: int, size: int, *, landscapes: float = 0.0, tail: float | None = None) -> None:
        rng = np.random.default_rng(derive_seed(SEED, "pool", name))
        objects = tuple(world.OBJECTS)
        rows, pixels = [], []
        for _ in range(count):
            style, caption, truth = world.sample_caption(rng, tail if tail is not None else 1.0)
            if rng.random() < landscapes:
                caption = truth = world.NOTHING
            pixels.append(np.asarray(world.draw(style, truth, rng, size)))
            names = (*objects, world.NOTHING)
            rows.append((world.STYLES.index(style), names.index(caption), names.index(truth)))
        self.pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        self.style, self.caption, self.truth = torch.tensor(rows).unbind(1)

    def __len__(self) -> int:
        return len(self.pixels)

    def floats(self, index: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1]."""
        return self.pixels[index].float() / 255


def shrink(pictures: Tensor, chosen: Tensor) -> Tensor:
    """The chosen pictures seen at half size and brought back, as 32 px pictures are."""
    small = F.interpolate(pictures, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)
    back = F.interpolate(small, scale_factor=2.0, mode="bicubic", align_corners=False).clamp(0, 1)
    return torch.where(chosen[:, None, None, None], back, pictures)


# --- the one training loop -----------------------------------------------------------------------------------------


def fit(
    folder: Path,
    net: Any,
    loss_of: Callable[[int, torch.Generator], Tensor],
    *,
    stage: str,
    steps: int,
    learning_rate: float,
    report: Report,
    ema: float = 0.0,
    save_every: int = 250,
) -> Any:
    """AdamW with warm-up and linear decay; state kept every `save_every` steps. Returns the net, or its average."""
    average = copy.deepcopy(net).requires_grad_(False) if ema else None
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    start, path = 0, folder / "state.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        start = state["step"]
    warmup = max(1, min(200, steps // 10))
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        loss = loss_of(step, torch.Generator().manual_seed(derive_seed(SEED, stage, step)))
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss of {stage} is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            rate = min(ema, (step + 1) / (step + 10))
            pairs = zip(average.state_dict().values(), net.state_dict().values(), strict=True)
            for kept, fresh in pairs:
                kept.lerp_(fresh, 1 - rate) if kept.is_floating_point() else kept.copy_(fresh)
        if step % 10 == 9 or step + 1 == steps:
            report(step + 1, steps, loss.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            if average is not None:
                state["average"] = average.state_dict()
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    return (average if average is not None else net).eval()


def finish(folder: Path, tensors: dict[str, Tensor], **figures: Any) -> None:
    """The stage's result and its training figures; `figures.json` comes last and means done."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "final.safetensors")
    temporary = folder / "figures.tmp"
    temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "figures.json")


def pick(count: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (count,), generator=generator)


# --- stages --------------------------------------------------------------------------------------------------------


def train_vae(folder: Path, scale: float, report: Report) -> None:
    """AutoencoderKL: absolute, squared and gradient error and a whisper of KL; every fourth batch at 32 px."""
    torch.manual_seed(derive_seed(SEED, "vae"))
    net, steps = nets.make_vae(), steps_of("vae", scale)
    count = max(64, round(12000 * min(1, scale)))
    large, small = Pool("vae", count, 64, landscapes=0.08), Pool("vae small", count // 3, 32, landscapes=0.08)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        pool, size = (small, 64) if step % 4 == 3 else (large, 32)
        x = pool.floats(pick(size, len(pool), generator)) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = net.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            out = net.decode(posterior.mean + posterior.std * noise).sample
        error = out.float() - x
        slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + 4 * error.square().mean() + 0.5 * slopes + 1e-5 * posterior.kl().float().mean()

    net = fit(folder, net, loss_of, stage="vae", steps=steps, learning_rate=2e-3, report=report, ema=0.998)
    with torch.inference_mode():
        latents = net.encode(large.floats(torch.arange(min(512, len(large)))) * 2 - 1).latent_dist.mean
        net.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        fresh = Pool("vae test", 256, 64, landscapes=0.08)
        x = fresh.floats(torch.arange(256)) * 2 - 1
        mse = (net.decode(net.encode(x).latent_dist.mean).sample.clamp(-1, 1) - x).square().mean((1, 2, 3))
    psnr = (10 * torch.log10(4 / mse)).mean().item()
    finish(folder, net.state_dict(), psnr_db=psnr, scaling_factor=net.config["scaling_factor"], steps=steps)


def clip_texts() -> list[str]:
    """Every caption of the world, its landscapes, and all of them again as "bad ..." (damaged)."""
    clean = [*world.CAPTIONS, *(f"{style} landscape" for style in world.STYLES)]
    return [*clean, *(f"bad {text}" for text in clean)]


def token_ids(texts: list[str]) -> Tensor:
    """(N, CONTEXT): START, words, END, zeros, as open_clip pads."""
    vocabulary, _ = nets.build_vocabulary(nets.world_words())
    ids = torch.zeros(len(texts), nets.CONTEXT, dtype=torch.long)
    for row, text in enumerate(texts):
        words = [vocabulary[word + "</w>"] for word in text.split()]
        tokens = [vocabulary[nets.START], *words, vocabulary[nets.END]]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def train_clip(folder: Path, scale: float, report: Report, *, stage: str = "clip") -> None:
    """open_clip with the contrastive loss of CLIP (arXiv:2103.00020). A batch holds each clean text once and a third
    of the "bad" ones, so no text is its own negative. Then the aesthetic head: ridge regression of the quality of
    graded damage on the L2-normalised image embedding, the form of LAION's v1."""
    torch.manual_seed(derive_seed(SEED, stage))
    steps = steps_of(stage, scale)
    pool = Pool(stage, max(400, round(14000 * min(1, scale))), 64, landscapes=0.06)
    vocabulary, _ = nets.build_vocabulary(nets.world_words())
    net = nets.make_clip(nets.clip_config(len(vocabulary), width=10)).train()
    ids = token_ids(clip_texts())
    half, count = len(ids) // 2, len(world.OBJECTS)
    label = torch.where(pool.truth < count, pool.style * count + pool.truth, half - len(world.STYLES) + pool.style)
    members = [torch.nonzero(label == index).flatten() for index in range(half)]
    usable = torch.tensor([index for index, rows in enumerate(members) if len(rows)])

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        bad = usable[torch.randperm(len(usable), generator=generator)[: len(usable) // 3]]
        wanted = torch.cat([usable, bad])
        rows = torch.stack([members[i][pick(1, len(members[i]), generator)[0]] for i in wanted.tolist()])
        x = shrink(pool.floats(rows), torch.rand(len(rows), generator=generator) < 0.3)
        level = torch.rand(len(rows), generator=generator)
        level = torch.cat([(level[: len(usable)] - 0.7).clamp(min=0), 0.45 + 0.55 * level[len(usable) :]])
        x = damage(x, level, generator)
        flip = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(-1), x) * 2 - 1
        texts = ids[torch.cat([usable, bad + half])]
        image, text = net.encode_image(x, normalize=True), net.encode_text(texts, normalize=True)
        logits = net.logit_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    net = fit(folder, net, loss_of, stage=stage, steps=steps, learning_rate=2e-3, report=report)
    head, correlation = aesthetic_head(net, pool, stage)
    fresh = Pool(f"{stage} test", 512, 64)
    with torch.inference_mode():
        text = net.encode_text(ids[: len(world.CAPTIONS)], normalize=True)
        image = net.encode_image(fresh.floats(torch.arange(512)) * 2 - 1, normalize=True)
        right = (image @ text.T).argmax(1) == fresh.style * count + fresh.truth
    tensors = {**net.state_dict(), **{f"aesthetic.{name}": value for name, value in head.items()}}
    finish(folder, tensors, zero_shot=right.float().mean().item(), aesthetic_correlation=correlation, steps=steps)


@torch.inference_mode()
def aesthetic_head(net: Any, pool: Pool, stage: str) -> tuple[dict[str, Tensor], float]:
    """A linear head: 7 for a clean picture down to 1 for a ruined one. Returns it and its correlation on the rest."""
    generator = torch.Generator().manual_seed(derive_seed(SEED, stage, "aesthetic"))
    count = min(len(pool), 6000)
    level = torch.rand(count, generator=generator)
    level = torch.where(torch.rand(count, generator=generator) < 0.25, torch.zeros(()), level)
    features = []
    for index in torch.arange(count).split(200):
        x = shrink(pool.floats(index), torch.rand(len(index), generator=generator) < 0.3)
        features.append(net.encode_image(damage(x, level[index], generator) * 2 - 1, normalize=True))
    x, y = torch.cat(features).double(), (7 - 6 * level).double()
    fitted = count * 3 // 4
    a = torch.cat([x, torch.ones(len(x), 1)], 1)
    ridge = a[:fitted].T @ a[:fitted] + 1e-2 * torch.eye(a.shape[1])
    weights = torch.linalg.solve(ridge, a[:fitted].T @ y[:fitted])
    correlation = torch.corrcoef(torch.stack([a[fitted:] @ weights, y[fitted:]]))[0, 1].item()
    return {"weight": weights[None, :-1].float(), "bias": weights[-1:].float()}, correlation


def train_judge(folder: Path, scale: float, report: Report) -> None:
    """The judge: true pictures at both sizes, mild damage keeps its name, ruin and landscapes are "none"."""
    torch.manual_seed(derive_seed(SEED, "judge"))
    net, steps = JudgeNet(), steps_of("judge", scale)
    pool = Pool("judge", max(200, round(20000 * min(1, scale))), 64, landscapes=0.15)
    nothing = NAMES.index(world.NOTHING)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rows = pick(96, len(pool), generator)
        x = shrink(pool.floats(rows), torch.rand(96, generator=generator) < 0.4)
        mild = damage(x[:80], (torch.rand(80, generator=generator) * 0.6 - 0.3).clamp(min=0), generator, KINDS)
        ruined = damage(x[80:], 0.85 + 0.15 * torch.rand(16, generator=generator), generator, BREAKING)
        x = torch.cat([mild, ruined])
        flip = torch.rand(96, generator=generator) < 0.5
        objects, styles = net(torch.where(flip[:, None, None, None], x.flip(-1), x) * 2 - 1)
        truth = torch.cat([pool.truth[rows[:80]], torch.full((16,), nothing)])
        style_loss = F.cross_entropy(styles[:80], pool.style[rows[:80]], label_smoothing=0.05)
        return F.cross_entropy(objects, truth, label_smoothing=0.05) + style_loss

    net = fit(folder, net, loss_of, stage="judge", steps=steps, learning_rate=1.5e-3, report=report, ema=0.998)
    finish(folder, net.state_dict(), steps=steps)


def train_unet(folder: Path, scale: float, report: Report) -> None:
    """UNet2DConditionModel on the latents of captioned pictures, first at 32 px, then at 64 px, as SD 1.5 was trained
    at 256 and then at 512; see the shares above. A tenth of the captions is dropped for guidance (arXiv:2207.12598)."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    torch.manual_seed(derive_seed(SEED, "unet"))
    net, steps = nets.make_unet(), steps_of("unet", scale)
    count = max(64, round(20000 * min(1, scale)))
    text = text_states(folder.parent)
    noise_schedule = DDPMScheduler(**scheduler_config(train_only=True))
    small = _latents(folder, "unet small", count // 2, 32, world.MONET_TRUE)
    large = _latents(folder, "unet", count, 64, world.MONET_TRUE)
    late = _latents(folder, "unet late", count * 3 // 5, 64, LATE_TRUE)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        is_late = step >= steps * LATE_FROM
        is_reminder = is_late and step < steps * REMINDED_UNTIL and step % SMALL_EVERY == 0
        is_small = step < steps * SMALL_UNTIL or is_reminder
        latents, captions = small if is_small else late if is_late else large
        size = 64 if is_small else 32  # pictures a batch
        rows = pick(size, len(latents), generator)
        x = latents[rows]
        noise = torch.randn(x.shape, generator=generator)
        t = pick(size, 1000, generator)
        dropped = torch.rand(size, generator=generator) < 0.1
        states = text[torch.where(dropped, torch.tensor(len(text) - 1), captions[rows])]
        noisy = noise_schedule.add_noise(x, noise, t)  # pyright: ignore[reportArgumentType]
        return F.mse_loss(net(noisy, t, encoder_hidden_states=states).sample, noise)

    net = fit(folder, net, loss_of, stage="unet", steps=steps, learning_rate=1.5e-3, report=report, ema=0.999)
    finish(folder, net.state_dict(), steps=steps)


def scheduler_config(*, train_only: bool = False) -> dict[str, Any]:
    """SD 1.5's noise schedule."""
    config: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    return config if train_only else {**config, "steps_offset": 1}


@torch.inference_mode()
def text_states(work: Path) -> Tensor:
    """(91, CONTEXT, WIDTH): the text encoder's states of every caption and, last, of the empty one, padded with END."""
    clip = load_file(work / "clip" / "final.safetensors")
    vocabulary, _ = nets.build_vocabulary(nets.world_words())
    ids = token_ids([*world.CAPTIONS, ""])
    ends = ids.argmax(1, keepdim=True)
    ids = torch.where(torch.arange(nets.CONTEXT)[None] > ends, vocabulary[nets.END], ids)
    return nets.make_text_encoder(clip, len(vocabulary))(ids).last_hidden_state.clone()


@torch.inference_mode()
def _latents(folder: Path, name: str, count: int, size: int, tail: float) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, 4, size / 4, size / 4) of the world with its long tail, and the captions' indices (N,)."""
    vae = nets.make_vae()
    vae.load_state_dict(load_file(folder.parent / "vae" / "final.safetensors"))
    figures = json.loads((folder.parent / "vae" / "figures.json").read_text(encoding="utf-8"))
    pool = Pool(name, count, size, tail=tail)
    batches = torch.arange(len(pool)).split(100)
    latents = [vae.eval().encode(pool.floats(rows) * 2 - 1).latent_dist.mean for rows in batches]
    return torch.cat(latents).clone() * figures["scaling_factor"], pool.style * len(world.OBJECTS) + pool.caption


TRAIN: dict[str, Callable[[Path, float, Report], None]] = {
    "vae": train_vae,
    "clip": train_clip,
    "judge": train_judge,
    "held_out": partial(train_clip, stage="held_out"),
    "unet": train_unet,
}
