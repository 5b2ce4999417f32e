"""The presets, frozen: a change of any knob must be made here too, on purpose."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest

from visgrpo.errors import UserError
from visgrpo.objectives import PRESETS, check_objective, preset
from visgrpo.objectives.presets import Preset

KNOBS = (
    "scope", "baseline", "scale", "aggregation", "ratio_level", "clip", "epsilon_low",
    "epsilon_high", "delta", "temperatures", "off_policy_mask",
)  # fmt: skip
TABLE = {
    "grpo": ("group", "mean", "std", "sequence_mean", "token", "two_sided", 0.2, 0.2, None),
    "dr_grpo": ("group", "mean", "none", "constant", "token", "two_sided", 0.2, 0.2, None),
    "dapo": ("group", "mean", "std", "token_mean", "token", "two_sided", 0.2, 0.28, None),
    "gspo": ("group", "mean", "std", "sequence_mean", "sequence", "two_sided", 3e-4, 4e-4, None),
    "cispo": ("group", "mean", "std", "token_mean", "token", "detached", 1.0, 4.0, None),
    "sapo": ("group", "mean", "std", "sequence_mean", "token", "soft", 0.2, 0.2, None),
    "rloo": ("group", "leave_one_out", "none", "constant", "token", "none", 0.2, 0.2, None),
    "reinforce": ("batch", "mean", "none", "constant", "token", "none", 0.2, 0.2, None),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_knob_of_every_preset(name: str) -> None:
    assert dataclasses.asdict(preset(name)) == dict(
        zip(KNOBS, (*TABLE[name], (1.0, 1.05), None), strict=True)
    )


def test_the_list_of_presets() -> None:
    assert set(PRESETS) == set(TABLE) == set(get_args(Preset))


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("grppo", 'Did you mean "grpo"?'),
        ("dr-grpo", 'Did you mean "dr_grpo"?'),
        ("reinforced", 'Did you mean "reinforce"?'),
        ("sac", "Choose from: grpo, dr_grpo, dapo, gspo, cispo, sapo, rloo, reinforce."),
    ],
)
def test_an_unknown_preset_names_the_nearest(name: str, tail: str) -> None:
    with pytest.raises(UserError) as error:
        preset(name)
    assert str(error.value) == f'Unknown objective "{name}". {tail}'


@pytest.mark.parametrize(
    ("name", "estimator", "group_size", "message"),
    [
        ("rloo", "exact", 8, "leave-one-out"),
        ("rloo", "uniform", 8, "leave-one-out"),
        ("grpo", "sampled", 1, "group of one"),
        ("rloo", "sampled", 1, "group of one"),
    ],
)
def test_advantages_that_cannot_be_taken_are_refused_early(
    name: str, estimator: Any, group_size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_objective(preset(name), estimator, group_size)


@pytest.mark.parametrize("estimator", ["sampled", "exact", "uniform"])
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"rloo"}))
def test_advantages_that_can_be_taken_pass(name: str, estimator: Any) -> None:
    check_objective(preset(name), estimator, 8)


def test_one_output_each_is_enough_for_the_batch() -> None:
    check_objective(preset("reinforce"), "sampled", 1)


def test_delta_leaves_positive_advantages_to_epsilon_high() -> None:
    assert preset("dapo", delta=1.3).delta == 1.3
    with pytest.raises(UserError, match=r"--delta 1.28 must be above 1.28, which is 1 \+ --eps"):
        preset("dapo", delta=1.28)
