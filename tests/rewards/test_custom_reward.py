"""Rewards that the user writes: what they are given, what they may return, how they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.functions import CustomReward, RewardError
from visgrpo.rewards.sets import parse_rewards

CLASSES = ("cat", "dog", "car")
LABEL = torch.tensor([0, 2])
OUTPUTS_NG = torch.tensor([[0, 1, 2], [0, 1, 2]])
PROBABILITIES = torch.full((2, 3), 1 / 3)
VALUES = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def call(function: Callable[..., Any], **columns: Any) -> torch.Tensor:
    reward = CustomReward("mine", function)
    return reward(OUTPUTS_NG, label=LABEL, probabilities=PROBABILITIES, classes=CLASSES, **columns)


def message_of(function: Callable[..., Any], **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(function, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what loading the user's code does to the interpreter."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.parametrize(
    "result",
    [
        VALUES,
        tuple(map(tuple, VALUES)),
        torch.tensor(VALUES, dtype=torch.float64, requires_grad=True),
        torch.tensor(VALUES).int(),
        np.array(VALUES),
        np.array(VALUES, dtype=">f8")[::1],
        [torch.tensor(row) for row in VALUES],
        [np.array(row) for row in VALUES],
    ],
)
def test_results_of_every_kind(result: Any) -> None:
    rewards_NG = call(lambda outputs: result)
    assert rewards_NG.dtype == torch.float32
    assert not rewards_NG.requires_grad
    assert rewards_NG.tolist() == VALUES


def test_truth_values_are_numbers() -> None:
    assert call(lambda outputs, label: outputs == label[:, None]).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_only_accepted_arguments_are_passed() -> None:
    seen: dict[str, Any] = {}

    def some(outputs: Any, votes: Any, *, classes: Any, bonus: float = 7.0) -> Any:
        seen.update(outputs=outputs, votes=votes, classes=classes, bonus=bonus)
        return VALUES

    call(some, votes=["v0", "v1"], caption=["c0", "c1"])
    assert torch.equal(seen.pop("outputs"), OUTPUTS_NG)
    assert seen == {"votes": ["v0", "v1"], "classes": CLASSES, "bonus": 7.0}


def test_kwargs_take_everything() -> None:
    seen: dict[str, Any] = {}

    def everything(outputs: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return VALUES

    call(everything, votes=["v0", "v1"], outputs=["a column of that name", ""])
    assert sorted(seen) == ["classes", "label", "probabilities", "votes"]


def test_missing_column_is_named() -> None:
    message = message_of(lambda outputs, vote: VALUES, votes=[1, 2])
    assert message == (
        'Reward "mine" needs "vote", which is not a column of the data. Did you mean "votes"?'
    )


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        ([1.0, 2.0], ["shape (2,)", "shape (2, 3)"]),
        (torch.zeros(3, 2), ["shape (3, 2)", "shape (2, 3)"]),
        ([[1.0], [2.0, 3.0]], ["must return numbers"]),
        (None, ["must return numbers, not NoneType"]),
        ([["a", "b", "c"]] * 2, ["must return numbers, not list"]),
        ([[1.0, None, 1.0]] * 2, ["must return numbers, not list"]),
        (torch.zeros(2, 3, dtype=torch.complex64), ["real numbers"]),
        ([[0, 0, 0], [0, float("nan"), 0]], ["nan", "row 1", '"dog"', 'true class "car"']),
        (np.array([[0, 0, 1e300], [0, 0, 0]]), ["inf", "row 0", '"car"', 'true class "cat"']),
    ],
)
def test_wrong_results(result: Any, parts: list[str]) -> None:
    message = message_of(lambda outputs: result)
    assert all(part in message for part in ['Reward "mine"', *parts]), message


def test_raising_shows_the_users_traceback_only() -> None:
    def broken(outputs: Any) -> Any:
        return outputs / {}["no such key"]

    with pytest.raises(RewardError) as caught:
        call(broken)
    assert str(caught.value) == "Reward \"mine\" raised KeyError: 'no such key'"
    assert caught.value.details.startswith("Traceback")
    assert 'return outputs / {}["no such key"]' in caught.value.details
    assert "custom.py" not in caught.value.details


def test_a_user_error_passes_through() -> None:
    def refuses(outputs: Any) -> Any:
        raise UserError("votes.csv is older than the data: fetch it again.")

    assert message_of(refuses) == "votes.csv is older than the data: fetch it again."


def test_scope_of_a_function() -> None:
    def function(outputs: Any) -> Any:
        return VALUES

    assert CustomReward("mine", function).scope == "any"
    function.scope = "batch"  # type: ignore[attr-defined]
    assert CustomReward("mine", function).scope == "batch"
    function.scope = "bacth"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match='"any", "batch", "mask", not \'bacth\''):
        CustomReward("mine", function)


@pytest.mark.parametrize("function", [lambda: VALUES, lambda *, outputs: VALUES, lambda **k: k])
def test_outputs_must_be_accepted(function: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="as its first argument"):
        CustomReward("mine", function)


def test_unreadable_signature() -> None:
    with pytest.raises(UserError, match="wrap it in a def"):
        CustomReward("mine", min)


FILE = """
from helper_of_rewards import ONE

LIMIT = 3

def right(outputs, label):
    return (outputs == label[:, None]) * ONE
"""


@pytest.fixture
def reward_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_imports: None) -> Path:
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "helper_of_rewards.py").write_text("ONE = 1.0\n")
    (tmp_path / "broken_rewards.py").write_text("def right(outputs:\n")
    (tmp_path / "needy_rewards.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "empty_rewards.py").write_text("")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text("def right(outputs): return outputs\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "place", ["my_rewards", "my_rewards.py", "./my_rewards.py", "{folder}/my_rewards.py"]
)
def test_functions_are_found(reward_folder: Path, place: str) -> None:
    rewards = parse_rewards([f"{place.format(folder=reward_folder)}:right"], None, CLASSES)
    assert rewards.names == ("right",)
    rewards_NGR = rewards(OUTPUTS_NG, label=LABEL, probabilities=PROBABILITIES, classes=CLASSES)
    assert rewards_NGR[..., 0].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_an_absolute_path_works_from_elsewhere(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert parse_rewards([f"{reward_folder}/my_rewards.py:right"], None, CLASSES).names == (
        "right",
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_rewads:right", 'Module "my_rewads" not found. Did you mean "my_rewards"?'),
        ("pack.iner:right", 'Module "pack.iner" not found. Did you mean "inner"?'),
        ("my_rewards.inner:right", 'Module "my_rewards.inner" not found. "my_rewards" holds no'),
        (
            "my_rewads.py:right",
            'Reward file "my_rewads.py" not found. Did you mean "my_rewards.py"?',
        ),
        ("pack/my_rewards:right", 'Reward file "pack/my_rewards" not found'),
        ("my_rewards.py:rihgt", 'has no function "rihgt". Did you mean "right"?'),
        ("my_rewards:rihgt", '"my_rewards" has no function "rihgt". Did you mean "right"?'),
        ("empty_rewards.py:right", "It defines no function."),
        ("my_rewards.py:LIMIT", "is not a function: it is of type int"),
        ("broken_rewards.py:right", 'broken_rewards.py" raised SyntaxError'),
        ("broken_rewards:right", 'Module "broken_rewards" raised SyntaxError'),
        ("needy_rewards:right", 'Module "needy_rewards" raised ModuleNotFoundError'),
    ],
)
def test_functions_that_cannot_be_loaded(reward_folder: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rewards([spec], None, CLASSES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_py_is_refused(reward_folder: Path) -> None:
    (reward_folder / "pack" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"must end in \.py"):
        parse_rewards(["pack/notes.txt:right"], None, CLASSES)


def test_import_errors_carry_the_traceback(reward_folder: Path) -> None:
    with pytest.raises(RewardError) as caught:
        parse_rewards(["needy_rewards.py:right"], None, CLASSES)
    assert "import no_such_module_at_all" in caught.value.details
    assert "importlib" not in caught.value.details


def test_functions_get_copies() -> None:
    """One that writes in place changes neither the groups nor the batch."""

    def vandal(outputs: Tensor, label: Tensor, probabilities: Tensor, note: list[Any]) -> Tensor:
        outputs.zero_()
        label.fill_(1)
        probabilities.zero_()
        note[0].clear()
        return (outputs == label[:, None]).float()

    outputs_NG, label = torch.tensor([[0, 1]]), torch.tensor([0])
    probabilities, note = torch.tensor([[0.5, 0.5]]), [["kept"]]
    CustomReward("vandal", vandal)(
        outputs_NG, label=label, probabilities=probabilities, classes=("a", "b"), note=note
    )
    assert outputs_NG.tolist() == [[0, 1]]
    assert label.tolist() == [0]
    assert probabilities.tolist() == [[0.5, 0.5]]
    assert note == [["kept"]]
