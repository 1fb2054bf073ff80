"""One LoRA on a frozen model (Hu et al. 2021, arXiv:2106.09685): W x + (alpha / rank) B A x, with B = 0 at first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..core.files import write_atomically
from ..lora.file import FILE_NAME, METADATA, TARGETS, TEXT_ENCODER_TARGETS
from ..room import is_out_of_memory
from .load import Components
from .lora_weights import LoraWeights


class Adapter:
    """The weights that learn, float32, in the UNet and, if wanted, in the text encoder's attention.

    rank, alpha: the LoRA is scaled by alpha / rank.
    targets: names of `TARGETS`, the UNet's layers that carry it.
    seed: of the initial A (Kaiming uniform, as in the paper's code); the global random state has no say.
    start: a LoRA to begin with, of `rank` at most; its layers carry the adapter whether or not `targets` names them.
        It changes the model as it did where it came from, whatever its own scale and ranks.
    Raises ValueError for an unknown group, or a model that carries an adapter already.
    """

    def __init__(
        self,
        components: Components,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        text_encoder: bool,
        seed: int,
        start: Sequence[LoraWeights] = (),
    ) -> None:
        unknown = [name for name in targets if name not in TARGETS]
        if unknown or not (targets or start):
            raise ValueError(f"adapter targets {list(targets)} are not known; choose from {', '.join(TARGETS)}")
        if rank < 1 or not 0 < alpha < math.inf:
            raise ValueError(f"an adapter needs rank >= 1 and alpha > 0, not rank {rank} and alpha {alpha}")
        if too_large := next((weights for weights in start if weights.rank > rank), None):
            raise ValueError(
                f"the LoRA to start from has the rank {too_large.rank} in {too_large.path}, more than the adapter's "
                f"{rank}; give the adapter that rank"
            )
        layers = _layers(targets, text_encoder, start)
        self.seed = seed
        self.strength = 1.0
        self.trains_text_encoder = "text_encoder" in layers
        self._start = start
        self._scale = alpha / rank
        self._models: dict[str, Any] = {part: getattr(components, part) for part in layers}
        self._metadata: dict[str, Any] = {}
        for part, model in self._models.items():
            if next(_tuner_layers(model), None) is not None:
                raise ValueError(f"the {part} carries an adapter already; load the model anew for another one")
            model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers[part]))  # pyright: ignore
            self._metadata |= {f"{part}.{key}": value for key, value in _minimal(rank, alpha, layers[part]).items()}
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        self.reset()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable weights by their name in the saved file, in the model's own order."""
        return {
            f"{_prefix(part, name)}{name.replace('.default.', '.')}": parameter
            for part, model in self._models.items()
            for name, parameter in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the initial weights: A as the seed draws it and B = 0, so that the model is the base again; or the
        LoRA that the adapter started from."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        parameters = self.parameters()
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.zero_()
            else:
                start = torch.empty(parameter.shape)
                parameter.copy_(torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator))
        for weights in self._start:
            layer = f"{_prefix(weights.part, weights.path)}{weights.path}"
            # The rows of A beyond the LoRA's own rank stay random: with B = 0 they add nothing, and they can learn.
            parameters[f"{layer}.lora_A.weight"][: weights.rank].copy_(weights.down)
            parameters[f"{layer}.lora_B.weight"][:, : weights.rank].copy_(weights.up * (weights.scale / self._scale))

    def enable(self, enabled: bool) -> None:
        """Let the model run with the adapter (True) or as the plain base (False)."""
        for model in self._models.values():
            for layer in _tuner_layers(model):
                layer.enable_adapters(enabled)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Within this context the UNet's own weights hold what the LoRA adds, so that it costs nothing to sample with;
        afterwards they are the frozen ones again, bit by bit.

        The LoRA stays beside them in bfloat16, whose 8 bits would round much of it away, and where a device has no room
        for a second copy of the layers' weights. Nothing is learnt meanwhile.
        """
        frozen: list[tuple[Any, torch.Tensor]] = []
        try:
            try:
                for layer in self._foldable():
                    weight = layer.get_base_layer().weight
                    frozen.append((layer, weight.data))
                    weight.data = weight.data.clone()
                    layer.merge()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            yield
        finally:
            for layer, weights in frozen:
                layer.get_base_layer().weight.data = weights
                layer.merged_adapters.clear()

    def _foldable(self) -> list[Any]:
        unet = self._models.get("unet")
        if unet is None or unet.dtype == torch.bfloat16:
            return []
        return [layer for layer in _tuner_layers(unet) if not layer.disable_adapters]

    def save(self, folder: Path) -> None:
        """Write `FILE_NAME` in diffusers' format, float32; the same weights always give the same bytes.

        The rank and alpha go along as `lora_adapter_metadata`, without which a reader assumes alpha = rank. It names
        only what older versions of peft know too, and it is the only entry: safetensors shuffles several.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.parameters().items()}
        content = save(tensors, metadata={METADATA: json.dumps(self._metadata, sort_keys=True)})
        write_atomically(folder / FILE_NAME, content)

    def load(self, folder: Path) -> None:
        """Set the weights to those that `save` wrote, bit by bit. Raises ValueError when they do not fit."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise ValueError(f"there is no adapter {path}")
        try:
            with safe_open(path, "pt") as file:
                stored = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        except SafetensorError as error:
            raise ValueError(f"the adapter {path} is no whole .safetensors file ({error}); put it back") from None
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict):
            raise ValueError(f"the adapter {path} has a broken {METADATA}; put it back")
        wrong = [key for key in self._metadata | stored if self._metadata.get(key) != stored.get(key)]
        if wrong:
            differences = [f"{key} {stored.get(key)} instead of {self._metadata.get(key)}" for key in wrong]
            raise ValueError(f"{path} does not fit this adapter: it has {', '.join(differences)}")
        self._copy_weights(path)

    @torch.no_grad()
    def _copy_weights(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            parameters = self.parameters()
            if shapes != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
                raise ValueError(f"{path} does not fit this model: its layers have other names or sizes")
            stored = {name: file.get_tensor(name) for name in shapes}
        if not all(tensor.isfinite().all() for tensor in stored.values()):
            raise ValueError(f"{path} holds numbers that are not finite; put it back")
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])

    def set_strength(self, strength: float) -> None:
        """Multiply the LoRA's alpha / rank by `strength` from now on: 0 is the base, 1 the LoRA as it was trained."""
        self.strength = strength
        for model in self._models.values():
            for layer in _tuner_layers(model):
                layer.set_scale("default", strength)  # pyright: ignore


def _layers(targets: Sequence[str], text_encoder: bool, start: Sequence[LoraWeights]) -> dict[str, list[str]]:
    """Part -> endings of its layers' names: the groups', then whole names of what the LoRA has beyond them."""
    layers = {"unet": [ending for name in TARGETS if name in targets for ending in TARGETS[name]]}
    layers["text_encoder"] = list(TEXT_ENCODER_TARGETS) if text_encoder else []
    groups = {part: tuple(f".{ending}" for ending in endings) for part, endings in layers.items()}
    for weights in start:
        if not f".{weights.path}".endswith(groups[weights.part]):
            layers[weights.part].append(weights.path)
    return {part: endings for part, endings in layers.items() if endings}


def _minimal(rank: int, alpha: float, layers: list[str]) -> dict[str, Any]:
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": layers,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "lora_bias": False,
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
    }


def _prefix(part: str, name: str) -> str:
    """transformers 5 dropped the `text_model.` level of a CLIP text encoder; every other reader still expects it."""
    return f"{part}.text_model." if part == "text_encoder" and not name.startswith("text_model.") else f"{part}."


def _tuner_layers(model: torch.nn.Module) -> Iterator[BaseTunerLayer]:
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))
