"""Dawid–Skene: the paper's own data, a plain-loop implementation, and raters of known quality."""

from __future__ import annotations

import numpy as np
import pytest

import visgrpo.feedback.worth.raters
from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import RaterVotes
from visgrpo.feedback.worth.posterior import share_posterior
from visgrpo.feedback.worth.raters import dawid_skene, posterior_of_raters, weighted_votes

# Dawid & Skene (1979), Table 1: five anaesthetists on 45 patients, the first of them three times.
ANAESTHETISTS = """
111 1 1 1 1|333 4 3 3 4|112 2 1 2 2|222 3 1 2 1|222 3 2 2 2|222 3 3 2 2|122 2 1 1 1|333 3 4 3 3
222 2 2 2 3|232 2 2 2 3|444 4 4 4 4|222 3 3 4 3|111 1 1 1 1|222 3 2 1 2|121 1 1 1 1|111 2 1 1 1
111 1 1 1 1|111 1 1 1 1|222 2 2 2 1|222 1 3 2 2|222 2 2 2 2|222 2 2 2 1|222 3 2 2 2|221 2 2 2 2
111 1 1 1 1|111 1 1 1 1|232 2 2 2 2|111 1 1 1 1|111 1 1 1 1|112 1 1 2 1|111 1 1 1 1|333 3 2 3 3
111 1 1 1 1|222 2 2 2 2|222 3 2 3 2|433 4 3 4 3|221 2 2 3 2|232 3 2 3 3|333 3 4 3 2|111 1 1 1 1
111 1 1 1 1|121 2 1 1 1|232 2 2 2 2|121 1 1 1 1|222 2 2 2 2
"""


def votes_of(rows: list[tuple[int, int, int]], users: int) -> RaterVotes:
    """Votes from single (image, user, label), equal ones added."""
    unique, counts = np.unique(np.array(rows), axis=0, return_counts=True)
    names = tuple(f"u{u}" for u in range(users))
    return RaterVotes(*unique.T, counts.astype(float), names)


def simulated(confusion_UKK: np.ndarray, images: int, seed: int, share: float = 1.0):
    """Votes of raters of given confusions on some images each, and the truth."""
    rng = np.random.default_rng(seed)
    K = confusion_UKK.shape[1]
    truth = rng.choice(K, images, p=np.arange(K, 0, -1) / (K * (K + 1) / 2))
    rows = [
        (m, u, int(rng.choice(K, p=confusion_UKK[u, truth[m]])))
        for m in range(images)
        for u in range(len(confusion_UKK))
        if rng.random() < share
    ]
    return votes_of(rows, len(confusion_UKK)), truth


def good(right: float, K: int = 3) -> np.ndarray:
    return np.full((K, K), (1 - right) / (K - 1)) + np.eye(K) * (right - (1 - right) / (K - 1))


def majority(votes: RaterVotes, images: int, K: int) -> np.ndarray:
    table = np.zeros((images, K))
    np.add.at(table, (votes.image_V, votes.label_V), votes.votes_V)
    return table.argmax(axis=1)


def test_the_paper_s_anaesthetists() -> None:
    patients = ANAESTHETISTS.replace("|", "\n").split("\n")[1:-1]
    rows = [
        (m, u, int(answer) - 1)
        for m, patient in enumerate(patients)
        for u, answers in enumerate(patient.split())
        for answer in answers
    ]
    votes = votes_of(rows, 5)
    assert votes.votes_V.sum() == 45 * 7
    fitted = dawid_skene(votes, 45, 4, smoothing=1e-9)
    assert fitted.converged
    # The paper's Table 2: marginal probabilities; Table 3: the error rates of observer 1.
    assert fitted.prior_K.round(2).tolist() == [0.40, 0.42, 0.11, 0.07]
    assert fitted.confusion_UKK[0].round(2).tolist() == [
        [0.89, 0.11, 0.00, 0.00],
        [0.07, 0.88, 0.05, 0.00],
        [0.00, 0.34, 0.66, 0.00],
        [0.00, 0.00, 0.56, 0.44],
    ]
    # Table 4: patients 1 to 6 are of classes 1, 4, 2, 2, 2, 2 almost surely.
    assert fitted.share_MK[:6].round(2).tolist() == np.eye(4)[[0, 3, 1, 1, 1, 1]].tolist()


Table = dict[tuple[int, int, int], float]


def plain_em(count: Table, share, K: int, base, smoothing: float, iterations: int):
    """Equations 2.3 to 2.5 of the paper, one number at a time, with `base` votes added.

    `count` has votes by image, rater and answer, `base` rows by rater and truth.
    """
    for _ in range(iterations):
        prior = [sum(row[k] for row in share) + smoothing / K for k in range(K)]
        prior = [p / sum(prior) for p in prior]
        confusion = {}
        for u, k in base:
            row = [
                sum(n * share[m][k] for (m, v, a), n in count.items() if (v, a) == (u, answer))
                + smoothing * base[u, k][answer]
                for answer in range(K)
            ]
            confusion[u, k] = [value / sum(row) for value in row]
        share = []
        for m in sorted({m for m, _, _ in count}):
            joint = list(prior)
            for (i, u, answer), n in count.items():
                for k in range(K if i == m else 0):
                    joint[k] *= confusion[u, k][answer] ** n
            share.append([value / sum(joint) for value in joint])
    return share, prior, confusion


def plain_loops(votes: RaterVotes, images: int, K: int, smoothing: float, iterations: int):
    """All raters as one, then each with a prior between that one and their own record."""
    columns = (votes.image_V, votes.user_V, votes.label_V, votes.votes_V)
    count = {(int(m), int(u), int(a)): float(n) for m, u, a, n in zip(*columns, strict=True)}
    together: Table = {}
    for (m, _, a), n in count.items():
        together[m, 0, a] = together.get((m, 0, a), 0) + n
    total = [sum(n for (i, _, _), n in count.items() if i == m) for m in range(images)]
    start = [[together.get((m, 0, k), 0) / total[m] for k in range(K)] for m in range(images)]
    even = {(0, k): [1 / K] * K for k in range(K)}
    share, prior, crowd = plain_em(together, start, K, even, smoothing, iterations)
    of_all = sum(prior[k] * crowd[0, k][k] for k in range(K))
    base = {}
    for u in range(len(votes.users)):
        own = [(n, n * share[m][a]) for (m, v, a), n in count.items() if v == u]
        right = sum(hit for _, hit in own) + smoothing * of_all
        right /= sum(n for n, _ in own) + smoothing
        times = right / (1 - right) / (of_all / (1 - of_all))
        for k in range(K):
            row = [crowd[0, k][a] * (times if a == k else 1) for a in range(K)]
            base[u, k] = [value / sum(row) for value in row]
    share, prior, confusion = plain_em(count, start, K, base, smoothing, iterations)
    return np.array(share), np.array(prior), confusion


def test_against_plain_loops() -> None:
    rng = np.random.default_rng(4)
    rows = [(int(m), int(u), int(k)) for m, u, k in rng.integers(0, [8, 4, 3], (60, 3))]
    votes = votes_of(rows, 4)
    fitted = dawid_skene(votes, 8, 3, smoothing=0.3, most_iterations=7, tolerance=0)
    share, prior, confusion = plain_loops(votes, 8, 3, 0.3, 7)
    np.testing.assert_allclose(fitted.share_MK, share, rtol=1e-9)
    np.testing.assert_allclose(fitted.prior_K, prior, rtol=1e-9)
    for (u, k), row in confusion.items():
        np.testing.assert_allclose(fitted.confusion_UKK[u, k], row, rtol=1e-9)
    assert len(fitted.objective) == 7
    assert not fitted.converged


def test_confusions_are_recovered_and_the_objective_never_falls() -> None:
    swaps = good(0.9)[[1, 0, 2]]  # takes class 0 for 1 and 1 for 0
    truth_UKK = np.stack([good(0.9), good(0.7), good(0.8), good(0.6), swaps])
    votes, truth = simulated(truth_UKK, 3000, seed=0, share=0.8)
    fitted = dawid_skene(votes, 3000, 3)
    assert fitted.converged
    np.testing.assert_allclose(fitted.confusion_UKK, truth_UKK, atol=0.05)
    np.testing.assert_allclose(fitted.prior_K, [1 / 2, 1 / 3, 1 / 6], atol=0.03)
    expected = [0.9, 0.7, 0.8, 0.6, (0.05 * 5 + 0.9) / 6]
    np.testing.assert_allclose(fitted.reliability_U, expected, atol=0.03)
    steps = np.diff(fitted.objective)
    assert (steps >= -1e-6).all()
    right = fitted.share_MK.argmax(axis=1) == truth
    assert right.mean() > (majority(votes, 3000, 3) == truth).mean() + 0.03


def test_a_good_minority_beats_the_majority() -> None:
    blind = np.full((3, 3), 1 / 3)
    votes, truth = simulated(np.stack([good(0.95), good(0.9)] + [blind] * 5), 1500, seed=1)
    fitted = dawid_skene(votes, 1500, 3)
    assert (fitted.share_MK.argmax(axis=1) == truth).mean() > 0.9
    assert (majority(votes, 1500, 3) == truth).mean() < 0.75
    assert fitted.weight_U[:2].min() > 0.8
    assert fitted.weight_U[2:].max() < 0.1


def test_a_rater_who_always_says_the_same_has_no_weight() -> None:
    always = np.tile([1.0, 0, 0], (3, 1))
    votes, _ = simulated(np.stack([good(0.9)] * 3 + [always]), 800, seed=2)
    fitted = dawid_skene(votes, 800, 3)
    assert fitted.reliability_U[3] == pytest.approx(0.5, abs=0.05)  # half of all is class 0
    assert fitted.weight_U[3] < 0.01
    # κ of a rater right at 0.9: (0.9 - chance)/(1 - chance), chance = Σ p_k q_k.
    answers = np.array([3, 2, 1]) / 6 @ good(0.9)
    chance = answers @ np.array([3, 2, 1]) / 6
    np.testing.assert_allclose(fitted.weight_U[:3], (0.9 - chance) / (1 - chance), atol=0.05)
    cells = weighted_votes(votes, fitted, 800, 3)
    table = np.zeros((800, 3))
    table[cells.image_C, cells.label_C] = cells.votes_C
    direct = np.zeros((800, 3))
    np.add.at(direct, (votes.image_V, votes.label_V), fitted.weight_U[votes.user_V])
    np.testing.assert_allclose(table, direct)


def crowd(right_U: np.ndarray, K: int, images: int, each: int, seed: int):
    """Raters who vote `each` times, on any images; right at their rate, or always class 0 (-1)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(K, size=images)
    user = np.repeat(np.arange(len(right_U)), each)
    image = rng.permutation(np.arange(len(user)) % images)
    wrong = (truth[image] + rng.integers(1, K, len(user))) % K
    answer = np.where(rng.random(len(user)) < right_U[user], truth[image], wrong)
    answer[right_U[user] < 0] = 0
    return votes_of(list(zip(image, user, answer, strict=True)), len(right_U)), truth


@pytest.mark.parametrize("K", [3, 10, 100])
def test_good_raters_of_few_votes_keep_their_weight(K: int) -> None:
    votes, truth = crowd(np.full(500, 0.95), K, images=100, each=8, seed=0)  # 40 for each image
    fitted = dawid_skene(votes, 100, K)
    kappa = (0.95 - 1 / K) / (1 - 1 / K)
    assert fitted.weight_U.mean() == pytest.approx(kappa, abs=0.02)
    assert np.quantile(fitted.weight_U, 0.05) > 0.6  # 2 of 8 answers were wrong
    cells = weighted_votes(votes, fitted, 100, K)
    found = share_posterior(cells, 100, K, prior=0.5).mean_MK[np.arange(100), truth].mean()
    plain = (0.5 + 0.95 * 40) / (K / 2 + 40)  # the share if every vote counted whole
    assert plain - 0.05 < found < plain + 0.01


@pytest.mark.parametrize("K", [3, 10, 100])
@pytest.mark.parametrize("bad", ["anything", "always the same"])
def test_bad_raters_of_few_votes_have_little_weight(K: int, bad: str) -> None:
    spammer_U = np.arange(150) % 4 == 0
    right_U = np.where(spammer_U, 1 / K if bad == "anything" else -1.0, 0.95)
    votes, truth = crowd(right_U, K, images=200, each=8, seed=1)  # 6 for each image
    fitted = dawid_skene(votes, 200, K)
    assert fitted.weight_U[~spammer_U].mean() > 0.87
    assert fitted.weight_U[spammer_U].mean() < 0.16
    right = (fitted.share_MK.argmax(axis=1) == truth).mean()
    assert right > max(0.97, (majority(votes, 200, K) == truth).mean())
    assert (np.diff(fitted.objective) >= -1e-9).all()


def test_a_rater_of_one_vote_is_like_the_others() -> None:
    votes, _ = crowd(np.array([0.9] * 20), 5, images=100, each=40, seed=2)
    first = np.ones(len(votes.user_V), dtype=bool)
    first[votes.user_V == 19] = False
    first[np.flatnonzero(votes.user_V == 19)[0]] = True
    columns = (votes.image_V, votes.user_V, votes.label_V, votes.votes_V)
    fitted = dawid_skene(RaterVotes(*(c[first] for c in columns), votes.users), 100, 5)
    assert fitted.reliability_U[19] == pytest.approx(0.9, abs=0.06)
    np.testing.assert_allclose(fitted.confusion_UKK.sum(axis=2), 1)


def test_images_without_votes_are_unknown() -> None:
    fitted = dawid_skene(votes_of([(0, 0, 1), (0, 1, 1), (2, 0, 0), (2, 1, 0)], 2), 4, 3)
    posterior = posterior_of_raters(fitted)
    assert posterior.known_MK.any(axis=1).tolist() == [True, False, True, False]
    np.testing.assert_allclose(posterior.mean_MK[1], 1 / 3)
    np.testing.assert_allclose(posterior.mean_MK.sum(axis=1), 1)
    np.testing.assert_allclose(posterior.sd_MK[1], np.sqrt(2) / 3)
    assert posterior.mean_MK[0].argmax() == 1


def test_what_they_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = votes_of([(0, 0, 0), (1, 0, 0)], 1)
    with pytest.raises(UserError, match=r"no column user.*--raters none"):
        dawid_skene(votes_of([(0, 0, 0)], 0), 1, 2)
    with pytest.raises(UserError, match="smoothing of raters' confusions is 0"):
        dawid_skene(votes, 2, 2, smoothing=0)
    with pytest.raises(UserError, match="no votes"):
        dawid_skene(RaterVotes(*np.zeros((4, 0), dtype=int), ("a",)), 2, 2)
    nobody = dawid_skene(votes_of([(m, 0, 0) for m in range(2)], 1), 2, 2, smoothing=1e6)
    nobody.weight_U[:] = 0
    with pytest.raises(UserError, match="None of 1 people answers better than by chance"):
        weighted_votes(votes, nobody, 2, 2)
    monkeypatch.setattr(visgrpo.feedback.worth.raters, "MOST_NUMBERS", 3)
    with pytest.raises(UserError, match="confusions of 1 raters over 2 classes do not fit"):
        dawid_skene(votes, 2, 2)
