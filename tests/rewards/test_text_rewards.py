"""Rewards of texts: what functions are given, what they may return, how they are named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.rewards.functions import RewardError
from visgrpo.rewards.texts import TextRewards, parse_text_rewards

PROMPTS = ("To be", [{"role": "user", "content": "Or not?"}])
COMPLETIONS_NG = [["a", "bb"], ["ccc", "dddd"]]
IDS_NG = [[[1], [2, 2]], [[3, 3, 3], [4, 4, 4, 4]]]
COLUMNS = {"answer": ["x", "y"]}
VALUES = [1.0, 2.0, 3.0, 4.0]


def call(function: Callable[..., Any], *others: Callable[..., Any]) -> torch.Tensor:
    rewards = parse_text_rewards([function, *others], None, {})
    return rewards(PROMPTS, COMPLETIONS_NG, IDS_NG, COLUMNS)


def message_of(function: Callable[..., Any], *others: Callable[..., Any]) -> str:
    with pytest.raises(UserError) as caught:
        call(function, *others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def returns(result: Any) -> Callable[..., Any]:
    def mine(completions: Any) -> Any:
        return result

    return mine


def test_functions_get_flat_rows_by_name() -> None:
    seen: dict[str, Any] = {}

    def everything(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return VALUES

    rewards_NGR = call(everything)
    assert rewards_NGR.tolist() == [[[1.0], [2.0]], [[3.0], [4.0]]]
    assert rewards_NGR.dtype == torch.float64
    chat = [{"role": "user", "content": "Or not?"}]
    assert seen == {
        "prompts": ["To be", "To be", chat, chat],
        "completions": [
            "a",
            "bb",
            [{"role": "assistant", "content": "ccc"}],
            [{"role": "assistant", "content": "dddd"}],
        ],
        "completion_ids": [[1], [2, 2], [3, 3, 3], [4, 4, 4, 4]],
        "answer": ["x", "x", "y", "y"],
    }


def test_only_what_is_named_is_passed_and_lists_are_not_shared() -> None:
    def destructive(completion_ids: Any, answer: Any, bonus: float = 7.0) -> list[float]:
        answer.clear()
        return [bonus + len(completion_ids.pop(0)) for _ in range(4)]

    def length(completion_ids: Any, answer: Any) -> list[float]:
        return [len(ids) + (text == "y") for ids, text in zip(completion_ids, answer, strict=True)]

    rewards_NGR = call(destructive, length)
    assert rewards_NGR[..., 0].tolist() == [[8, 9], [10, 11]]
    assert rewards_NGR[..., 1].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    "result",
    [
        VALUES,
        tuple(VALUES),
        [1, 2, 3, 4],
        np.array(VALUES),
        list(np.float32(VALUES)),
        torch.tensor(VALUES, dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(value) for value in VALUES],
    ],
)
def test_results_of_every_kind(result: Any) -> None:
    rewards_NGR = call(returns(result))
    assert rewards_NGR.flatten().tolist() == VALUES
    assert not rewards_NGR.requires_grad


def test_truth_values_are_numbers() -> None:
    assert call(returns([True, False, np.True_.item(), False])).flatten().tolist() == [1, 0, 1, 0]


def test_none_for_a_group_is_nan() -> None:
    rewards_NGR = call(returns([None, None, 3.0, 4.0]), lambda completions: VALUES)
    assert rewards_NGR[0].isnan().tolist() == [[True, False], [True, False]]
    assert rewards_NGR[1].tolist() == [[3.0, 3.0], [4.0, 4.0]]


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        ([1.0, 2.0], ["returned 2 rewards for 4 completions"]),
        (torch.zeros(5), ["returned 5 rewards for 4 completions"]),
        (None, ["must return a list", "not NoneType"]),
        (1.0, ["must return a list", "not float"]),
        (np.float64(1.0), ["must return a list", "not float64"]),
        ([1.0, "2", 3.0, 4.0], ["numbers, not str", "row 1", "'bb'", "'To be'"]),
        ([[1.0], [2.0], [3.0], [4.0]], ["numbers, not list", "row 0"]),
        ([1.0, 2j, 3.0, 4.0], ["numbers, not complex"]),
        ([1.0, 2.0, 3.0, float("nan")], ["returned nan", "row 3", "dddd"]),
        ([1.0, float("-inf"), 3.0, 4.0], ["returned -inf", "row 1"]),
        ([1e300, 2.0, 3.0, 4.0], ["returned 1e+300", "not a finite number"]),
        ([None, 2.0, 3.0, 4.0], ["None for 1 of the 2 completions of prompt 'To be'"]),
    ],
)
def test_wrong_results(result: Any, parts: list[str]) -> None:
    message = message_of(returns(result))
    assert all(part in message for part in ['Reward "mine"', *parts]), message


def test_every_reward_none_is_refused() -> None:
    def second(completions: Any) -> Any:
        return [None, None, 1.0, 1.0]

    message = message_of(returns([None, None, None, None]), second)
    assert message.startswith("Every reward (mine, second) returned None for prompt 'To be'")


def test_long_texts_are_cut_in_messages() -> None:
    rewards = parse_text_rewards([returns(["no"])], None, {})
    with pytest.raises(UserError) as caught:
        rewards(["word\n" * 100], [["text " * 100]], [[[1]]], {})
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named() -> None:
    def mine(completions: Any, answers: Any) -> Any:
        return VALUES

    expected = (
        'Reward "mine" needs "answers", which is not a column of the data. Did you mean "answer"?'
    )
    assert message_of(mine) == expected
    rewards = parse_text_rewards([mine], None, {})
    with pytest.raises(UserError) as caught:
        rewards.validate(["answer"])
    assert str(caught.value) == expected
    rewards.validate(["answers", "other"])


def test_a_column_may_not_have_an_arguments_name() -> None:
    with pytest.raises(UserError, match='The data has a column "completions"'):
        parse_text_rewards([returns(VALUES)], None, {}).validate(["completions"])


def test_positional_arguments_are_refused() -> None:
    def mine(completions: Any, /) -> Any:
        return VALUES

    with pytest.raises(UserError, match='take the "/" out'):
        parse_text_rewards([mine], None, {})


def test_raising_shows_the_users_traceback_only() -> None:
    def broken(completions: Any) -> Any:
        return completions[0] / 2

    with pytest.raises(RewardError) as caught:
        call(broken)
    assert str(caught.value).startswith('Reward "broken" raised TypeError: unsupported operand')
    assert "return completions[0] / 2" in caught.value.details
    assert "functions.py" not in caught.value.details
    assert "text.py" not in caught.value.details


def test_built_ins_get_what_follows_the_colon() -> None:
    made: list[str] = []

    def make(argument: str) -> Any:
        made.append(argument)
        return returns(VALUES)

    rewards = parse_text_rewards(
        [" gold ", "model:runs/a:b", returns(VALUES)], [1, -0.5, 2], {"gold": make, "model": make}
    )
    assert made == ["", "runs/a:b"]
    assert rewards.names == ("gold", "model", "mine")
    assert rewards.weights_R.tolist() == [1.0, -0.5, 2.0]


@pytest.mark.parametrize("place", ["my_text_rewards", "my_text_rewards.py"])
def test_functions_are_imported(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_text_rewards.py").write_text(
        "def length(completion_ids, **kwargs):\n    return [len(ids) for ids in completion_ids]\n"
    )
    rewards = parse_text_rewards([f"{place}:length"], None, {})
    assert rewards.names == ("length",)
    assert rewards(PROMPTS, COMPLETIONS_NG, IDS_NG, COLUMNS).flatten().tolist() == VALUES


@pytest.mark.parametrize(
    ("specs", "weights", "message"),
    [
        ([], None, "Name at least one reward: gold, model:FOLDER"),
        ([returns(VALUES), returns(VALUES)], None, 'Two rewards are called "mine"'),
        ([returns(VALUES)], [1.0, 2.0], "2 reward weights for 1 rewards (mine)"),
        ([returns(VALUES)], [float("inf")], 'The weight of reward "mine" is inf'),
        (["gould"], None, 'Unknown reward "gould". Did you mean "gold"?'),
        (["no_such_module_here:f"], None, 'Module "no_such_module_here" not found'),
    ],
)
def test_mistakes(specs: list[Any], weights: list[float] | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_text_rewards(specs, weights, {"gold": lambda _: returns(VALUES)})
    assert message in str(caught.value)


def test_functions_must_match_names() -> None:
    with pytest.raises(UserError, match="0 functions for 1 reward names"):
        TextRewards(("mine",), (), (1.0,))


def test_two_built_in_rewards_of_one_name_are_told_apart() -> None:
    built_in = {"model": lambda path: lambda completions: [0.0 for _ in completions]}
    rewards = parse_text_rewards(["model:a", "model:b"], None, built_in)
    assert rewards.names == ("model:a", "model:b")
    with pytest.raises(UserError, match='Two rewards are called "model:a"'):
        parse_text_rewards(["model:a", "model:a"], None, built_in)


def test_functions_get_copies() -> None:
    """One that writes into what it is given disturbs neither the next, nor the data."""
    prompt = [{"role": "user", "content": "How many?"}]
    ids = [[[1, 2, 3], [4, 5]]]

    def vandal(*, prompts: Any, completions: Any, completion_ids: Any, answer: Any) -> Any:
        for row in range(2):
            prompts[row][-1]["content"] += " Think."
            completions[row][0]["content"] = "?"
            completion_ids[row].clear()
            answer[row].append("wrong")
        assert prompts[0][-1]["content"] == "How many? Think."  # rows share nothing either
        return [0.0, 0.0]

    def witness(*, prompts: Any, completions: Any, completion_ids: Any, answer: Any) -> Any:
        assert prompts[0] == prompt
        assert [text[0]["content"] for text in completions] == ["three", "two"]
        assert answer == [["3"], ["3"]]
        return [float(len(row)) for row in completion_ids]

    rewards = TextRewards.of([("vandal", vandal), ("witness", witness)], None)
    columns = {"answer": [["3"]]}
    rewards_NGR = rewards([prompt], [["three", "two"]], ids, columns)
    assert rewards_NGR.tolist() == [[[0, 3], [0, 2]]]
    assert prompt == [{"role": "user", "content": "How many?"}]
    assert ids == [[[1, 2, 3], [4, 5]]]
    assert columns == {"answer": [["3"]]}


def test_a_reward_that_is_awaited_runs_in_one_loop() -> None:
    """As a client that is opened in the first call and used in the second."""
    import asyncio

    loops = []

    class Judge:
        async def __call__(self, *, completions: list[str], **_: Any) -> list[float]:
            await asyncio.sleep(0)
            loops.append(asyncio.get_running_loop())
            return [float(len(text)) for text in completions]

    async def fails(**_: Any) -> list[float]:
        raise KeyError("no key")

    rewards = TextRewards.of([("judge", Judge())], None)
    for _ in range(2):
        found = rewards(["p"], [["a", "bb"]], [[[1], [2]]], {})
        assert found.tolist() == [[[1.0], [2.0]]]
    assert loops[0] is loops[1]
    with pytest.raises(RewardError, match='Reward "fails" raised KeyError'):
        TextRewards.of([("fails", fails)], None)(["p"], [["a"]], [[[1]]], {})
