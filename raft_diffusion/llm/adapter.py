"""One LoRA on a frozen language model (Hu et al. 2021, arXiv:2106.09685), its own weights in float32."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..core.files import write_atomically

FILE_NAME = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the output."""
_PREFIX = "base_model.model."


class TextAdapter:
    """Put in at construction, with B = 0: the model writes as before until it is trained.

    rank, alpha: the LoRA is scaled by alpha / rank. targets: names of layers, or `ALL_LINEAR`.
    seed: of the initial A; the global random state is left alone.
    name: of the base, for peft's `base_model_name_or_path`; never a path of this machine.
    Raises ValueError for a rank or an alpha that means nothing, and where no layer has one of the names.
    """

    def __init__(
        self, model: Any, *, rank: int, alpha: float, targets: Sequence[str] | str, seed: int, name: str = ""
    ) -> None:
        if rank < 1 or not 0 < alpha < math.inf:
            raise ValueError(f"an adapter needs rank >= 1 and alpha > 0, not rank {rank} and alpha {alpha}")
        self._model = model
        self._config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
            target_modules=targets if isinstance(targets, str) else list(targets),
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's layers
            task_type="CAUSAL_LM",
            base_model_name_or_path=name,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                inject_adapter_in_model(self._config, model)
            except ValueError as error:
                raise ValueError(f"no layer of the model is called {targets!r}: {error}") from error
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable weights by their name in the saved file, in the model's own order."""
        return {
            _PREFIX + name.replace(".default.", "."): parameter
            for name, parameter in self._model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    @property
    def is_on(self) -> bool:
        return not self._layers()[0].disable_adapters

    def _layers(self) -> list[BaseTunerLayer]:
        return [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]

    @contextlib.contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """Whether the adapter has a say in this context; contexts may be nested."""
        before = self.is_on
        self.switch(on)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, on: bool) -> None:
        """Whether the adapter has a say from now on."""
        for layer in self._layers():
            layer.enable_adapters(on)

    def save(self, folder: Path) -> None:
        """Write peft's own two files into an existing folder; `PeftModel.from_pretrained` reads them."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.parameters().items()}
        write_atomically(folder / FILE_NAME, save(tensors, metadata={"format": "pt"}))
        self._config.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Take over the weights that `save` wrote. Raises ValueError for a file that is missing, broken, or another
        model's."""
        path = folder / FILE_NAME
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}); give a folder that a text run saved") from None
        own = self.parameters()
        wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        if wrong or len(tensors) != len(own):
            raise ValueError(f"{path} is the adapter of another model or rank; give the one of this run")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
