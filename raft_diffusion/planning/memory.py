"""The most memory that a run takes at once, and what makes it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..core.config import Config
from .parts import Parts

TOWER_BATCH = 64  # pictures that a CLIP tower takes at once
DECODED_PIXELS = 2**20  # pictures are decoded in parts of at most so many pixels, `diffusion.sampler`'s own number

# Measured on Linux, float32, one thread: the process holds 0.97 GB once torch, diffusers, transformers, peft,
# accelerate and open_clip are imported, and their caches and the allocator's leftovers grow by about another 0.4 GB
# over a run. Beside the tensors themselves come the kernels' copies of them: up to 2.2 times with the carried model's
# narrow layers, whose channels are padded to 16, and 1.0 times with SD 1.5's. Peaks of whole runs: pocket-monet 1.87
# GB, pocket-resolution 1.71 GB; a round of SD 1.5 at 256 px, 4 pictures sampled at once and 2 trained on, 7.18 GB
# from a folder and 7.27 GB from a checkpoint, 7.0 and 7.3 GB of them while float16 weights became float32.
LIBRARIES = 1.4e9
WORKSPACE = 1.6
CARD_CONTEXT = 0.6e9  # CUDA's own share of a card; not measured
CARD_WORKSPACE = 1.0


def peak_memory(config: Config, parts: Parts, *, device: str, guided: bool, images: int, most: int) -> int:
    """Bytes on `device` at the run's peak.

    guided: whether pictures are ever sampled with guidance, two rows of a batch each; images: candidates a round;
    most: pictures that are asked for at once, at most, in a round or in the evaluation.
    """
    sampling, tuning = config.sampling, config.tuning
    batch = min(sampling.batch_size, most)
    pixels = sampling.width * sampling.height
    decoded = min(batch, max(1, DECODED_PIXELS // pixels))
    scored = min(TOWER_BATCH, most)
    workspace = CARD_WORKSPACE if device == "cuda" else WORKSPACE
    # Candidates are sampled with a copy of the layers under the LoRA, unless they are bfloat16 (`Adapter.folded`).
    folded = 0 if config.precision == "bf16" else parts.unet.width * parts.unet.adapted
    optimiser = 3 * parts.adapter  # gradients and AdamW's two averages
    stages = (
        workspace * batch * (2 if guided else 1) * parts.unet.live + folded,
        workspace * decoded * parts.decoder.live,
        workspace * scored * max((tower.live for tower in parts.towers), default=0),
        tuning.batch_size * (parts.unet.saved + parts.text_encoder.saved + workspace * parts.unet.live) + optimiser,
    )
    held = parts.weights + parts.adapter + max(stages)
    if device == "cuda":
        return round(CARD_CONTEXT + held)
    loading = parts.weights + parts.unet.weights / 2  # a float16 file counts until its float32 copy is made
    return round(LIBRARIES + max(held + images * pixels * 3, loading))


def smaller(config: Config, peak: Callable[[Config], int], limit: int) -> tuple[dict[str, str], int]:
    """({setting: value}, peak) of a few changes that bring the peak within `limit` bytes, or as near as they can.

    None of them changes a picture or what is learnt: batches are split, and a step's passes run one after the other.
    """
    changes: dict[str, str] = {}
    lowest = peak(config)
    while lowest > limit:
        for step in _steps(config):
            changed = config.with_overrides([f"{key}={value}" for key, value in step.items()])
            if (reached := peak(changed)) < lowest:
                config, lowest = changed, reached
                changes |= step
                break
        else:
            break
    return changes, lowest


def _steps(config: Config) -> Iterator[dict[str, str]]:
    """Changes worth a try, the cheapest first."""
    sampling, tuning = config.sampling, config.tuning
    if not tuning.gradient_checkpointing:
        yield {"tuning.gradient_checkpointing": "true"}
    passes = 1
    while tuning.batch_size % (2 * passes) == 0:
        passes *= 2
        yield {
            "tuning.batch_size": str(tuning.batch_size // passes),
            "tuning.gradient_accumulation": str(tuning.gradient_accumulation * passes),
        }
    batch = sampling.batch_size
    while batch > 1:
        batch //= 2
        yield {"sampling.batch_size": str(batch)}


def short_of_memory(
    config: Config, peak: Callable[[Config], int], *, there: int, say: Callable[[float], str]
) -> str | None:
    """What to do where the peak is above the `there` bytes that the device has; None where it is not.

    say: writes bytes for people.
    """
    changes, reached = smaller(config, peak, there)
    told = f"this is more memory than the {say(there)} that are there"
    if not changes:
        return None if reached <= there else f"{told}, and no setting but smaller pictures makes it less"
    words = " and ".join(f"{key} = {value}" for key, value in changes.items())
    if reached > there:
        return f"{told}; {words} would bring it to {say(reached)}, which is still too much: make smaller pictures"
    return f"{told}: set {words}, which brings it to {say(reached)} and changes no picture"
