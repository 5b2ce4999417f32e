"""The gold judge against scores worked by hand, and on text that ships with Python."""

from __future__ import annotations

import random
import time

import pytest

from visgrpo.errors import UserError
from visgrpo.rewards.judge import GoldJudge

LINES = ("The king can't speak.", "Speak to the queen now.", "Now the queen is the king.")
JUDGE = GoldJudge.from_documents(["\n\n".join(LINES[:2]), LINES[2]])
WIDE = GoldJudge(JUDGE.vocabulary, shortest=10.0, longest=40.0, capitals=True)


def test_what_is_learned_of_a_corpus() -> None:
    words = {"the", "king", "can't", "speak", "to", "queen", "now", "is"}
    assert JUDGE.vocabulary == words
    # Lengths 21, 23, 26: percentiles by linear interpolation.
    assert (JUDGE.shortest, JUDGE.longest) == pytest.approx((21.2, 25.7))
    assert JUDGE.capitals
    assert not GoldJudge.from_documents([*LINES, "king\nqueen"]).capitals


@pytest.mark.parametrize("documents", [[], ["", " \n"], ["123 ---"]])
def test_a_corpus_without_words_is_refused(documents: list[str]) -> None:
    with pytest.raises(UserError, match="found no words"):
        GoldJudge.from_documents(documents)


@pytest.mark.parametrize(
    ("prompt", "completion", "spelling"),
    [
        ("", "", 0.0),
        ("", "... 123 \n", 0.0),
        ("", "king", 0.0),  # perhaps "kingdom"
        ("", "can'", 0.0),  # perhaps "can't"
        ("", "King.", 4 / 20),
        ("", "the king to the queen now ", 1.0),  # 3 + 4 + 2 + 3 + 5 + 3 = 20 letters
        ("", "the king to the queen xyz ", 17 / 20),
        ("", "the king to the queen now xyzxy ", 20 / 25),
        ("", "the king to the queen now xyzxy", 1.0),  # the last word may be cut off
        ("the ki", "ng ", 2 / 20),  # two letters of the completion's own
        ("the ki", "xx ", 0.0),
        ("the king", " now ", 3 / 20),  # "king" is the prompt's
        ("the king\n", "now ", 3 / 20),
        ([{"role": "user", "content": "ki"}], "ng ", 0.0),
    ],
)
def test_spelling(prompt: str, completion: str, spelling: float) -> None:
    assert WIDE.parts(prompt, completion)["spelling"] == pytest.approx(spelling)


@pytest.mark.parametrize(
    ("prompt", "completion", "lines"),
    [
        ("", "", 0.0),
        ("", "\n \n", 0.0),
        ("", "The king", 1.0),  # may go on
        ("", "The k\n", (0.5 + 1) / 2),  # five characters of ten
        ("", "T" * 80, (0.5 + 1) / 2),  # eighty of at most forty
        ("", "the king is\nThe queen is\n", 3 / 4),
        ("The king", "is the queen\n\n'Tis the king", 1.0),  # the start is not its own
        ("First\nThe ", "k\nno", (0.5 + 1 + 0) / 3),
        ("First\n", "no", 1 / 2),
    ],
)
def test_lines(prompt: str, completion: str, lines: float) -> None:
    assert WIDE.parts(prompt, completion)["lines"] == pytest.approx(lines)


def test_no_capitals_are_asked_for_where_the_corpus_has_none() -> None:
    judge = GoldJudge(JUDGE.vocabulary, shortest=10.0, longest=40.0, capitals=False)
    assert judge.parts("", "the king is the queen\nnow")["lines"] == 1.0


@pytest.mark.parametrize(
    ("completion", "repetition"),
    [
        ("", 1.0),
        ("the king ", 1.0),
        ("the king is the queen ", 1.0),
        ("the the the the the ", 1 / 3),
        ("The king is the king is the king.", 3 / 6),  # thekingis kingisthe isthekin twice each
    ],
)
def test_repetition(completion: str, repetition: float) -> None:
    assert WIDE.parts("", completion)["repetition"] == pytest.approx(repetition)


def test_the_score_is_the_product_and_answers_come_in_rows() -> None:
    text = "The king is the king is the king xyz.\nno"
    parts = WIDE.parts("", text)
    score = parts["spelling"] * parts["lines"] * parts["repetition"]
    assert 0 < score < min(parts.values())
    chat = [{"role": "user", "content": "Speak"}]
    scores = WIDE(
        prompts=["", chat, ""],
        completions=[text, [{"role": "assistant", "content": text}], ""],
        completion_ids=[[], [], []],
        answer=["", "", ""],
    )
    assert scores == pytest.approx([score, score, 0.0])


def test_real_text_is_better_than_what_is_not() -> None:
    from pydoc_data.topics import topics

    rng = random.Random(0)
    documents = [text for text in topics.values() if len(text) > 500]
    judge = GoldJudge.from_documents(documents[::2])
    held_out = [text[:400] for text in documents[1::2]]

    def mean(texts: list[str]) -> float:
        return sum(judge.score("", text) for text in texts) / len(texts)

    shuffled = ["".join(rng.sample(text, len(text))) for text in held_out]
    repeated = [(text.split("\n")[0] + "\n") * 10 for text in held_out]
    assert mean(held_out) > 0.75
    assert mean(shuffled) < 0.3
    assert mean(repeated) < 0.3
    assert mean([" the" * 100] * 2) < 0.05


def test_ten_thousand_completions_in_two_seconds() -> None:
    text = ("The king is the queen now, speak to the king.\n" * 3)[:100]
    start = time.process_time()
    WIDE(prompts=["Now "] * 10_000, completions=[text] * 10_000)
    assert time.process_time() - start < 2
