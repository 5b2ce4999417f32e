"""Softmax regression and nearest neighbours against scikit-learn and plain loops."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.measures import probes
from visgrpo.measures.probes import Labelled, knn, softmax_regression

CLASSES = 4


def blobs(rows: int, seed: int, noise: float = 1.0, width: int = 6) -> Labelled:
    """Rows around one centre for each class; the centres are the same for every seed."""
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    return Labelled(centres[labels] + noise * torch.randn(rows, width, generator=generator), labels)


TRAIN, VALIDATION, TEST = blobs(200, 0), blobs(80, 1), blobs(120, 2)


# ---- softmax regression -------------------------------------------------------------------------


def by_scikit_learn(C: float, rows: Labelled) -> float:
    x = TRAIN.features_MD.double().numpy()
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-8)
    model.fit((x - mean) / deviation, TRAIN.labels_M.numpy())
    return model.score((rows.features_MD.numpy() - mean) / deviation, rows.labels_M.numpy())


def test_each_c_scores_as_in_scikit_learn_and_the_best_is_taken() -> None:
    result = softmax_regression(TRAIN, VALIDATION, TEST, classes=CLASSES)
    assert result.validation_accuracy.keys() == {1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0}
    for C, accuracy in result.validation_accuracy.items():
        assert accuracy == pytest.approx(by_scikit_learn(C, VALIDATION))
    best = max(result.validation_accuracy.values())
    assert min(C for C, a in result.validation_accuracy.items() if a == best) == result.C
    assert result.accuracy == pytest.approx(by_scikit_learn(result.C, TEST))
    assert result.converged


def test_of_equals_the_smaller_c_whatever_the_order_of_the_grid() -> None:
    easy = blobs(80, 0, noise=0.01)
    result = softmax_regression(easy, easy, easy, classes=CLASSES, grid=(10.0, 0.1, 1.0))
    assert result.validation_accuracy == {0.1: 1.0, 1.0: 1.0, 10.0: 1.0}
    assert result.C == 0.1


def test_scale_offset_and_constant_features_do_not_matter() -> None:
    def moved(rows: Labelled) -> Labelled:
        x = torch.cat([rows.features_MD.double() * 1024 + 5, torch.full((len(rows[1]), 2), 0.1)], 1)
        return Labelled(x, rows.labels_M)

    plain = softmax_regression(TRAIN, VALIDATION, TEST, classes=CLASSES)
    other = softmax_regression(moved(TRAIN), moved(VALIDATION), moved(TEST), classes=CLASSES)
    assert other == plain


def test_equal_features_equal_result() -> None:
    first, second = (softmax_regression(TRAIN, VALIDATION, TEST, classes=4) for _ in range(2))
    assert first == second


def test_a_fit_that_is_cut_short_says_so_without_a_warning() -> None:
    result = softmax_regression(TRAIN, VALIDATION, TEST, classes=CLASSES, max_iterations=1)
    assert not result.converged


def test_classes_missing_from_train_are_wrong() -> None:
    known = TRAIN.labels_M != 3
    train = Labelled(TRAIN.features_MD[known], TRAIN.labels_M[known])
    lost = TEST.labels_M == 3
    only_lost = Labelled(TEST.features_MD[lost], TEST.labels_M[lost])
    assert softmax_regression(train, VALIDATION, only_lost, classes=CLASSES).accuracy == 0
    assert softmax_regression(train, VALIDATION, TEST, classes=CLASSES).accuracy > 0.4


def test_two_classes() -> None:
    def first_two(rows: Labelled) -> Labelled:
        mine = rows.labels_M < 2
        return Labelled(rows.features_MD[mine], rows.labels_M[mine])

    parts = [first_two(rows) for rows in (TRAIN, VALIDATION, TEST)]
    assert softmax_regression(*parts, classes=2).accuracy > 0.8


# ---- nearest neighbours -------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 1000, 2**24])
def test_one_neighbour_as_in_scikit_learn(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(probes, "SIMILARITIES_AT_ONCE", at_once)
    peer = KNeighborsClassifier(n_neighbors=1, metric="cosine")
    peer.fit(TRAIN.features_MD.numpy(), TRAIN.labels_M.numpy())
    expected = peer.score(TEST.features_MD.numpy(), TEST.labels_M.numpy())
    assert knn(TRAIN, TEST, classes=CLASSES, ks=(1,)) == {1: pytest.approx(expected)}


def test_two_classes_and_an_odd_k_as_in_scikit_learn() -> None:
    """No vote can be tied."""
    train, test = (Labelled(rows[0], rows.labels_M // 2) for rows in (TRAIN, TEST))
    result = knn(train, test, classes=2, ks=(3, 7, 15))
    for k, accuracy in result.items():
        peer = KNeighborsClassifier(n_neighbors=k, metric="cosine")
        peer.fit(train.features_MD.numpy(), train.labels_M.numpy())
        assert accuracy == pytest.approx(peer.score(test[0].numpy(), test.labels_M.numpy()))


def votes_by_loop(train: Labelled, query_D: Tensor, k: int) -> int:
    unit = train.features_MD.numpy() / np.linalg.norm(train.features_MD.numpy(), axis=1)[:, None]
    similarity = unit @ (query_D.numpy() / np.linalg.norm(query_D.numpy()))
    votes: dict[int, list[float]] = defaultdict(list)
    for row in sorted(range(len(unit)), key=lambda row: (-similarity[row], row))[:k]:
        votes[int(train.labels_M[row])].append(float(similarity[row]))
    return max(votes, key=lambda label: (len(votes[label]), sum(votes[label]), -label))


@pytest.mark.parametrize("k", [1, 2, 4, 5, 20, 200])
def test_votes_and_their_ties_as_in_a_loop(k: int) -> None:
    noisy = blobs(60, 5, noise=3.0)
    answers = [votes_by_loop(TRAIN, query_D, k) for query_D in noisy.features_MD]
    expected = np.mean(np.array(answers) == noisy.labels_M.numpy())
    assert knn(TRAIN, noisy, classes=CLASSES, ks=(k,)) == {k: pytest.approx(expected)}


def answer(train: list[list[float]], labels: list[int], k: int) -> int:
    """The class given to the query [1, 0], found by asking for each."""
    rows = Labelled(torch.tensor(train), torch.tensor(labels))
    right = [
        label
        for label in range(3)
        if knn(rows, Labelled(torch.tensor([[1.0, 0]]), torch.tensor([label])), classes=3, ks=(k,))
        == {k: 1.0}
    ]
    (only,) = right
    return only


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_weighted_votes_as_in_a_loop_and_in_scikit_learn(k: int, temperature: float) -> None:
    def unit(rows: Labelled) -> np.ndarray:
        x = rows.features_MD.double().numpy()
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    # Of unit vectors ‖x - y‖² = 2 - 2 x·y.
    near = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / temperature))
    near.fit(unit(TRAIN), TRAIN.labels_M)
    expected = near.score(unit(TEST), TEST.labels_M)
    found = knn(TRAIN, TEST, classes=CLASSES, ks=[k], temperature=temperature)
    assert found[k] == pytest.approx(expected)


def test_a_majority_beats_the_nearest() -> None:
    assert answer([[1.0, 0], [1, 1], [1, 1]], [0, 2, 2], k=3) == 2


def test_a_tied_vote_goes_to_the_larger_similarity() -> None:
    assert answer([[1.0, 1], [1.0, 0]], [0, 2], k=2) == 2


def test_a_tie_in_that_too_goes_to_the_smaller_class() -> None:
    assert answer([[1.0, 0], [1.0, 0]], [2, 1], k=2) == 1


def test_of_train_rows_equally_near_the_earlier_vote() -> None:
    """Eight equal rows, of which three may vote: the first three, of classes 2, 2 and 0."""
    assert answer([[1.0, 0]] * 8, [2, 2, 0, 0, 0, 0, 0, 0], k=3) == 2
    assert answer([[0.0, 1]] + [[1.0, 0]] * 7, [1, 0, 2, 2, 2, 2, 2, 2], k=1) == 0


def test_half_precision_features() -> None:
    train, test = (Labelled(rows[0].bfloat16(), rows.labels_M) for rows in (TRAIN, TEST))
    wide = [Labelled(rows[0].float(), rows.labels_M) for rows in (train, test)]
    assert knn(train, test, classes=CLASSES) == knn(*wide, classes=CLASSES)


def test_a_k_beyond_the_train_rows() -> None:
    with pytest.raises(UserError, match=r"k = 201 .* from 1 to the number of train rows, 200"):
        knn(TRAIN, TEST, classes=CLASSES, ks=(1, 201))
    with pytest.raises(UserError, match="k = 0"):
        knn(TRAIN, TEST, classes=CLASSES, ks=(0,))


# ---- what both refuse ---------------------------------------------------------------------------


def with_row(rows: Labelled, row: int, value: float) -> Labelled:
    features = rows.features_MD.clone()
    features[row] = value
    return Labelled(features, rows.labels_M)


def test_features_that_are_no_numbers() -> None:
    bad = with_row(TEST, 7, float("nan"))
    with pytest.raises(UserError, match=r"NaN or infinity in the test features of 1 of 120.*row 7"):
        softmax_regression(TRAIN, VALIDATION, bad, classes=CLASSES)
    with pytest.raises(UserError, match="NaN or infinity in the queries features"):
        knn(TRAIN, bad, classes=CLASSES)


def test_zero_features_have_no_neighbours() -> None:
    with pytest.raises(UserError, match=r"train features of 1 of 200 images are all zeros"):
        knn(with_row(TRAIN, 3, 0.0), TEST, classes=CLASSES)
    with pytest.raises(UserError, match=r"query features .* first in row 5"):
        knn(TRAIN, with_row(TEST, 5, 0.0), classes=CLASSES)


def test_labels_outside_the_classes() -> None:
    with pytest.raises(UserError, match="Row 3 of train has label 3; class ids go from 0 to 2"):
        knn(TRAIN, TEST, classes=3)
    negative = Labelled(TEST.features_MD, TEST.labels_M - 1)
    with pytest.raises(UserError, match="Row 0 of test has label -1"):
        softmax_regression(TRAIN, VALIDATION, negative, classes=CLASSES)


def test_features_of_two_models() -> None:
    with pytest.raises(UserError, match=r"differ in width \(train 6, queries 7\)"):
        knn(TRAIN, blobs(20, 3, width=7), classes=CLASSES)


def test_one_class_alone_cannot_be_probed() -> None:
    alone = Labelled(TRAIN.features_MD, torch.zeros(200).long())
    with pytest.raises(UserError, match="All train rows are of one class"):
        softmax_regression(alone, VALIDATION, TEST, classes=CLASSES)


@pytest.mark.parametrize("grid", [(), (0.1, 0.0), (-1.0,)])
def test_a_grid_that_is_none(grid: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="C must be one or more numbers above 0"):
        softmax_regression(TRAIN, VALIDATION, TEST, classes=CLASSES, grid=grid)
