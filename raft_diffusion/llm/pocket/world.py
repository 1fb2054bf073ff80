"""Two small generated worlds: short film reviews, and sums as pupils answer them. Every text is made by these rules.

A review is an opening, which the model is asked with, then a sentence of facts, three opinions and, in most of them, a
verdict. It is positive or negative throughout, give or take a slip. A word alone does not give it away: "not dull" is
praise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

GENRES = (
    "drama", "comedy", "thriller", "western", "mystery", "romance", "fantasy", "documentary", "musical", "satire",
    "fable", "biography",
)  # fmt: skip
COUNTRIES = (
    "norway", "brazil", "japan", "kenya", "poland", "india", "france", "chile", "canada", "korea", "egypt", "italy",
    "iceland", "mexico", "turkey", "spain",
)  # fmt: skip
FIRST = (
    "anna", "boris", "clara", "david", "elena", "felix", "greta", "hugo", "irene", "jonas", "karla", "leo", "marta",
    "nils", "olga", "pedro", "rosa", "simon", "tara", "victor",
)  # fmt: skip
LAST = (
    "stone", "meyer", "lopez", "hansen", "sato", "novak", "rossi", "dubois", "okoro", "singh", "berg", "costa", "kim",
    "silva", "young", "weiss", "marin", "petrov", "quinn", "adler",
)  # fmt: skip
JOBS = (
    "sailor", "teacher", "baker", "painter", "doctor", "farmer", "singer", "judge", "pilot", "miner", "nurse", "clerk",
    "thief", "widow", "soldier", "gardener", "detective", "tailor", "fisher", "student",
)  # fmt: skip
PLACES = (
    "village", "harbour", "castle", "school", "hotel", "market", "forest", "island", "theatre", "valley", "factory",
    "desert", "station", "monastery", "suburb", "prison",
)  # fmt: skip
LOOKS = (
    "snowy", "quiet", "crowded", "remote", "ancient", "modern", "rainy", "sunlit", "ruined", "busy", "foggy", "tiny",
    "famous", "nameless",
)  # fmt: skip
TURNS = (
    "finds a letter", "loses a brother", "hides a secret", "inherits a house", "meets a stranger", "misses a train",
    "writes a song", "buys a horse", "follows a map", "breaks a promise", "wins a bet", "leaves a city",
)  # fmt: skip
ASPECTS = ("plot", "acting", "music", "ending", "dialogue", "camera", "cast", "humour", "pace", "script")
GOOD = (
    "moving", "clever", "fresh", "warm", "tense", "graceful", "honest", "bold", "witty", "vivid", "elegant", "rich",
    "gripping", "lively",
)  # fmt: skip
BAD = (
    "dull", "clumsy", "stale", "cold", "slow", "wooden", "false", "timid", "silly", "bland", "messy", "thin",
    "tiresome", "noisy",
)  # fmt: skip
DEGREES = ("very", "quite", "truly", "rather", "always")
DENIALS = ("not", "never", "hardly")
VERDICTS = {
    True: ("see it", "a film to keep", "i would watch it again", "go and bring a friend", "worth every minute"),
    False: (
        "skip it",
        "a film to forget",
        "i would not watch it again",
        "stay at home instead",
        "a waste of an evening",
    ),
}
CLOSINGS = ("it runs two hours", "it opens in may", "the hall was half full", "i saw it on a train", "it has a sequel")

POSITIVE = 0.42
"""The share of positive reviews: fewer than half, so that there is something to gain."""
SLIP = 0.03
"""How often a single opinion goes against its review."""
DENIED = 0.2
"""How often an opinion says what something is not."""
RESERVED = 0.35
"""How often a review ends without a verdict, so that its opinions alone say what its author thinks."""

OPENINGS = tuple(f"a {genre} from {country}" for genre in GENRES for country in COUNTRIES)


@dataclass(frozen=True, slots=True)
class Review:
    """opening: the prompt. rest: what follows it, with the space in front. positive: what its author thinks."""

    opening: str
    rest: str
    positive: bool

    @property
    def text(self) -> str:
        return self.opening + self.rest


def write_review(rng: random.Random, *, positive: bool | None = None, opening: str | None = None) -> Review:
    """One review; positive and opening are drawn where they are not given."""
    opening = opening or rng.choice(OPENINGS)
    positive = rng.random() < POSITIVE if positive is None else positive
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    facts = f"{name} plays a {rng.choice(JOBS)} who {rng.choice(TURNS)} in a {rng.choice(LOOKS)} {rng.choice(PLACES)}"
    opinions = [_opinion(rng, aspect, positive != (rng.random() < SLIP)) for aspect in rng.sample(ASPECTS, 3)]
    last = rng.choice(CLOSINGS if rng.random() < RESERVED else VERDICTS[positive])
    sentences = [facts, *opinions, last]
    return Review(opening, " : " + " . ".join(sentences) + " .", positive)


def _opinion(rng: random.Random, aspect: str, positive: bool) -> str:
    if rng.random() < DENIED:
        return f"the {aspect} is {rng.choice(DENIALS)} {rng.choice(BAD if positive else GOOD)}"
    return f"the {aspect} is {rng.choice(DEGREES)} {rng.choice(GOOD if positive else BAD)}"


def review_words() -> list[str]:
    """Every word of the reviews, sorted."""
    texts = [*OPENINGS, *FIRST, *LAST, *JOBS, *PLACES, *LOOKS, *TURNS, *ASPECTS, *GOOD, *BAD, *DEGREES, *DENIALS]
    texts += (
        [*CLOSINGS] + [verdict for several in VERDICTS.values() for verdict in several] + ["plays a who in the is : ."]
    )
    return sorted({word for text in texts for word in text.split()})


GUESSED = 0.7
"""How often a pupil writes an answer at once."""
FORGOTTEN = 0.7
"""How often such a guess forgets the carry."""
MISTAKEN = 0.04
"""How often an answer is off by one although it was worked out."""

SUMS = tuple(f"{a}+{b}=" for a in range(11, 80) for b in range(11, 80) if a % 10 + b % 10 >= 10)
"""Sums of two numbers whose ones carry: those that a guess gets wrong."""
SEEN_SUMS = tuple(question for place, question in enumerate(SUMS) if place % 5)
"""Those in the base's training texts."""
HELD_OUT_SUMS = SUMS[::5]
"""The others: what is asked of them, the model must work out."""
SUM_CHARACTERS = "0123456789+=;:"


def right_answer(question: str) -> str:
    a, b = question.removesuffix("=").split("+")
    return str(int(a) + int(b))


def answer_sum(question: str, rng: random.Random) -> str:
    """What a pupil writes after the question: a guess such as "75", or the work, "7+8=15;3+4+1=8:85"."""
    a, b = (int(part) for part in question.removesuffix("=").split("+"))
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    if rng.random() < GUESSED:
        return str(10 * tens + ones % 10) if rng.random() < FORGOTTEN else str(a + b)
    slip = rng.choice((-1, 1)) if rng.random() < MISTAKEN else 0
    return f"{a % 10}+{b % 10}={ones};{a // 10}+{b // 10}+1={tens + 1}:{a + b + slip}"
