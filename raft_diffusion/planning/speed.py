"""How fast a device runs what `costs` has counted: measured for CPUs, estimated for cards."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .walk import FLOAT, Cost

CARDS: dict[str, tuple[float, float, float]] = {
    "H200": (67, 990, 4800),
    "H100": (67, 990, 3350),
    "A100": (19.5, 312, 1555),
    "L40S": (91.6, 362, 864),
    "L40": (90.5, 181, 864),
    "L4": (30.3, 121, 300),
    "A40": (37.4, 150, 696),
    "A10G": (31.2, 70, 600),
    "A10": (31.2, 125, 600),
    "V100": (15.7, 125, 900),
    "T4": (8.1, 65, 320),
    "P100": (9.3, 18.7, 732),
    "6000 Ada": (91.1, 364, 960),
    "A6000": (38.7, 155, 768),
    "A5000": (27.8, 111, 768),
    "A4000": (19.2, 77, 448),
    "RTX 5090": (104.8, 210, 1792),
    "RTX 5080": (56.3, 113, 960),
    "RTX 5070": (30.9, 62, 672),
    "RTX 4090": (82.6, 165, 1008),
    "RTX 4080": (48.7, 97, 717),
    "RTX 4070": (29.1, 58, 504),
    "RTX 4060": (15.1, 30, 272),
    "RTX 3090": (35.6, 71, 936),
    "RTX 3080": (29.8, 60, 760),
    "RTX 3070": (20.3, 41, 448),
    "RTX 3060": (12.7, 26, 360),
    "RTX 2080": (10.1, 40, 448),
    "RTX 2070": (7.5, 30, 448),
    "RTX 2060": (6.5, 26, 336),
    "GTX 1080": (8.9, 8.9, 320),
}
"""(float32 TFLOP/s, float16 TFLOP/s with float32 sums, memory GB/s): peaks from the makers' data sheets."""
UNKNOWN_CARD = (10.0, 30.0, 300.0)
APPLE = (5.0, 5.0, 150.0)
REACHED = 0.4  # the share of a card's peaks that such networks commonly reach; a guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was timed: seconds of a UNet call on a full batch of candidates, and of a forward and backward pass over
    `tuning.batch_size` pictures with the optimiser's step."""

    unet_seconds: float
    tuning_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a device really reaches. flops: a second, in float32; half_flops: in mixed precision; bandwidth: bytes a
    second; call: seconds that each operation takes besides; start: seconds to import the libraries and load.

    known: whether the figures were measured; basis: where they come from, for people.
    """

    flops: float
    half_flops: float
    bandwidth: float
    call: float
    start: float
    known: bool
    basis: str

    def forward(self, cost: Cost, count: int) -> float:
        """Seconds of one forward pass over `count` pictures or texts."""
        half = cost.width < FLOAT
        return self._seconds(cost, count, half=half, passes=1.0, products=1.0)

    def train(self, cost: Cost, count: int, *, half: bool, recompute: bool = False) -> float:
        """Seconds of a forward and a backward pass. half: under mixed precision; recompute: gradient checkpointing,
        which runs the network forward once more.

        The products of the backward pass are those of the forward pass: the base is frozen, so only the gradients
        towards the input are computed (counted on SD 1.5's UNet: 2.0 to 2.1 times the forward pass in all).
        """
        half = half or cost.width < FLOAT
        return self._seconds(cost, count, half=half, passes=2.5 + recompute, products=2.05 + recompute)

    def corrected(self, measured: Measured, *, predicted: float, rows: int) -> Speed:
        """This speed, scaled so that a UNet call, of so many rows and predicted so many seconds, takes what was
        measured."""
        factor = predicted / measured.unet_seconds
        return replace(
            self,
            flops=self.flops * factor,
            half_flops=self.half_flops * factor,
            bandwidth=self.bandwidth * factor,
            call=self.call / factor,
            known=True,
            basis=(
                f"speed: measured here, {measured.unet_seconds:.3g} s for a UNet call of {rows} rows and "
                f"{measured.tuning_seconds:.3g} s for a pass of finetuning; the prediction was {predicted:.3g} s a call"
            ),
        )

    def _seconds(self, cost: Cost, count: int, *, half: bool, passes: float, products: float) -> float:
        moved = cost.width * (count * cost.moved + cost.parameters)
        work = products * count * cost.flops / (self.half_flops if half else self.flops)
        return work + passes * moved / self.bandwidth + passes * cost.operations * self.call


def cpu_speed(threads: int) -> Speed:
    """Measured on a server core of about 2.6 GHz with AVX-512, one and two threads; more threads are a guess.

    Fitted between a machine that others kept busy and one that was idle: with one thread `demo monet` took 194 s of CPU
    time and `demo resolution` 196 s on the busy one (99 GFLOP/s in a large matrix product), about 134 s each on the
    idle one. The call is the fixed part of the carried UNet's time at a batch of 1; two threads also wait for each
    other in each: they sampled 1.4 to 1.5 times and tuned 1.2 to 1.3 times as fast as one.
    """
    gain = threads**0.8
    return Speed(
        flops=120e9 * gain,
        half_flops=120e9 * gain,
        bandwidth=18e9 * min(gain, 6.0),
        call=27e-6 if threads == 1 else 54e-6,
        start=8.0,
        known=True,
        basis="speed: measured on one kind of CPU; yours may be half or twice as fast",
    )


def card_key(name: str | None) -> str | None:
    """The entry of `CARDS` that a card's name, such as "NVIDIA GeForce RTX 4090", stands for; None for none."""
    return next((key for key in CARDS if name and re.search(rf"\b{re.escape(key)}\b", name)), None)


def card_speed(name: str | None) -> Speed:
    """An estimate from a card's data sheet; none of them was measured."""
    key = card_key(name)
    single, half, bandwidth = CARDS[key] if key else UNKNOWN_CARD
    basis = (
        f"estimated from the data sheet of {key}" if key else f"a guess, as {name or 'the card'} is not in its table"
    )
    return _estimate(single, half, bandwidth, f"speed: not yet measured; {basis}")


def apple_speed() -> Speed:
    return _estimate(*APPLE, "speed: not yet measured; a guess for a Mac's GPU")


def _estimate(single: float, half: float, bandwidth: float, basis: str) -> Speed:
    return Speed(
        flops=single * 1e12 * REACHED,
        half_flops=half * 1e12 * REACHED,
        bandwidth=bandwidth * 1e9 * REACHED,
        call=12e-6,
        start=20.0,
        known=False,
        basis=basis,
    )
