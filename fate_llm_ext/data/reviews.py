"""A second synthetic corpus of a closed domain: reviews of restaurants, negative, mixed or positive.

Subject, labels and patterns are others than those of the support tickets (:mod:`fate_llm_ext.data.corpus`), so that
the two can stand for two parties' different tasks. Made from a seed; the first rows of a longer corpus are those of a
shorter one. Opinions are worded in many ways, some of them by negation, so that a few hundred reviews do not show
them all; some reviews give none, or say at last the opposite of what they list, so that even a perfect reader does
not reach 100 %. Reviews are filled sentence patterns, and two of any seeds share whole sentences: accuracies on this
corpus say nothing about real text.
"""

from __future__ import annotations

import random
from typing import Dict, List, Sequence, Tuple

SENTIMENTS = ("negative", "mixed", "positive")
SILENT = 0.05  # share of reviews that give no opinion
TURNED = 0.03  # share whose last word overrules what they list
NEGATED = 0.05  # share of the opinions that deny their opposite

# What is judged, then how: good and bad words that fit behind "was".
_ASPECTS: Dict[str, Tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "food": (
        ("the {dish}", "my {dish}", "the {dish} of my {guest}", "the {dish} with {side}", "our second {dish}"),
        ("delicious", "fresh", "tender", "full of flavour", "crisp", "perfectly seasoned", "juicy", "a small wonder",
         "cooked to the point", "better than at home", "light and fragrant", "the best I had in years"),
        ("bland", "cold", "burnt", "soggy", "far too salty", "dry as dust", "greasy", "raw inside", "tough",
         "out of a tin", "swimming in oil", "worse than in a canteen"),
    ),
    "service": (
        ("the waiter", "the lady at the door", "our waitress", "the owner", "the man behind the bar", "the staff"),
        ("friendly", "quick", "attentive", "charming", "patient with our {guest}", "there when we needed help",
         "a true host", "well informed", "polite to the end"),
        ("rude", "slow", "nowhere to be seen", "bored", "deaf to our wishes", "short with us", "in a foul mood",
         "more busy with the phone", "unable to tell what is in the {dish}"),
    ),
    "place": (
        ("the room", "our table", "the terrace", "the table by {corner}", "the whole place"),
        ("cosy", "spotless", "calm", "beautifully lit", "full of plants", "warm and quiet", "made for a long evening"),
        ("dirty", "noisy", "draughty", "cramped", "sticky", "dark and damp", "full of smoke from the kitchen"),
    ),
    "price": (
        ("the bill", "the price of the {dish}", "what we paid for {count}", "the lunch offer"),
        ("fair", "a bargain", "lower than we feared", "more than reasonable", "a pleasant surprise"),
        ("a joke", "outrageous", "twice what it should be", "a rip-off", "wrong in their favour"),
    ),
}  # fmt: skip
_GOOD_LAST = (
    "We will be back.", "Go there!", "My new favourite.", "I can only recommend it.", "Five stars from {name}.",
    "A lovely evening.", "{name} wants to celebrate there next.",
)  # fmt: skip
_BAD_LAST = (
    "Never again.", "Save your money.", "Stay away.", "We left hungry.", "One star is one too many.",
    "{name} still talks about it, and not in a nice way.", "I want my evening back.",
)  # fmt: skip
_MIXED_LAST = (
    "Make up your own mind.", "Perhaps we try again.", "So so.", "Neither here nor there.", "Three stars from {name}.",
    "It could be a great place.",
)  # fmt: skip
_OPENINGS = (
    "We went there on {day}.", "Dinner for {count} on {day}.", "A table for {count} in {city}.",
    "Lunch near {landmark}.", "My {guest} chose this place in {city}.", "{name} had booked for {day}.",
    "First visit.", "", "", "",
)  # fmt: skip
_SILENT = (
    "I had the {dish} and my {guest} the {other}.",
    "They have a {dish} and {other} on the card.",
    "It is the restaurant near {landmark}, and we were there on {day}.",
    "We were {count} and ordered the {dish} with {side}.",
)
_TURNS = ("But in the end:", "All in all, though:", "And yet, I must say:")
_LINKS = ("but", "although", "while", "yet")
_SLOTS: Dict[str, Sequence[str]] = {
    "dish": ("soup", "trout", "risotto", "lamb curry", "dumpling", "pizza", "salad", "steak", "pancake", "ramen",
             "goulash", "falafel", "paella", "apple tart", "meat pie", "omelette"),
    "other": ("lasagne", "beef stew", "grilled cheese", "fish of the day", "noodles", "stuffed peppers"),
    "side": ("rice", "fried potatoes", "beans", "garlic bread", "a side of greens"),
    "guest": ("mother", "husband", "wife", "boss", "neighbour", "daughter", "old friend", "brother"),
    "corner": ("the window", "the kitchen", "the stairs", "the door"),
    "landmark": ("the river", "the station", "the market", "the old bridge"),
    "day": ("Friday", "Saturday", "Sunday", "a rainy Tuesday", "my birthday", "New Year's Eve", "a weekday"),
    "city": ("Leeds", "Lyon", "Graz", "Porto", "Aarhus", "Gdansk", "Turku", "Ghent", "Malmo", "Bern"),
    "count": ("two", "three", "four", "six", "eight"),
    "name": ("Ada", "Bo", "Chloe", "Dimitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaja", "Liam"),
}  # fmt: skip


def generate_reviews(n: int, seed: int = 0) -> List[Dict[str, str]]:
    """``n`` rows ``{"text", "label"}``, label one of :data:`SENTIMENTS`; a function of ``seed`` only."""
    draw = random.Random(f"reviews/{seed}")
    return [_review(draw) for _ in range(n)]


def _review(draw: random.Random) -> Dict[str, str]:
    label = draw.choice(SENTIMENTS)
    opening = draw.choice(_OPENINGS)
    if draw.random() < SILENT:
        body = [_start(draw.choice(_SILENT))]
    elif label == "mixed":
        body = _two_sides(draw)
    else:
        body = _one_side(draw, label == "positive")
    text = " ".join(part for part in (opening, *body) if part)
    return {"text": _fill(draw, text), "label": label}


def _one_side(draw: random.Random, good: bool) -> List[str]:
    """One to three opinions of the same kind, often a verdict; now and then the verdict alone tells the kind."""
    turned = draw.random() < TURNED
    listed = not good if turned else good
    aspects = draw.sample(sorted(_ASPECTS), draw.choice((1, 2, 2, 3)))
    sentences = [_start(_opinion(draw, aspect, listed)) + "." for aspect in aspects]
    verdict = draw.choice(_GOOD_LAST if good else _BAD_LAST)
    if turned:
        return [*sentences, draw.choice(_TURNS), verdict]
    return [*sentences, verdict] if draw.random() < 0.4 else sentences


def _two_sides(draw: random.Random) -> List[str]:
    """A good and a bad opinion in either order, in one sentence or two."""
    first, second = draw.sample(sorted(_ASPECTS), 2)
    good = draw.random() < 0.5
    one, other = _opinion(draw, first, good), _opinion(draw, second, not good)
    link = draw.choice(_LINKS)
    both = [_start(f"{one}, {link} {other}") + "."] if draw.random() < 0.9 else [f"{_start(one)}.", f"{_start(other)}."]
    return [*both, draw.choice(_MIXED_LAST)] if draw.random() < 0.4 else both


def _opinion(draw: random.Random, aspect: str, good: bool) -> str:
    subjects, praise, blame = _ASPECTS[aspect]
    if draw.random() < NEGATED:
        word = draw.choice(blame if good else praise)
        denied = draw.choice(("anything but", "not at all", "by no means"))
        return f"{draw.choice(subjects)} was {denied} {word}"
    return f"{draw.choice(subjects)} was {draw.choice(praise if good else blame)}"


def _start(text: str) -> str:
    return text[0].upper() + text[1:]


def _fill(draw: random.Random, pattern: str) -> str:
    """Replace the slots one by one, so that a slot named twice gets two values."""
    while "{" in pattern:
        slot = pattern[pattern.index("{") + 1 : pattern.index("}")]
        pattern = pattern.replace("{" + slot + "}", draw.choice(_SLOTS[slot]), 1)
    return pattern
