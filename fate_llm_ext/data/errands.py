"""A synthetic corpus of errands, each with the reason for its answer: where does somebody have to go?

One or two things are named in a text, and one of them is still missing; the place that has it is the answer. So a
reader has to tell what is missing from what is done, and to know where that is had. The reason says both, and names
other things of the same place: what a large language model knows and a few hundred texts do not show.
Made from a seed; the first rows of a longer corpus are those of a shorter one. Texts are filled sentence patterns, and
two of any seeds share whole sentences: accuracies on this corpus say nothing about real text.
"""

from __future__ import annotations

import random
from typing import Dict, List, Sequence, Tuple

DONE = 0.4  # share of texts that also name a thing that is not needed
VAGUE = 0.04  # share of texts that do not say what is missing

THINGS: Dict[str, Tuple[str, ...]] = {
    "bakery": ("bread", "rolls", "cake", "croissants", "pretzels", "muffins", "buns", "tart", "baguettes", "biscuits"),
    "butcher": ("sausages", "ham", "mince", "steak", "ribs", "bacon", "liver", "lamb", "veal", "salami"),
    "florist": ("roses", "tulips", "bouquet", "lilies", "seeds", "orchids", "ivy", "wreath", "daisies", "fern"),
    "garage": ("tyres", "brakes", "headlights", "exhaust", "clutch", "bumper", "wipers", "battery", "gearbox", "fuse"),
    "library": ("novels", "atlas", "poems", "dictionary", "biography", "comics", "fables", "journals", "maps",
                "essays"),
    "pharmacy": ("pills", "plasters", "syrup", "ointment", "bandages", "drops", "tablets", "lozenges", "vitamins",
                 "thermometer"),
    "post": ("stamps", "envelopes", "postcards", "parcel", "letters", "packet", "telegram", "invitations", "cards",
             "mailbag"),
    "tailor": ("hem", "buttons", "zipper", "sleeves", "trousers", "lining", "collar", "cuffs", "jacket", "waistcoat"),
}  # fmt: skip
PLACES = tuple(THINGS)

_MISSING = (
    "{name} still needs the {thing}.", "What is missing is the {thing}.", "We have run out, so get the {thing}.",
    "Nobody has thought of the {thing} yet.", "Please think of the {thing}.",
    "There is no way around the {thing} today.", "{name} asked twice for the {thing}.",
    "The {thing} cannot wait until {day}.",
)  # fmt: skip
_DONE = (
    "The {thing} came on {day}.", "{name} has the {thing} already.", "My {guest} took care of the {thing}.",
    "Forget about the {thing}.", "The {thing} can wait for another week.", "There is plenty left of the {thing}.",
    "Nobody wants the {thing} any more.", "{name} from {city} brings the {thing} along.",
)  # fmt: skip
_VAGUE = ("{name} wrote down what to get and lost the note.", "You know what is missing.", "I will tell you on {day}.")
_OPENINGS = (
    "{name} comes to {city} on {day}.", "My {guest} has guests on {day}.", "It is {day} and {name} is late.",
    "{name} lives in {city}.", "", "", "",
)  # fmt: skip
_SLOTS: Dict[str, Sequence[str]] = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "city": ("Leeds", "Lyon", "Graz", "Porto", "Aarhus", "Gdansk", "Turku", "Ghent", "Malmo", "Bern"),
    "guest": ("mother", "husband", "wife", "boss", "neighbour", "daughter", "friend", "brother"),
    "name": ("Ada", "Bo", "Chloe", "Dimitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaja", "Liam"),
}  # fmt: skip
_REASONS = (
    "What is left to get: {thing}. The {place} has {thing}, {second} and {third}.",
    "Somebody still has to get {thing}, which the {place} has, just as {second} and {third}.",
    "The text asks for {thing}. One finds {thing}, {second} and {third} at the {place}.",
)
UNCLEAR = "The text does not tell what is missing."


def generate_errands(n: int, seed: int = 0) -> List[Dict[str, str]]:
    """``n`` rows ``{"text", "label", "reason"}``, label one of :data:`PLACES`; a function of ``seed`` only."""
    draw = random.Random(f"errands/{seed}")
    return [_errand(draw) for _ in range(n)]


def reason_of(thing: str, draw: random.Random) -> str:
    """Why the place that has ``thing`` is the answer; names two others that are had there."""
    place = next(name for name, things in THINGS.items() if thing in things)
    second, third = draw.sample([other for other in THINGS[place] if other != thing], 2)
    return draw.choice(_REASONS).format(thing=thing, second=second, third=third, place=place)


def _errand(draw: random.Random) -> Dict[str, str]:
    place, other = draw.sample(PLACES, 2)
    thing = draw.choice(THINGS[place])
    vague = draw.random() < VAGUE
    sentences = [_fill(draw, draw.choice(_VAGUE if vague else _MISSING), thing)]
    if draw.random() < DONE:
        sentences.append(_fill(draw, draw.choice(_DONE), draw.choice(THINGS[other])))
    draw.shuffle(sentences)
    opening = _fill(draw, draw.choice(_OPENINGS), "")
    text = " ".join(part for part in (opening, *sentences) if part)
    return {"text": text, "label": place, "reason": UNCLEAR if vague else reason_of(thing, draw)}


def _fill(draw: random.Random, pattern: str, thing: str) -> str:
    drawn = {name: draw.choice(values) for name, values in _SLOTS.items()}
    return pattern.format(thing=thing, **drawn)
