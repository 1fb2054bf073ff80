"""What a bench has measured, and its arithmetic: plain numbers, no torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FLOOR = {
    "unet": "UNet, alone",
    "vae": "VAE, alone",
    "tower": "CLIP towers, alone",
    "backward": "passes of finetuning, alone",
}
STAGES = ("sample", "score", "select", "tune", "store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one round does, counted.

    images: candidates; sampled: (pictures a batch, batches); rows: of the UNet for one picture, 2 where it is guided;
    calls: UNet calls for one batch; decoded, scored: as `sampled`, of the VAE and of each tower.
    passes, tuned: forward and backward passes of finetuning, and the pictures of each.
    flops: of one row in the UNet, a multiply-add counted as two.
    """

    images: int
    sampled: Sequence[tuple[int, int]]
    rows: int
    calls: int
    decoded: Sequence[tuple[int, int]]
    scored: Sequence[tuple[int, int]]
    passes: int
    tuned: int
    flops: int

    @property
    def tuning_samples(self) -> int:
        return self.passes * self.tuned

    @property
    def sampling_flops(self) -> int:
        """Of the UNet while a round's candidates are sampled."""
        return self.flops * self.rows * self.calls * self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """One repeat, in seconds: a whole round, and the same calls of the networks alone.

    wall: the round. stages: its parts, by the names of `STAGES`. bare: the networks alone, by the names of `FLOOR`.
    inside: within the round, the UNet while it samples, the VAE, the towers, and the optimiser ("optimizer").
    """

    wall: float
    stages: Mapping[str, float]
    inside: Mapping[str, float]
    bare: Mapping[str, float]

    @property
    def floor(self) -> float:
        return sum(self.bare.values())

    @property
    def ratio(self) -> float:
        return self.wall / self.floor

    def rest(self) -> dict[str, float]:
        """What the round takes above the floor, by what it is. The parts add up to wall - floor; one may be below 0
        where a network was faster inside the round than alone."""
        stages, inside, bare = self.stages, self.inside, self.bare
        return {
            "UNet in the sampler, more than alone": inside["unet"] - bare["unet"],
            "VAE in the sampler, more than alone": inside["vae"] - bare["vae"],
            "sampler's own work: noise, scheduler, pictures": stages["sample"] - inside["unet"] - inside["vae"],
            "towers in scoring, more than alone": inside["tower"] - bare["tower"],
            "pictures and texts made ready for the towers": stages["score"] - inside["tower"],
            "optimiser": inside["optimizer"],
            "batches, noise, loss and clipping": stages["tune"] - inside["optimizer"] - bare["backward"],
            "ranking": stages["select"],
            "writing the round to disk": stages["store"],
            "between the stages": self.wall - sum(stages.values()),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of the repeats and their ends."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """laps: at least one. peak_memory: bytes; on a card those of torch's tensors, else of the whole process.

    peak_flops: what the card can at best, operations a second in the precision used; None where it is not known.
    """

    work: Work
    laps: Sequence[Lap]
    peak_memory: int
    peak_flops: float | None

    def over(self, measure: Callable[[Lap], float]) -> Spread:
        return Spread.of([measure(lap) for lap in self.laps])

    def speeds(self) -> dict[str, Spread]:
        """By the names of the JSON file."""
        work = self.work
        speeds = {
            "images_per_second": self.over(lambda lap: work.images / lap.stages["sample"]),
            "scored_per_second": self.over(lambda lap: work.images / lap.stages["score"]),
            "tuning_samples_per_second": self.over(lambda lap: work.tuning_samples / lap.stages["tune"]),
            "floor_ratio": self.over(lambda lap: lap.ratio),
            "seconds_per_round": self.over(lambda lap: lap.wall),
            "floor_seconds": self.over(lambda lap: lap.floor),
            "unet_flops_per_second": self.over(lambda lap: work.sampling_flops / lap.stages["sample"]),
        }
        if peak := self.peak_flops:
            speeds["flop_utilisation"] = self.over(lambda lap: work.sampling_flops / lap.stages["sample"] / peak)
        return speeds

    def floor(self) -> dict[str, Spread]:
        return {name: self.over(lambda lap, name=name: lap.bare[name]) for name in FLOOR}

    def rest(self) -> dict[str, Spread]:
        names = self.laps[0].rest()
        return {name: self.over(lambda lap, name=name: lap.rest()[name]) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Medians by name; the ends of each in `spread`; floor and rest in seconds; every repeat in `laps`."""
        speeds = self.speeds()
        return {
            **{name: spread.median for name, spread in speeds.items()},
            "peak_memory_bytes": self.peak_memory,
            "repeats": len(self.laps),
            "spread": {name: [spread.low, spread.high] for name, spread in speeds.items()},
            "floor": {name: spread.median for name, spread in self.floor().items()},
            "rest": {name: spread.median for name, spread in self.rest().items()},
            "laps": [
                {
                    "seconds": lap.wall,
                    "stages": dict(lap.stages),
                    "inside": dict(lap.inside),
                    "bare": dict(lap.bare),
                    "floor_ratio": lap.ratio,
                }
                for lap in self.laps
            ],
        }

    def rows(self) -> list[tuple[str, str]]:
        """The answer, for people."""
        from ..planning.forecast import size

        found = self.speeds()
        flops = found["unet_flops_per_second"]
        rows = [
            ("sampled", f"{_told(found['images_per_second'])} images a second"),
            ("scored", f"{_told(found['scored_per_second'])} images a second"),
            ("tuned", f"{_told(found['tuning_samples_per_second'])} pictures a second"),
            ("a round", f"{_told(found['seconds_per_round'])} s, {_told(found['floor_seconds'])} s of them the floor"),
            ("floor ratio", f"{_told(found['floor_ratio'])}"),
            ("UNet's arithmetic", f"{_told(flops, 1e12)} TFLOP/s while sampling"),
            ("peak memory", size(self.peak_memory)),
        ]
        if "flop_utilisation" in found:
            rows.insert(6, ("of the card's peak", f"{_told(found['flop_utilisation'], 0.01)} %"))
        return rows

    def profile(self) -> list[tuple[str, str, str]]:
        """(what, seconds, share of the floor) of the floor's parts, then of the rest's."""
        floor, parts = self.over(lambda lap: lap.floor).median, {FLOOR[name]: s for name, s in self.floor().items()}
        return [(w, f"{s.median:.3g}", f"{100 * s.median / floor:.1f} %") for w, s in (parts | self.rest()).items()]


def _told(spread: Spread, unit: float = 1.0) -> str:
    middle, low, high = (f"{value / unit:.3g}" for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low} to {high})"
