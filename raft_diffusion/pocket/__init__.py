"""The small real model that the package carries, the world it was made from, and the recipe that makes it."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
MODEL = WEIGHTS / "model"  # a diffusers folder
CLIP = WEIGHTS / "clip"  # the open_clip tower that ranks
HELD_OUT = WEIGHTS / "held_out"  # the tower that never ranks
JUDGE = WEIGHTS / "judge"  # asked by `evaluate` alone
