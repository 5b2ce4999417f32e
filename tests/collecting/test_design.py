"""The labels that are offered, the probabilities that are recorded with them, and the answers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from visgrpo.collecting.design import (
    Answer,
    Ask,
    BadAnswer,
    agreement,
    draw_group,
    inclusion_probabilities,
    mix,
    rows_of,
    systematic_sample,
)
from visgrpo.errors import UserError

LABELS = ("dog", "cat", "cow")
PROPENSITIES = (0.5, 0.3, 0.2)
POLICY_K = np.array([0.62, 0.2, 0.1, 0.05, 0.02, 0.01])


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_mix_is_the_softened_policy_and_chance() -> None:
    # T = 2 takes roots: 0.8 and 0.6 of 0.64 and 0.36, so 4/7 and 3/7.
    np.testing.assert_allclose(
        mix(np.array([0.64, 0.36]), 0.2, 2.0), [0.8 * 4 / 7 + 0.1, 0.8 * 3 / 7 + 0.1]
    )
    np.testing.assert_allclose(mix(POLICY_K, 1.0, 1.0), np.full(6, 1 / 6))


def test_a_policy_that_is_sure_still_shows_everything() -> None:
    sure_K = np.array([1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(mix(sure_K, 0.1, 0.01), [0.925, 0.025, 0.025, 0.025])


def test_inclusion_is_proportional_where_nothing_is_certain() -> None:
    np.testing.assert_allclose(
        inclusion_probabilities(np.array([0.4, 0.3, 0.2, 0.1]), 2), [0.8, 0.6, 0.4, 0.2]
    )


def test_certain_labels_leave_the_rest_to_the_others() -> None:
    # 3 · 0.6 > 1, then 2 · 0.25 / 0.4 > 1: two certain labels, and one place for 0.1 and 0.05.
    np.testing.assert_allclose(
        inclusion_probabilities(np.array([0.6, 0.25, 0.1, 0.05]), 3), [1, 1, 2 / 3, 1 / 3]
    )
    np.testing.assert_array_equal(inclusion_probabilities(POLICY_K, 6), np.ones(6))


@pytest.mark.parametrize("seed", range(20))
def test_inclusion_sums_to_the_size_and_never_passes_one(seed: int) -> None:
    p_K = rng(seed).dirichlet(np.full(50, 0.05)) + 1e-9
    for size in (1, 4, 49):
        q_K = inclusion_probabilities(p_K / p_K.sum(), size)
        assert q_K.sum() == pytest.approx(size, abs=1e-12)
        assert q_K.max() <= 1
        assert q_K.min() > 0
        drawn = systematic_sample(q_K, rng(seed, size))
        assert len(set(drawn.tolist())) == size


def test_labels_are_drawn_as_often_as_their_probability_says() -> None:
    q_K = inclusion_probabilities(mix(POLICY_K, 0.1, 1.0), 3)
    draws = 6_000
    count_K, pairs, numbers = np.zeros(6), set(), rng(1)
    for _ in range(draws):
        drawn = systematic_sample(q_K, numbers)
        count_K[drawn] += 1
        pairs |= set(combinations(sorted(drawn.tolist()), 2))
    deviation_K = np.sqrt(q_K * (1 - q_K) / draws)
    assert (np.abs(count_K / draws - q_K) <= 4 * deviation_K + 1e-12).all()
    assert len(pairs) == 15  # every two labels come together at some time


def test_a_group_has_its_propensities_and_repeats_itself() -> None:
    group, again = (draw_group(POLICY_K, 3, rng(0, 7, 1)) for _ in range(2))
    np.testing.assert_array_equal(group.label_G, again.label_G)
    q_K = inclusion_probabilities(mix(POLICY_K, 0.1, 1.0), 3)
    np.testing.assert_array_equal(group.propensity_G, q_K[group.label_G] / 3)
    assert (q_K / 3).sum() == pytest.approx(1, abs=1e-12)


def test_every_position_is_as_likely_for_every_label() -> None:
    numbers = rng(2)
    first = [draw_group(POLICY_K, 6, numbers).label_G[0] for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(first) / 4000, 1 / 6, atol=4 * 0.0059)


def test_weighting_by_the_propensities_is_unbiased() -> None:
    target_K = np.array([0.1, 0.1, 0.2, 0.2, 0.3, 0.1])  # another policy than the logging one
    reward_K = np.array([0.9, 0.1, 0.5, 0.0, 0.7, 0.3])
    estimates, draws = [], rng(3)
    for _ in range(8_000):
        group = draw_group(POLICY_K, 3, draws, exploration=0.3)
        k = group.label_G
        clicked_G = draws.random(3) < reward_K[k]
        estimates.append(np.mean(target_K[k] * clicked_G / group.propensity_G))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - target_K @ reward_K) < 4 * error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 7}, "--group-size 7 must lie between 1 and the 6 classes."),
        ({"size": 0}, "--group-size 0 must lie between 1 and the 6 classes."),
        ({"exploration": 0.0}, "--exploration 0.0 must lie in"),
        ({"exploration": 1.5}, "--exploration 1.5 must lie in"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, float], message: str) -> None:
    options = {"size": 3, **settings}
    with pytest.raises(UserError, match=message):
        draw_group(POLICY_K, int(options.pop("size")), rng(0), **options)


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "answer", "rows"),
    [
        # a click is an impression of every label, and none of these impressions without a click
        ("click", ["cat"], [("dog", 1, False, 1, 0.5), ("cat", 1, True, 2, 0.3),
                            ("cow", 1, False, 3, 0.2)]),
        ("click", [], [("dog", 1, False, 1, 0.5), ("cat", 1, False, 2, 0.3),
                       ("cow", 1, False, 3, 0.2)]),
        # a ranking is all its pairs; labels left out of it are behind
        ("rank", ["cow", "dog", "cat"], [("cow", "dog", False), ("cow", "cat", False),
                                         ("dog", "cat", False)]),
        ("rank", ["cat"], [("cat", "dog", False), ("cat", "cow", False)]),
        ("rank", [], []),
        ("grade", [5, 1, 3], [("dog", 5), ("cat", 1), ("cow", 3)]),
    ],
)  # fmt: skip
def test_the_rows_of_an_answer(ask: Ask, answer: Answer, rows: list[tuple[object, ...]]) -> None:
    found = rows_of(ask, LABELS, PROPENSITIES, answer)
    assert [tuple(row.values()) for row in found] == rows


@pytest.mark.parametrize(
    ("ask", "answer", "message"),
    [
        ("click", ["dogs"], '"dogs" was not offered. Did you mean "dog"?'),
        ("click", ["dog", "cat"], "One label can be chosen, not 2."),
        ("click", [1], '"1" was not offered'),
        ("rank", ["dog", "dog"], "A label can be named once."),
        ("grade", [1, 2], "3 labels need a grade each, not 2 grades."),
        ("grade", [0, 1, 2], "A grade is a whole number from 1 to 5, not 0."),
        ("grade", [6, 1, 2], "from 1 to 5, not 6."),
        ("grade", ["5", 1, 2], "from 1 to 5, not '5'."),
    ],
)
def test_what_is_no_answer(ask: Ask, answer: Answer, message: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        rows_of(ask, LABELS, PROPENSITIES, answer)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "best", "answer", "expected"),
    [
        ("click", "cat", ["cat"], 1.0),
        ("click", "cat", ["dog"], 0.0),
        ("click", "cat", [], 0.0),
        ("click", "bird", ["dog"], None),
        ("rank", "cow", ["cow", "dog"], 1.0),
        ("rank", "dog", ["cow", "dog"], 0.0),
        ("grade", "cow", [5, 1, 3], 3.0),
        ("grade", "bird", [5, 1, 3], None),
    ],
)
def test_agreement_with_the_first_choice(
    ask: Ask, best: str, answer: Answer, expected: float | None
) -> None:
    assert agreement(ask, LABELS, best, answer) == expected
