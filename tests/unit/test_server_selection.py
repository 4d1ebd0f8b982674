"""Who teaches whom: the arbiter's round with clients whose knowledge is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fate_llm_ext.algo.fedmkt.arms import Arm, main_arm, paper_arm
from fate_llm_ext.algo.fedmkt.checks import check_request, check_scores
from fate_llm_ext.algo.fedmkt.protocol import Request, Scores, Signals
from fate_llm_ext.algo.fedmkt.public import PublicSet
from fate_llm_ext.algo.fedmkt.server import Server, take_rows, teaching_loss
from fate_llm_ext.algo.fedmkt.teaching import Teaching
from fate_llm_ext.data.templates import Example
from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.federation.codec import decode, encode

CHOICES = (" a", " b", " c")
GOLD = np.array([0, 1] * 6)
LABELLED = [Example(f"row {i}", CHOICES[gold], CHOICES) for i, gold in enumerate(GOLD)]
UNLABELLED = [Example(f"row {i}", None, CHOICES) for i in range(12, 20)]
CALIBRATION = np.arange(4, 12)
PUBLIC = PublicSet(LABELLED, UNLABELLED, CALIBRATION, CHOICES)
NOBODY = np.zeros(0)


def skilled(share: float, says: Any, nll: float = 1.0) -> Scores:
    """A model that says " a" and " b" four times each on calibration rows, and is right this often."""
    gold = GOLD[CALIBRATION]
    answers = gold.copy()
    for choice in (0, 1):
        answers[np.flatnonzero(gold == choice)[: round((1 - share) * 4)]] = 1 - choice
    return Scores(np.zeros(0), np.full(8, nll), answers, np.asarray(says))


def specialist(choice: int, says: Any) -> Scores:
    """A model that recognises one answer and says " c" to everything else."""
    gold = GOLD[CALIBRATION]
    return Scores(np.zeros(0), np.ones(8), np.where(gold == choice, choice, 2), np.asarray(says))


def losses(*rows: float) -> Scores:
    return Scores(np.array(rows), NOBODY, NOBODY, NOBODY)


# --- the yardstick ----------------------------------------------------------------------------------------


def test_labelled_rows_are_judged_by_their_gold_answer() -> None:
    assert teaching_loss(losses(0.5, 1.0, 2.0), PUBLIC).tolist() == [0.5, 1.0, 2.0]


def test_what_is_no_number_is_infinitely_bad() -> None:
    assert teaching_loss(losses(np.nan, np.inf, 2.0), PUBLIC).tolist() == [np.inf, np.inf, 2.0]


def test_unlabelled_rows_are_judged_by_the_region_of_the_answer_given() -> None:
    loss = teaching_loss(specialist(0, [0, 1, 0, 2, 1, 0, 0, 2]), PUBLIC)
    # Four of four right, never said, four of four wrong; a prior worth two rows at chance.
    expected = {0: (4 + 2 / 3) / 6, 1: 1 / 3, 2: (0 + 2 / 3) / 6}
    np.testing.assert_allclose(-loss, [expected[answer] for answer in [0, 1, 0, 2, 1, 0, 0, 2]])


def test_an_answer_never_seen_on_calibration_rows_is_no_skill() -> None:
    always_a = Scores(np.zeros(0), np.ones(8), np.zeros(8, int), np.array([0, 1, 0, 0, 0, 0, 0, 0]))
    loss = teaching_loss(always_a, PUBLIC)
    assert -loss[1] == pytest.approx(1 / 3), "chance, among three choices"


def test_free_text_is_judged_as_a_whole() -> None:
    public = PublicSet(LABELLED, UNLABELLED, CALIBRATION, ())
    scores = Scores(np.zeros(0), np.linspace(1, 2, 8), np.zeros(8, int), np.zeros(8, int))
    assert teaching_loss(scores, public).tolist() == pytest.approx([1.5] * 8)
    broken = Scores(np.zeros(0), np.full(8, np.nan), np.zeros(8, int), np.zeros(8, int))
    assert np.isinf(teaching_loss(broken, public)).all()


# --- a whole round ----------------------------------------------------------------------------------------


class Clients:
    """A channel whose peers send the given scores and, when asked, signals for exactly the rows asked for."""

    def __init__(self, scores: list[Scores]) -> None:
        self.peers = [SimpleNamespace(name=f"host {i}") for i in range(len(scores))]
        self.scores = dict(zip((p.name for p in self.peers), scores))
        self.sent: dict[tuple[str, str], Any] = {}
        self.bytes_sent = self.bytes_received = 0

    def receive_all(self, expected: Any, round: int) -> list[Any]:
        return [decode(encode(self.scores[p.name]), expected, p.name) for p in self.peers]

    def send(self, peer: Any, message: Any, round: int) -> None:
        self.sent[peer.name, message.name] = decode(encode(message), type(message), "arbiter")

    def receive(self, peer: Any, expected: Any, round: int) -> Any:
        return signals(self.sent[peer.name, "request"].rows)


def signals(rows: np.ndarray) -> Signals:
    n = len(rows)
    unlabelled = np.where(np.asarray(rows) >= len(LABELLED), 0, -1)
    return Signals([" a"], rows, unlabelled, np.ones(n, int), np.zeros(n, int), np.zeros((n, 1), int), np.zeros((n, 1)))


class Model:
    """A learner whose scores are given and that remembers what it was taught."""

    def __init__(
        self,
        scores: Scores,
        margin: float = 0.0,
        direction: str = "mutual",
        public: PublicSet = PUBLIC,
        caution: float = 0.0,
    ) -> None:
        self.scores = scores
        self.public = public
        self.taught: dict[int, Any] = {}
        distill = SimpleNamespace(margin=margin, epochs=1, caution=caution)
        evaluation = SimpleNamespace(each_round=False)
        self.config = SimpleNamespace(direction=direction, distill=distill, seed=0, rounds=2, evaluation=evaluation)

    def score_public(self, unlabelled: bool) -> Scores:
        return self.scores

    def public_items(self, rows: np.ndarray, taught: dict[int, Any]) -> list[Any]:
        self.taught = taught
        return []

    def train(self, *arguments: Any) -> float:
        return 0.0

    def signals(self, rows: np.ndarray, predicted: np.ndarray) -> Signals:
        return signals(rows)


def one_round(own: Scores, clients: list[Scores], arm: Arm | None = None, **settings: Any) -> Any:
    """Rows that each client teaches the LLM, and rows that the LLM teaches each client."""
    model, channel = Model(own, **settings), Clients(clients)
    translators = {
        p.name: lambda s, name=p.name: Teaching(dict.fromkeys(s.rows.tolist(), name), 1.0) for p in channel.peers
    }
    quiet = SimpleNamespace(log=lambda *a: None)
    server = Server(arm or main_arm(model.public), model, channel, translators, quiet)  # type: ignore[arg-type]
    server.step(0)
    asked = [channel.sent[p.name, "request"].rows.tolist() for p in channel.peers]
    told = [channel.sent[p.name, "signals"].rows.tolist() for p in channel.peers]
    assert {row: name for rows, name in zip(asked, translators) for row in rows} == model.taught
    return asked, told


EVERY = list(range(12, 20))
MIXED = [0, 1, 0, 1, 0, 1, 0, 1]


def test_the_best_of_each_row_teaches_and_only_if_better_than_the_llm() -> None:
    own = losses(1.0, 1.0, 1.0, 1.0, *[0.1] * 8)
    first = losses(0.5, 2.0, 0.9, 1.0, *[0.2] * 8)
    second = losses(0.4, 3.0, 0.9, 5.0, *[0.2] * 8)
    asked, told = one_round(own, [first, second], paper_arm(PUBLIC))
    assert asked == [[2], [0]], "ties go to the first client; equal to the LLM is not better"
    assert told[0] == [1, *range(4, 12)]
    assert told[1] == [1, 3, *range(4, 12)]


def test_skill_per_region_decides_about_unlabelled_rows() -> None:
    """Each client knows one answer; the LLM is in between on both."""
    own = skilled(0.5, MIXED)
    asked, told = one_round(own, [specialist(0, MIXED), specialist(1, MIXED)])
    assert asked == [EVERY[0::2], EVERY[1::2]]
    assert told == [EVERY[1::2], EVERY[0::2]]


def test_the_margin_keeps_equals_from_teaching_each_other() -> None:
    own = skilled(0.75, MIXED)
    better = skilled(1.0, MIXED)
    assert one_round(own, [better])[0] == [EVERY]
    assert one_round(own, [better], margin=0.9)[0] == [[]]
    assert one_round(own, [own]) == ([[]], [[]])


def test_caution_discounts_a_teacher_by_its_standard_error() -> None:
    scores = skilled(1.0, MIXED)
    skill = (4 + 2 / 3) / 6
    expected = skill - 2.0 * np.sqrt(skill * (1 - skill) / 6)
    np.testing.assert_allclose(-teaching_loss(scores, PUBLIC, caution=2.0), expected)
    free = PublicSet(LABELLED, UNLABELLED, CALIBRATION, ())
    text = Scores(np.zeros(0), np.linspace(1, 2, 8), np.zeros(8, int), np.zeros(8, int))
    error = np.linspace(1, 2, 8).std() / np.sqrt(8)
    np.testing.assert_allclose(teaching_loss(text, free, caution=1.0), 1.5 + error)


def test_a_cautious_llm_does_not_learn_from_a_slightly_better_client() -> None:
    own, better = skilled(0.75, MIXED), skilled(1.0, MIXED)
    assert one_round(own, [better], caution=0.0)[0] == [EVERY]
    assert one_round(own, [better], caution=1.0)[0] == [[]]


def test_memorised_gold_teaches_nothing() -> None:
    """Lowest losses on the labelled rows, wrong on held-out rows: such a client never teaches unlabelled rows."""
    own = skilled(0.75, MIXED, nll=1.0)
    memorised = skilled(0.25, MIXED, nll=1e-6)
    asked, told = one_round(own, [memorised, skilled(0.5, MIXED, nll=0.5)])
    assert asked == [[], []]
    assert told == [EVERY, EVERY]
    # With the paper's yardstick it would have taught every row.
    gold = one_round(losses(*[1.0] * 12), [losses(*[1e-6] * 12)], paper_arm(PUBLIC))[0]
    assert gold == [list(range(12))]


def test_held_out_rows_are_never_taught_and_never_trained_on_by_the_llm() -> None:
    arm = main_arm(PUBLIC)
    assert arm.training.tolist() == [0, 1, 2, 3]
    asked, told = one_round(skilled(0.5, MIXED), [specialist(0, MIXED)], arm)
    assert all(row >= len(LABELLED) for rows in asked + told for row in rows)


@pytest.mark.parametrize("direction", ["mutual", "llm_to_slm", "slm_to_llm"])
def test_direction(direction: str) -> None:
    asked, told = one_round(skilled(0.5, MIXED), [specialist(0, MIXED)], direction=direction)
    assert asked == [[] if direction == "llm_to_slm" else EVERY[0::2]]
    assert told == [[] if direction == "slm_to_llm" else EVERY[1::2]]


def test_a_client_whose_scores_do_not_fit_is_named() -> None:
    own = skilled(0.5, MIXED)
    good = skilled(1.0, MIXED)
    for field, value, words in (
        ("predicted", [0] * 7, "predicted has 7 rows, 8 were expected"),
        ("predicted", [0] * 7 + [3], "answer 3 of 3 choices"),
        ("predicted", [0] * 7 + [-1], "answer -1 of 3 choices"),
        ("predicted", [], "predicted has 0 rows"),
        ("calibration_predicted", [0] * 7 + [3], "answer 3 of 3"),
        ("nll", [0.5], "nll has 1 rows, 0 were expected"),
    ):
        bad = Scores(**{**vars(good), field: np.array(value)})
        with pytest.raises(ExtensionError, match="E301 host 1 ") as caught:
            one_round(own, [good, bad])
        assert words in str(caught.value)
    with pytest.raises(ExtensionError, match="nll has 3 rows, 12 were expected"):
        check_scores(losses(1, 2, 3), "host 1", PUBLIC, unlabelled=False)


@pytest.mark.parametrize(("row", "unlabelled"), [(20, True), (11, True), (12, False)])
def test_a_request_for_other_rows_is_refused(row: int, unlabelled: bool) -> None:
    with pytest.raises(ExtensionError, match=r"E301 arbiter 9998 .* public row"):
        check_request(Request(np.array([row])), "arbiter 9998", PUBLIC, unlabelled)
    fine = EVERY if unlabelled else list(range(12))
    assert check_request(Request(np.array(fine)), "arbiter 9998", PUBLIC, unlabelled).tolist() == fine


def test_signals_for_rows_nobody_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clients, "receive", lambda self, peer, expected, round: signals(np.array([13, 14])))
    with pytest.raises(ExtensionError, match=r"E301 host 0 .* not the 4 requested"):
        one_round(skilled(0.5, MIXED), [specialist(0, MIXED)])


def test_some_rows_of_signals() -> None:
    whole = Signals(
        [" a"], np.array([3, 5, 9]), np.array([-1, -1, 0]), np.array([2, 0, 1]), np.array([0, 4, 7]),
        np.array([[1], [2], [3]]), np.array([[-1.0], [-2.0], [-3.0]]),
    )  # fmt: skip
    part = take_rows(whole, np.array([True, True, False]))
    assert (part.rows.tolist(), part.tokens.tolist(), part.starts.tolist()) == ([3, 5], [2, 0], [0, 4])
    assert part.ids.tolist() == [[1], [2]]
    rest = take_rows(whole, np.array([False, False, True]))
    assert (rest.rows.tolist(), rest.starts.tolist(), rest.log_probs.tolist()) == ([9], [7], [[-3.0]])
    decode(encode(part), Signals, "x")
