"""Write a .safetensors file tensor by tensor: in little memory, with progress, the same bytes for the same content.

The safetensors package writes metadata of several entries in an order that changes from run to run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""The data types that weights are written in, by their names on the command line -> torch's."""
CODES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
"""The same -> those in a header."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    count: Callable[[int], None] = lambda size: None,
) -> None:
    """Write the tensors, sorted by name, and flush them to the disk. count: called with the bytes of each one."""
    with path.open("wb") as file:
        file.write(header(tensors, metadata))
        for name in sorted(tensors):
            data = tensor_bytes(tensors[name])
            file.write(data)
            count(len(data))
        file.flush()
        os.fsync(file.fileno())


def header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The length as 8 bytes, then the table; the spaces at its end let the data begin at a multiple of 8."""
    codes = {f"torch.{DTYPES[name]}": code for name, code in CODES.items()}
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": codes[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers as they lie in memory, row by row; numpy has no bfloat16."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
