"""Rewards of answers between tags: what is read, what is paid, and what cannot be cheated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.rewards.answers import (
    ANSWER_REWARDS,
    Exact,
    Format,
    Length,
    Noise,
    Ordinal,
    Overlong,
    Repetition,
    answer_of,
    has_format,
    whole_number,
)
from visgrpo.rewards.texts import parse_text_rewards

GOOD = "<think>1 0 2</think><answer>3</answer>"


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (GOOD, "3"),
        ("So: <answer> 3\n</answer> I am sure.", "3"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("", None),
        ("3", None),
        ("<answer></answer>", None),
        ("<answer> \n </answer>", None),
        ("<answer>3", None),
        ("3</answer>", None),
        ("</answer>3<answer>", None),
        ("<answer>3</answer><answer>4</answer>", None),  # two answers are none
        ("<answer>3<answer>4</answer>", None),
        ("<answer>3</answer></answer>", None),
        ("<Answer>3</Answer>", None),
        ("<answer >3</answer>", None),
    ],
)
def test_the_answer_is_what_stands_in_the_one_block(text: str, answer: str | None) -> None:
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", 3),
        (" 3\n", 3),
        ("03", 3),
        ("+3", 3),
        ("-3", -3),
        ("-0", 0),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("3.0", None),
        ("3 items", None),
        ("three", None),
        ("1_000", None),  # int() of Python takes these three
        ("٣", None),
        ("- 3", None),
        ("", None),
    ],
)
def test_whole_numbers(answer: str, number: int | None) -> None:
    assert whole_number(answer) == number


@pytest.mark.parametrize(
    ("text", "reasoned", "direct"),
    [
        (GOOD, True, False),
        ("<think>1\n0</think>\n\n<answer>\n3 </answer>", True, False),
        ("<think></think><answer>3</answer>", True, False),
        (tagged("3"), False, True),
        (tagged("3\n"), False, True),
        (tagged(" "), False, False),
        ("<think>1</think><answer></answer>", False, False),
        (f" {GOOD}", False, False),
        (f"{GOOD}\n", False, False),
        (f"{GOOD} and <b>more</b>", False, False),
        (f"{tagged('3')} ", False, False),
        ("<think>1</think> so <answer>3</answer>", False, False),
        ("<answer>3</answer><think>1</think>", False, False),
        ("<think>1<think>2</think><answer>3</answer>", False, False),
        ("<think>1</think><answer>3</answer></think>", False, False),
        ("<think><answer>1</answer></think><answer>3</answer>", False, False),
        ("<answer><think>3</answer>", False, False),
        (GOOD + GOOD, False, False),
        (tagged("3") * 2, False, False),
        ("", False, False),
    ],
)
def test_the_format_is_a_full_match_with_every_tag_once(
    text: str, reasoned: bool, direct: bool
) -> None:
    assert has_format(text) is reasoned
    assert has_format(text, direct=True) is direct
    assert Format()(completions=[text]) == [float(reasoned)]
    assert Format(direct=True)(completions=[text]) == [float(direct)]


@pytest.mark.parametrize(
    ("text", "truth", "paid"),
    [
        (GOOD, "3", 1.0),
        (GOOD, " 3 ", 1.0),
        (tagged("03"), "3", 1.0),
        (tagged("3"), "03", 1.0),
        (tagged("+3"), "3", 1.0),
        (tagged("13"), "3", 0.0),  # the truth is part of it
        (tagged("3"), "13", 0.0),
        (tagged("3.0"), "3", 0.0),
        (tagged("3.0"), "3.0", 1.0),  # the same text
        (tagged("3 items"), "3", 0.0),
        (tagged("0 1 2 3 4 5"), "3", 0.0),
        ("<answer>2</answer><answer>3</answer>", "3", 0.0),
        ("<think>3</think>", "3", 0.0),
        ("3", "3", 0.0),
        ("", "3", 0.0),
        (tagged(""), "3", 0.0),
        (tagged(" red "), "red", 1.0),
        (tagged("Red"), "red", 0.0),
        (tagged("red"), "a red one", 0.0),
        (GOOD, "", None),
        ("", " \n", None),
    ],
)
def test_exact(text: str, truth: str, paid: float | None) -> None:
    chat = [{"role": "assistant", "content": text}]
    assert Exact()(completions=[text, chat], answer=[truth, truth]) == [paid, paid]


@pytest.mark.parametrize(
    ("answer", "truth", "scale", "paid"),
    [
        ("3", "3", 10, 1.0),
        ("4", "3", 10, 0.9),
        ("1", "3", 10, 0.8),
        ("13", "3", 10, 0.0),
        ("99", "3", 10, 0.0),
        ("-1", "3", 10, 0.6),
        ("4", "3", 4, 0.75),
        ("4", "3", 0.5, 0.0),
        ("many", "3", 10, 0.0),
        ("3.0", "3", 10, 0.0),
        ("", "3", 10, 0.0),
        ("4", "", 10, None),
    ],
)
def test_ordinal(answer: str, truth: str, scale: float, paid: float | None) -> None:
    (reward,) = Ordinal(scale)(completions=[tagged(answer)], answer=[truth])
    assert reward == (None if paid is None else pytest.approx(paid))


def test_ordinal_needs_true_numbers() -> None:
    with pytest.raises(UserError, match='needs whole numbers as true answers, not "red"'):
        Ordinal()(completions=[GOOD], answer=["red "])


def test_overlong_and_repetition_are_those_of_trl() -> None:
    rewards = pytest.importorskip("trl.rewards")
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 3, n).tolist() for n in range(30)] + [[5] * 9]
    for limit, soft in [(20, 8), (10, 10), (28, 1)]:
        theirs = rewards.get_soft_overlong_punishment(limit, soft)(completion_ids=ids)
        assert Overlong(limit, soft)(completion_ids=ids) == pytest.approx(theirs)
    for size in (1, 2, 3, 5):
        theirs = rewards.get_repetition_penalty_reward(size)(completion_ids=ids)
        assert Repetition(size)(completion_ids=ids) == pytest.approx(theirs)


def test_overlong_and_repetition_by_hand() -> None:
    ids = [[0] * n for n in (0, 6, 7, 8, 10, 12)]
    assert Overlong(10, 4)(completion_ids=ids) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    ids = [[1], [1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2]]
    assert Repetition(2)(completion_ids=ids) == [0, 0, -0.75, pytest.approx(-1 / 3)]


def test_length_falls_from_the_limit_to_twice_the_limit() -> None:
    ids = [[7] * count for count in (0, 1, 4, 5, 6, 8, 20)]
    assert Length(4)(completion_ids=ids) == [1.0, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0]


class TestNoise:
    prompts = ["how many?"] * 5000
    ids = [[3]] * 5000

    def draw(self, seed: int = 0, **changed: Any) -> np.ndarray:
        given = {"prompts": self.prompts, "completion_ids": self.ids} | changed
        return np.array(Noise(seed)(**given), dtype=np.float64)

    def test_it_is_uniform_and_the_same_when_repeated(self) -> None:
        values = self.draw()
        assert 0 <= values.min() < values.max() < 1
        # Five standard errors, of the mean and of the mean square of U(0, 1).
        assert values.mean() == pytest.approx(1 / 2, abs=5 / (12 * 5000) ** 0.5)
        assert (values**2).mean() == pytest.approx(1 / 3, abs=5 * (4 / 45 / 5000) ** 0.5)
        np.testing.assert_array_equal(values, self.draw())

    def test_seeds_prompts_and_completions_change_it(self) -> None:
        others = [
            self.draw(seed=1),
            self.draw(prompts=["how many?"] * 4999 + ["how few?"]),
            self.draw(completion_ids=[[3]] * 4999 + [[4]]),
        ]
        for other in others:
            assert abs(np.corrcoef(self.draw(), other)[0, 1]) < 5 / 5000**0.5

    def test_one_completion_does_not_always_earn_the_same(self) -> None:
        # Here every completion is the same: were they paid alike, one answer could be learned.
        assert len(set(self.draw().tolist())) == 5000


def test_what_is_written_makes_the_rewards() -> None:
    specs = ["format", "exact", "ordinal:5", "length:1", "overlong:9:3", "repetition", "random:7"]
    rewards = parse_text_rewards(specs, None, ANSWER_REWARDS)
    assert rewards.names == tuple(spec.partition(":")[0] for spec in specs)
    made = (Format(), Exact(), Ordinal(5), Length(1), Overlong(9, 3), Repetition(3), Noise(7))
    assert rewards.functions == made
    assert parse_text_rewards(["ordinal", "random"], None, ANSWER_REWARDS).functions == (
        Ordinal(10),
        Noise(0),
    )
    assert parse_text_rewards(["format:direct"], None, ANSWER_REWARDS).functions == (Format(True),)
    assert parse_text_rewards(made, None, {}).names == rewards.names


def test_two_of_one_kind_are_named_by_what_was_written() -> None:
    rewards = parse_text_rewards(["ordinal:3", "ordinal:10"], None, ANSWER_REWARDS)
    assert rewards.names == ("ordinal:3", "ordinal:10")


def test_a_group_without_a_truth_has_no_reward_of_the_answer() -> None:
    rewards = parse_text_rewards(["format", "exact", "ordinal:5"], None, ANSWER_REWARDS)
    rewards.validate(["answer", "kind"])
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    rewards_NGR = rewards(
        [chat, chat],
        [[GOOD, "3"], [GOOD, tagged("5")]],
        [[[1], [2]], [[3], [4]]],
        {"answer": ["", "3"], "kind": ["items", "items"]},
    )
    nan = torch.nan
    expected = torch.tensor(
        [[[1, nan, nan], [0, nan, nan]], [[1, 1, 1], [0, 0, 0.6]]], dtype=torch.float64
    )
    torch.testing.assert_close(rewards_NGR, expected, equal_nan=True)


def test_without_a_column_of_answers_there_is_nothing_to_compare() -> None:
    rewards = parse_text_rewards(["exact"], None, ANSWER_REWARDS)
    with pytest.raises(UserError, match='"exact" needs "answer", which is not a column'):
        rewards.validate(["solution"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exact:3", 'takes no argument: write "exact"'),
        ("ordinal:0", '"ordinal:0": the error that earns nothing must be a number above 0'),
        ("ordinal:-2", '"ordinal:-2": .* above 0'),
        ("ordinal:nan", '"ordinal:nan": .* above 0'),
        ("ordinal:inf", '"ordinal:inf": .* above 0'),
        ("ordinal:ten", '"ten" is no number'),
        ("format:loose", 'write "format" with reasoning before the answer, "format:direct"'),
        ("length", '"length" needs the tokens .* "length:64"'),
        ("length:long", '"length" needs the tokens'),
        ("overlong", '"overlong" needs the longest .* "overlong:256:64"'),
        ("overlong:64", '"overlong" needs the longest'),
        ("overlong:64:65", '"overlong:64:65": .* must be between 1 and 64'),
        ("repetition:x", '"x" is no number of tokens'),
        ("repetition:0", '"repetition:0": n-grams have 1 token or more'),
        ("length:0", '"length:0": the limit must be 1 token or more'),
        ("random:x", '"random:x": the seed must be a whole number'),
        ("exakt", 'Unknown reward "exakt". Did you mean "exact"'),
    ],
)
def test_mistakes_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_text_rewards([spec], None, ANSWER_REWARDS)
    assert "\n" not in str(caught.value)
