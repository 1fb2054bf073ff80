"""The tally that a walk through a network keeps: operations, weights and tensor sizes, layer by layer.

Legend: n tokens or pixels of a layer's output, r the rank of a LoRA, which is float32 whatever the network's type is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Size = tuple[int, int]
FLOAT = 4  # bytes of a float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One network on one picture (or one text).

    parameters: weights of the network; adapter: weights of the LoRA on it; adapted: the network's under the LoRA.
    flops: floating-point operations of the matrix products and convolutions, a multiply-add counted as two.
    moved: numbers that the layers read and write, weights left out; operations: layers run, a LoRA's two included.
    live: bytes alive at once at most, without gradients; saved: bytes kept for the backward pass.
    width: bytes of each number of the network, weights and activations.
    """

    parameters: int
    adapter: int
    adapted: int
    flops: int
    moved: int
    operations: int
    live: int
    saved: int
    width: int

    @property
    def weights(self) -> int:
        """Bytes of the parameters."""
        return self.width * self.parameters


class Walk:
    """Adds up what the layers take, in the order in which they run.

    width: bytes of a number; recompute: gradient checkpointing, so that a `block` keeps its input alone and is run
    again in the backward pass.
    """

    def __init__(
        self, *, rank: int = 0, targets: Sequence[str] = (), width: int = FLOAT, recompute: bool = False
    ) -> None:
        self._rank, self._targets, self._width, self._recompute = rank, targets, width, recompute
        self._parameters = self._adapter = self._adapted = self._flops = self._moved = self._operations = 0
        self._held = self._live = self._saved = self._largest = 0

    def cost(self) -> Cost:
        return Cost(
            parameters=self._parameters,
            adapter=self._adapter,
            adapted=self._adapted,
            flops=self._flops,
            moved=self._moved,
            operations=self._operations,
            live=self._live,
            saved=self._saved + self._largest,
            width=self._width,
        )

    def weights(self, count: int) -> None:
        """Weights that take part in no matrix product, such as an embedding's table."""
        self._parameters += count

    def convolve(
        self,
        before: int,
        after: int,
        size: Size,
        *,
        kernel: int = 3,
        stride: int = 1,
        group: str = "",
        bias: bool = True,
    ) -> None:
        """A convolution to `after` channels of the given size."""
        n = size[0] * size[1]
        taken, given = before * n * stride**2, after * n
        self._product(before * kernel**2, after, n, taken=taken, given=given, group=group, bias=bias)
        self._keep(taken)  # torch keeps a convolution's input even where its weights are frozen
        self._touch(2 * (taken + given))  # the library reorders both sides for its own kernels

    def linear(
        self, before: int, after: int, n: int, *, group: str = "", bias: bool = True, shared: bool = False
    ) -> None:
        """A linear layer on n tokens. A frozen one keeps nothing for the backward pass; shared: its input is kept
        already, by a layer beside it."""
        self._product(before, after, n, taken=before * n, given=after * n, group=group, bias=bias)
        if group in self._targets and not shared and self._width == FLOAT:
            self._keep(before * n)
        self._touch((before + after) * n)

    def norm(self, channels: int, n: int) -> None:
        """Group or layer normalisation with a scale and a shift."""
        self._parameters += 2 * channels
        self._elementwise(channels * n, reads=2, keeps=1)

    def activate(self, numbers: int) -> None:
        self._elementwise(numbers, reads=1, keeps=1)

    def add(self, numbers: int) -> None:
        self._elementwise(numbers, reads=2, keeps=0)

    def attend(self, channels: int, queries: int, keys: int) -> None:
        """softmax(Q K^T) V, fused: the matrix of weights is never stored."""
        self._flops += 4 * channels * queries * keys
        self._moved += 2 * channels * (queries + keys)
        self._keep(2 * channels * (queries + keys))
        self._operations += 1
        self._touch(2 * channels * (queries + keys))

    @contextmanager
    def holding(self, numbers: int) -> Iterator[None]:
        """A tensor that stays alive while the layers within run."""
        self.hold(numbers)
        yield
        self.hold(-numbers)

    def hold(self, numbers: int) -> None:
        self._held += numbers

    @contextmanager
    def block(self, taken: int) -> Iterator[None]:
        """What gradient checkpointing runs again, from an input of `taken` numbers: while one block is run again, only
        the inputs of the others are there."""
        before = self._saved
        yield
        if self._recompute:
            self._largest = max(self._largest, self._saved - before)
            self._saved = before
            self._keep(taken)

    def _product(self, inner: int, after: int, n: int, *, taken: int, given: int, group: str, bias: bool) -> None:
        self._parameters += inner * after + bias * after
        self._flops += 2 * inner * after * n
        self._moved += taken + given
        self._operations += 1
        if group in self._targets:  # W x + scale B A x
            r = self._rank
            self._adapter += r * (inner + after)
            self._adapted += inner * after
            self._flops += 2 * r * (inner + after) * n
            self._moved += taken + 2 * r * n + given + 5 * given
            self._keep(r * n, FLOAT)
            copy = 0 if self._width == FLOAT else FLOAT * taken  # each of its layers takes a float32 copy of its own
            self._saved += copy
            self._live = max(self._live, self._width * (self._held + taken + given) + copy + 2 * FLOAT * given)
            self._operations += 2

    def _elementwise(self, numbers: int, *, reads: int, keeps: int) -> None:
        self._moved += (reads + 1) * numbers
        self._keep(keeps * numbers)
        self._operations += 1
        self._touch((reads + 1) * numbers)

    def _keep(self, numbers: int, width: int = 0) -> None:
        if self._adapter:  # gradients end at the first layer that learns: nothing before it is kept
            self._saved += (width or self._width) * numbers

    def _touch(self, numbers: int) -> None:
        self._live = max(self._live, self._width * (self._held + numbers))
