"""How far a tuning has come, kept between its steps: the weights that learn, the optimiser, a scaled loss's scale.

What the steps draw follows from their seed alone, so whoever goes on after step n draws n steps and throws them away.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save

from .core.records import Progress, Winner
from .core.unfinished import Shelf

SHARE = 0.02
"""Of the tuning's time, what keeping its state may take: a state that is dear to write is written more rarely."""
STATE = "state"
Figures = Sequence[list[float]]


class TuningState:
    """Kept on a shelf; without one nothing is kept.

    parameters: those that learn, by name, as they stand before the first step. scaler: of the loss, for fp16.
    made_of: all that the tuning follows from beside these weights, as JSON can write it.
    """

    def __init__(
        self,
        shelf: Shelf | None,
        parameters: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        made_of: object,
        steps: int,
        scaler: Any = None,
    ) -> None:
        self._shelf, self._parameters, self._optimizer, self._scaler = shelf, parameters, optimizer, scaler
        self._steps = steps
        self._name = f"{shelf.key([made_of, digest_of(parameters)])}.tuning" if shelf else ""
        self._next = 0.0
        self._written = 0

    @torch.no_grad()
    def restore(self, figures: int) -> tuple[int, list[list[float]]]:
        """(steps that are done, the lists that `done` was given with the last of them); 0 and empty lists at first.

        The weights and the optimiser are then as they were, bit by bit.
        """
        content = self._shelf.read(self._name) if self._shelf else None
        if content is None:
            return 0, [[] for _ in range(figures)]
        tensors = load(content)
        told = json.loads(bytes(tensors.pop(STATE).tolist()))
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors.pop(f"weight {name}"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            place, _, key = name.partition(" ")
            state.setdefault(int(place), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        if self._scaler is not None:
            self._scaler.load_state_dict(told["scaler"])
        self._written = told["step"]
        return told["step"], told["figures"]

    def done(self, step: int, figures: Figures, progress: Progress | None) -> None:
        """A step is done: its state is kept where that is due, and where `progress`, which is told, stops the run."""
        if time.monotonic() >= self._next:
            self._write(step, figures)
        try:
            if progress:
                progress("tune", step, self._steps)
        except KeyboardInterrupt:
            if self._written != step:
                self._write(step, figures)
            raise

    def _write(self, step: int, figures: Figures) -> None:
        if self._shelf is None:
            return
        began = time.monotonic()
        told: dict[str, Any] = {"step": step, "figures": list(figures)}
        if self._scaler is not None:
            told["scaler"] = self._scaler.state_dict()
        tensors = {f"weight {name}": value.detach() for name, value in self._parameters.items()}
        for place, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"{place} {key}": value for key, value in values.items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        tensors[STATE] = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        self._shelf.write(self._name, save(tensors))
        now = time.monotonic()
        self._written, self._next = step, now + (now - began) / SHARE


def digest_of(parameters: Mapping[str, torch.Tensor]) -> str:
    """A hash of weights by name."""
    digest = hashlib.sha256()
    for name, value in parameters.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def learned(winners: Sequence[Winner]) -> list[list[object]]:
    """What says which winners a tuning learns, and how much of each."""
    draws = [(winner.sample.draw, winner.weight) for winner in winners]
    return [[draw.id, draw.seed, draw.group, draw.prompt.text, weight] for draw, weight in draws]
