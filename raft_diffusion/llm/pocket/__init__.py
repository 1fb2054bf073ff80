"""The small language models that the package carries, their worlds, and the recipe that makes them."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
CARRIED = {
    "pocket-reviews": WEIGHTS / "reviews",  # writes film reviews
    "pocket-reviews-small": WEIGHTS / "reviews_small",  # does so with a fifth of the weights: a student
    "pocket-sums": WEIGHTS / "sums",  # answers sums
    "pocket": WEIGHTS / "sentiment",  # the classifier that ranks reviews
    "pocket-held-out": WEIGHTS / "held_out",  # one of the same kind that never ranks: the guard's
}
"""The models that settings may name, by that name."""
JUDGE = WEIGHTS / "judge"  # asked by the evaluation alone
