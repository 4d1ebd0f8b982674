"""What each strategy guarantees, in words; the report of every run says it. Imports nothing heavy."""

from __future__ import annotations

from typing import List, Optional, Tuple

from fate_llm_ext.algo.fedcot.config import WORD_BY_WORD, FedCoTConfig
from fate_llm_ext.privacy.report import show_delta, show_epsilon

Guarantee = Tuple[float, Optional[float]]

COUNTS = "how many records there are, their fields, and how many words each has: they count as public"


POSITIONS = "where each question's record stands in its table, which a recording needs: a sorted table tells its labels"


def not_covered(config: FedCoTConfig) -> Tuple[str, ...]:
    """What the questions show of the records whatever the mechanism does."""
    if config.perturbation.strategy == "dp_generator":
        return ()
    return (COUNTS, POSITIONS) if config.rationale.recorded else (COUNTS,)


def public_facts(config: FedCoTConfig) -> Tuple[str, ...]:
    """What the strategy takes from the public."""
    facts = ("the form of a question", "the task's choices")
    return (*facts, "the vocabulary and its vectors") if config.perturbation.strategy in WORD_BY_WORD else facts


def guarantee_text(
    config: FedCoTConfig, generator: Optional[Guarantee] = None, largest: Optional[float] = None
) -> List[str]:
    """Sentences for people.

    Args:
        generator: (ε, δ) that the DP generator's own statement gives; δ is None without a guarantee.
        largest: the largest log-ratio of the mechanism on the job's own table, where it was computed.
    """
    how, words = config.perturbation, config.question.max_words
    epsilon = show_epsilon(how.epsilon)
    if how.strategy == "fixed_vocabulary":
        return [
            f"ε-local DP per word: whatever a word is, each output is at most e^{epsilon} times as probable as for any "
            "other word. Unknown words (names, numbers) are all the same to the mechanism.",
            f"Per record: at most {words} words leave, so the ε of a record is up to {words} x {epsilon}.",
        ]
    if how.strategy == "metric":
        return [
            f"Metric DP per word: two words at distance d cause log-ratios of at most {epsilon} d (vectors of unit "
            f"length). Near words are hidden among each other, far ones hardly; over all words the bound is "
            f"{show_epsilon(2 * float(how.epsilon or 0))}.",
            f"Per record: at most {words} words leave, so the ε of a record is up to {words} x "
            f"{show_epsilon(2 * float(how.epsilon or 0))}.",
        ]
    if how.strategy == "exponential":
        return [
            f"A heuristic: the set of candidates depends on the word itself, so the nominal ε = {epsilon} per word is "
            "no bound.",
            *([] if largest is None else [_measured(epsilon, largest)]),
        ]
    if how.strategy == "adaptive_exponential":
        return [
            "A heuristic: a model rewrites the prompts, and nothing bounds what its words tell about them. Only the "
            f"public prompts that it learned from were perturbed, with a nominal ε = {epsilon}, which bounds nothing.",
        ]
    if how.strategy == "dp_generator":
        sent = "No private prompt is sent: the questions are texts of a generator"
        if generator is None:
            return [f"{sent}, and have its guarantee per record, whatever their number."]
        if generator[1] is None:
            return [f"{sent}. Its own statement gives it no guarantee: its texts may hold what it has read."]
        return [
            f"{sent}, and have the guarantee per record that its own statement gives, whatever their number: "
            f"ε = {show_epsilon(generator[0])}, δ = {show_delta(generator[1])}. Its training was charged when it ran.",
        ]
    return ["The allow-listed fields of every record left in clear."]


def _measured(epsilon: str, largest: float) -> str:
    return (
        f"On this job's own table the largest log-ratio between two words is {show_epsilon(largest)}, where the "
        f"nominal ε promises {epsilon}."
    )
