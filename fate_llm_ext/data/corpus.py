"""A synthetic corpus of a closed domain: support tickets of a shop, to be routed to five departments.

Made from a seed, so that examples and tests need no download and no licence. Some tickets mention a
second concern or are vague, so that even a perfect reader does not reach 100 %. The first rows of a
longer corpus are those of a shorter one with the same seed. Tickets are filled sentence patterns, so that two
of any seeds share whole sentences: accuracies on this corpus say nothing about real text.
"""

from __future__ import annotations

import random
from typing import Dict, List, Sequence

DEPARTMENTS = ("billing", "technical", "shipping", "account", "sales")
VAGUE = 0.06  # share of tickets whose department cannot be read from the text
MIXED = 0.25  # share that mentions a second department's concern
DETAILED = 0.6  # share with a sentence that says nothing about the department
TYPOS = 0.15  # share with one or two typing errors

_CONCERNS: Dict[str, Sequence[str]] = {
    "billing": (
        "I was charged {amount} twice for the {product}",
        "the invoice for order {order} shows {amount} instead of {amount}",
        "my refund of {amount} has not reached my {card} since {day}",
        "the {card} payment for the {product} was declined but the money is gone",
        "please send a corrected invoice for {order} with our tax number",
        "there is an unknown fee of {amount} on my statement of {day}",
        "the discount code was not taken off the price of the {product}",
    ),
    "technical": (
        "the {product} {fault} after {event}",
        "my {product} does not connect to the {device} any more",
        "after the update of {day} the {product} {fault}",
        "the app shows error {code} when I pair the {product} with my {device}",
        "the battery of the {product} is empty after {count} hours",
        "how do I reset the {product}, the manual does not say",
        "the screen of the {product} stays black and error {code} appears",
    ),
    "shipping": (
        "order {order} should have arrived on {day}",
        "tracking for {order} has not moved since it left {city}",
        "the courier left the {product} with a neighbour in {city} that I do not know",
        "the box of the {product} came crushed and wet",
        "I need the parcel {order} sent to another address in {city}",
        "only {count} of the items in {order} were in the parcel",
        "the delivery of the {product} was promised for {day} and nobody came",
    ),
    "account": (
        "I cannot log in, the reset mail never arrives at my address",
        "please change the name and e-mail of my profile",
        "my profile is locked after {count} wrong passwords",
        "the two step code is sent to my old phone number",
        "delete my profile and all personal data please",
        "somebody signed in to my profile from {city} on {day}",
        "I have two profiles and want to merge them, one was made on {day}",
    ),
    "sales": (
        "do you have the {product} in {colour}",
        "what would {count}0 pieces of the {product} cost for our office in {city}",
        "which {product} fits a {device} best",
        "when will the {product} be in stock again",
        "is there a trade in offer for an old {product}",
        "can I see the {product} in a shop in {city} before I buy",
        "we want a quote for {count} units of the {product} until {day}",
    ),
}
_VAGUE_TICKETS = (
    "it is about order {order}, please call me back",
    "I wrote on {day} about the {product} and got no answer",
    "nobody could help me with the {product} on the phone",
    "my question about {order} is still open",
    "this is my message number {count} about the {product}, please hurry",
)
_SLOTS: Dict[str, Sequence[str]] = {
    "product": (
        "Aero X2 headphones", "Lumo desk lamp", "Pico camera", "Orbit speaker", "Tern e-reader", "Volt charger",
        "Nimbus router", "Kite drone", "Fjord kettle", "Quill tablet", "Moss thermostat", "Rill fitness band",
    ),
    "fault": (
        "switches itself off", "makes a loud noise", "freezes", "gets very hot", "does not start", "loses the signal",
    ),
    "event": ("a few minutes", "the night", "it fell down", "charging", "two weeks of use", "the last update"),
    "device": ("phone", "laptop", "television", "car radio", "smart watch", "tablet"),
    "card": ("credit card", "debit card", "bank account", "gift card"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "the 3rd of May", "the 21st of June", "last week"),
    "city": ("Leeds", "Lyon", "Graz", "Porto", "Aarhus", "Gdansk", "Turku", "Ghent", "Malmo", "Bern"),
    "colour": ("black", "white", "dark green", "silver", "red", "sand"),
}  # fmt: skip
_OPENINGS = ("Hello,", "Hi,", "Dear team,", "Good morning,", "To whom it may concern,", "Hi there,", "", "", "")
_CLOSINGS = ("Thank you.", "Please help.", "Regards, {name}", "Best, {name}", "I expect an answer soon.", "", "", "")
_DETAILS = (
    "My customer number is {customer}.",
    "I bought it in {city} on {day}.",
    "I have been with you for {count} years.",
    "I already wrote to {name} on {day}.",
    "You can reach me at {customer}.",
)
_NAMES = ("Ada", "Bo", "Chloe", "Dimitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaja", "Liam")
_LINKS = ("By the way,", "Also,", "On another note,", "Last month there was something else:")


def generate_tickets(n: int, seed: int = 0) -> List[Dict[str, str]]:
    """``n`` rows ``{"text", "label"}``, label one of :data:`DEPARTMENTS`; a function of ``seed`` only."""
    draw = random.Random(f"tickets/{seed}")
    return [_ticket(draw) for _ in range(n)]


def _ticket(draw: random.Random) -> Dict[str, str]:
    label = draw.choice(DEPARTMENTS)
    vague = draw.random() < VAGUE
    sentences = [_sentence(draw, _VAGUE_TICKETS if vague else _CONCERNS[label])]
    if draw.random() < MIXED and not vague:
        other = draw.choice([name for name in DEPARTMENTS if name != label])
        sentences.append(draw.choice(_LINKS) + " " + _fill(draw, draw.choice(_CONCERNS[other])) + ".")
        if draw.random() < 0.2:  # the side concern comes first: only the link word tells them apart
            sentences.reverse()
    detail = _fill(draw, draw.choice(_DETAILS)) if draw.random() < DETAILED else ""
    parts = [draw.choice(_OPENINGS), *sentences, detail, _fill(draw, draw.choice(_CLOSINGS))]
    text = " ".join(part for part in parts if part)
    return {"text": _misspell(draw, text) if draw.random() < TYPOS else text, "label": label}


def _sentence(draw: random.Random, concerns: Sequence[str]) -> str:
    text = _fill(draw, draw.choice(concerns))
    return text[0].upper() + text[1:] + "."


def _fill(draw: random.Random, pattern: str) -> str:
    """Replace the slots one by one, so that a slot named twice gets two values."""
    while "{" in pattern:
        slot = pattern[pattern.index("{") + 1 : pattern.index("}")]
        pattern = pattern.replace("{" + slot + "}", _value(draw, slot), 1)
    return pattern


def _value(draw: random.Random, slot: str) -> str:
    if slot == "amount":
        return f"{draw.randint(5, 400)}.{draw.choice(('00', '50', '90', '99'))} euros"
    if slot == "order":
        return f"{draw.choice('ABCDEF')}{draw.randint(10000, 99999)}"
    if slot == "customer":
        return str(draw.randint(100000, 999999))
    if slot == "code":
        return f"{draw.choice('EFX')}{draw.randint(10, 99)}"
    if slot == "count":
        return str(draw.randint(2, 9))
    return draw.choice(_NAMES if slot == "name" else _SLOTS[slot])


def _misspell(draw: random.Random, text: str) -> str:
    """Swap two neighbouring letters or lose one, once or twice."""
    for _ in range(draw.randint(1, 2)):
        at = draw.choice([at for at in range(len(text) - 1) if text[at : at + 2].isalpha()])
        swapped = text[at + 1] + text[at] if draw.random() < 0.5 else text[at]
        text = text[:at] + swapped + text[at + 2 :]
    return text
