"""What feedback is worth once there is a model: unseen pairs, and logs that must support it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import InputFunction
from visgrpo.feedback.cells import LogCells, of_images
from visgrpo.feedback.click_prediction import predicted_clicks
from visgrpo.feedback.posterior import Floats, scatter
from visgrpo.feedback.prediction import predict_unknown
from visgrpo.feedback.support import check_support
from visgrpo.measures.held_out import logits_of, pooled_of
from visgrpo.methods.logged import Log
from visgrpo.models.clip import ClipClassifier
from visgrpo.rewards.feedback import ROW_COLUMN
from visgrpo.tasks.clip_feedback import Feedback
from visgrpo.tasks.configs import ClipConfig
from visgrpo.tasks.session import Session


def use_feedback(
    feedback: Feedback,
    classifier: ClipClassifier,
    inputs: Mapping[str, InputFunction],
    config: ClipConfig,
    session: Session,
    *,
    in_groups: bool,
) -> Log | None:
    """Give rewards to pairs that nobody saw, or turn the log into groups, if asked to.

    Args:
        classifier: the start.
        inputs: of the three splits.
        in_groups: whether advantages are taken over the labels of an image.

    Returns:
        The log to learn from; None where groups are the policy's own.

    Raises:
        UserError: the log cannot support the start, or there is too little to learn a reward model
            from.
    """
    if feedback.cells is None:
        if config.unknown == "predict":
            _predict(feedback, _features(feedback, classifier, inputs, session), config, session)
        return None
    cells = of_images(feedback.cells, feedback.fit_M)
    probabilities_MK = _rows_of(
        feedback,
        ["train"],
        lambda name: (
            logits_of(classifier, getattr(feedback.splits, name), inputs[name], session.processes)
            .div(config.temperature)
            .softmax(dim=1)
        ),
    )
    overlap, remarks = check_support(
        cells,
        probabilities_MK,
        least_share=config.least_effective_share,
        groups=in_groups and config.off_policy != "doubly-robust",
    )
    session.note(*remarks)
    session.say(
        f"Log: {overlap.impressions:,.0f} impressions are worth {overlap.effective_samples:,.0f} "
        f"of the start's own ({overlap.effective_share:.1%})."
    )
    feedback.report["effective_samples"] = overlap.effective_samples
    feedback.report["effective_share"] = overlap.effective_share
    if config.off_policy == "doubly-robust":
        features_MD = _features(feedback, classifier, inputs, session)
        _doubly_robust(feedback, feedback.cells, features_MD, config)
        return None
    return _logged(feedback, feedback.cells)


def _predict(feedback: Feedback, features_MD: Floats, config: ClipConfig, session: Session) -> None:
    """Put in what a reward model on image features says of pairs that nobody saw."""
    for name, posterior in feedback.posteriors.items():
        found = predict_unknown(posterior, features_MD, feedback.fit_M)
        worth_MK = found.posterior.pessimistic(config.pessimism).mean_MK
        feedback.rewards[name].put(torch.from_numpy(worth_MK).float())
        feedback.report[f"{name}_predicted_r2"] = found.r2
        session.say(
            f"Reward {name}: {found.predicted_pairs:,} unseen pairs predicted from "
            f"{found.learned_pairs:,}; R² {found.r2:.3f}, cross-validated."
        )
        if found.unfitted_classes:
            session.note(f"{found.unfitted_classes} labels have too little feedback to predict.")


def _logged(feedback: Feedback, cells: LogCells) -> Log:
    """Make the log's groups, and its raw click rates the reward."""
    reward = feedback.rewards["clicks"]
    shape = reward.worth_MK.shape

    def table(values_C: np.ndarray) -> np.ndarray:
        return scatter(cells.image_C, cells.label_C, values_C, *shape)

    count_MK, inverse_MK = table(cells.count_C), table(cells.inverse_C)
    shown_MK = count_MK > 0
    total_M1 = count_MK.sum(axis=1, keepdims=True)
    # Impressions of a pair may have several propensities: sums of 1/p make the harmonic mean p.
    propensity_MK = np.divide(count_MK, inverse_MK, out=np.ones(shape), where=shown_MK)
    rate_MK = np.divide(
        table(cells.clicks_inverse_C), inverse_MK, out=np.zeros(shape), where=shown_MK
    )
    reward.put(torch.from_numpy(rate_MK).float(), observed_MK=torch.from_numpy(shown_MK))
    shares_MK = np.divide(count_MK, total_M1, out=np.zeros(shape), where=total_M1 > 0)
    return Log(torch.from_numpy(shares_MK).float(), torch.from_numpy(np.log(propensity_MK)).float())


def _doubly_robust(
    feedback: Feedback, cells: LogCells, features_MD: Floats, config: ClipConfig
) -> None:
    """Make the reward a doubly robust one, of every label (Dudík, Langford and Li 2011).

    Σ_k π_k r_k is then the doubly robust estimate of the policy's value at an image with n
    impressions, for every policy:

        r_k = q_k + (1/n) Σ_i 1[a_i = k] (c_i - q_k) / p_i

    Click rates q are predicted from image features, each image's without its own clicks.
    """
    reward = feedback.rewards["clicks"]
    images, classes = reward.worth_MK.shape

    def table(values_C: Floats) -> Floats:
        return scatter(cells.image_C, cells.label_C, values_C, images, classes)

    training = of_images(cells, feedback.fit_M)
    rate_MK = predicted_clicks(training, features_MD, classes, seed=config.seed)
    correction_MK = table(cells.clicks_inverse_C) - rate_MK * table(cells.inverse_C)
    impressions_M1 = table(cells.count_C).sum(axis=1, keepdims=True).clip(min=1)
    worth_MK = rate_MK + correction_MK / impressions_M1
    reward.put(torch.from_numpy(worth_MK).float(), masks=False)
    feedback.report["unknown"] = "doubly robust"


def _features(
    feedback: Feedback,
    classifier: ClipClassifier,
    inputs: Mapping[str, InputFunction],
    session: Session,
) -> Floats:
    """The start's features of every image, (M, D)."""
    return _rows_of(
        feedback,
        ["train", "validation", "test"],
        lambda name: pooled_of(
            classifier.embed_images,
            getattr(feedback.splits, name),
            inputs[name],
            session.processes,
        ),
    )


def _rows_of(feedback: Feedback, names: Sequence[str], make: Callable[[str], Tensor]) -> Floats:
    """Put what is made of some splits into the table's rows; the others are 0."""
    made = {name: make(name).double().cpu().numpy() for name in names}
    width = made[names[0]].shape[1]
    table = np.zeros((len(feedback.fit_M), width))
    for name, values in made.items():
        table[_split_rows(feedback, name)] = values
    return table


def _split_rows(feedback: Feedback, name: str) -> np.ndarray:
    return np.asarray(getattr(feedback.splits, name).columns[ROW_COLUMN])
