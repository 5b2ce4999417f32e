"""From a table of what people did to the rewards, or the log, that a CLIP job learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import chain
from operator import and_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.errors import UserError
from visgrpo.feedback.cells import (
    ImpressionCells,
    LogCells,
    dwell_cells,
    grade_cells,
    impression_cells,
    log_cells,
    of_images,
    preference_cells,
    rater_votes,
    vote_cells,
)
from visgrpo.feedback.clicks import (
    Examination,
    NotComparable,
    click_posterior,
    fit_examination,
)
from visgrpo.feedback.comparisons import davidson_scores
from visgrpo.feedback.events import open_events
from visgrpo.feedback.matching import Matched, image_keys, key_columns, match
from visgrpo.feedback.posterior import Posterior, scatter
from visgrpo.feedback.raters import dawid_skene, weighted_votes
from visgrpo.feedback.schemas import Kind
from visgrpo.feedback.values import value_posterior
from visgrpo.feedback.votes import log_share_posterior, share_posterior
from visgrpo.recipes.configs import ClipConfig
from visgrpo.recipes.feedback_options import FEEDBACK_REWARDS
from visgrpo.recipes.session import Session
from visgrpo.rewards.feedback import ROW_COLUMN, FeedbackReward

_KIND_OF: Mapping[str, Kind] = {
    "clicks": "impressions",
    "dwell": "impressions",
    "votes": "votes",
    "log-votes": "votes",
    "preferences": "preferences",
    "grades": "grades",
}
_PRIOR_STRENGTH = {"clicks": 2.0, "dwell": 1.0, "grades": 1.0, "preferences": 1.0}
_VOTES_FOR_EACH_LABEL = 0.5
MOST_PAIRS = 500_000_000
"""Images × labels whose rewards fit in memory: 2 GB for every table of float32."""


@dataclass(frozen=True)
class Feedback:
    """What people's behaviour says about the images of three splits.

    Rows of tables are the images of train, validation and test, one after the other.

    Attributes:
        splits: with the column that names the row; training images that nobody judged are left out
            where nothing else could be learned from them.
        rewards: by name; those of pairs that nobody saw may change once features are there.
        posteriors: what the rewards were made of.
        fit_M: which images are for training: held-out feedback is only measured with.
        votes_MK: people's votes, where that is what the table holds.
        cells: the log, for learning off policy.
        report: what the summary says.
    """

    splits: Splits
    rewards: Mapping[str, FeedbackReward]
    posteriors: Mapping[str, Posterior]
    fit_M: np.ndarray
    votes_MK: Tensor | None
    cells: LogCells | None
    report: dict[str, Any]

    def votes_of(self, dataset: ImageDataset) -> Tensor | None:
        """Return people's votes on the images of one of the splits, (rows, K)."""
        if self.votes_MK is None:
            return None
        return self.votes_MK[torch.as_tensor(np.asarray(dataset.columns[ROW_COLUMN]))]


def read_feedback(config: ClipConfig, splits: Splits, session: Session) -> Feedback:
    """Read the table, match it with the images, and make the rewards that were asked for.

    Raises:
        UserError: for tables, options and data that do not go together.
    """
    parts = (splits.train, splits.validation, splits.test)
    rows, classes = sum(map(len, parts)), splits.train.classes
    _check_size(rows, len(classes))
    names = _names(config.reward)
    keys = keys_of(parts, config.id_column)
    with open_events(
        str(config.feedback),
        query=config.query,
        kind=kind_of_rewards(config.reward),
        drop_duplicates=config.drop_duplicates,
    ) as events:
        matched = match(events, keys, classes)
        session.note(*events.notes, *unmatched_notes(matched))
        report = _source_report(matched)
        fit_M = np.arange(rows) < len(splits.train)
        posteriors = {name: _posterior(name, matched, fit_M, config, report) for name in names}
        votes_MK = _votes(matched) if events.kind == "votes" else None
        cells = log_cells(matched) if config.off_policy != "none" else None
    rewards = {
        name: FeedbackReward(
            torch.from_numpy(posterior.pessimistic(config.pessimism).mean_MK).float(),
            torch.from_numpy(posterior.known_MK),
            masks=config.unknown == "mask",
        )
        for name, posterior in posteriors.items()
    }
    observed_MK = reduce(and_, (posterior.known_MK for posterior in posteriors.values()))
    report |= _coverage_report(posteriors, observed_MK, fit_M)
    report["unknown"] = config.unknown
    _say_coverage(report, len(splits.train), session)
    if "no_examination" in report:
        session.note(f"clicks are not corrected for positions: {report['no_examination']}")
    with_rows = _with_rows(splits, observed_MK, config, session)
    return Feedback(with_rows, rewards, posteriors, fit_M, votes_MK, cells, report)


def read_votes(spec: str, dataset: ImageDataset) -> Tensor:
    """Return people's votes on the images of a data set, (M, K); other votes are left out.

    Raises:
        UserError: for a table that holds no votes on these images.
    """
    with open_events(spec, kind="votes") as events:
        return _votes(match(events, keys_of((dataset,), None), dataset.classes))


def kind_of_rewards(reward: Sequence[str]) -> Kind:
    """Return which of the four tables rewards are made of.

    Raises:
        UserError: they are made of several.
    """
    kinds = {_KIND_OF[name] for name in _names(reward)}
    if len(kinds) > 1:
        raise UserError(
            f"One table cannot hold {' and '.join(sorted(kinds))}: take rewards of one kind."
        )
    return kinds.pop()


def best_answers(matched: Matched, config: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the label that people liked best for each image, (M,), and who has feedback at all."""
    name = _names(config.reward)[0]
    size = matched.images, len(matched.classes)
    posterior = _fit(name, _cells(name, matched, config), size, config, {})
    known_MK = posterior.known_MK
    best_M = np.where(known_MK, posterior.mean_MK, -np.inf).argmax(axis=1)
    return best_M, np.asarray(known_MK.any(axis=1))


def keys_of(parts: Sequence[ImageDataset], id_column: str | None) -> list[list[str]]:
    """Return the names of the images of several splits, one after the other.

    Raises:
        UserError: their tables do not name them.
    """
    first = parts[0]
    columns = {
        name: list(chain.from_iterable(part.columns[name] for part in parts))
        for name in key_columns(first.columns, id_column)
    }
    if not columns:
        raise UserError(
            f"{first.name}: none of its columns names its images, so feedback cannot find them: "
            "give it a column image_id, or name the one that does with --id-column."
        )
    return image_keys(columns, sum(map(len, parts)), id_column)


def unmatched_notes(matched: Matched) -> list[str]:
    """Return what to say of events about images that the data does not have."""
    if not matched.unmatched_rows:
        return []
    listed = ", ".join(f'"{image}" ({rows})' for image, rows in matched.unmatched_images[:5])
    more = ", …" if matched.unmatched_image_count > 5 else ""
    return [
        f"{matched.events.name}: {matched.unmatched_rows:,} of {matched.events.rows:,} events are "
        f"about {matched.unmatched_image_count:,} images that are not in the data as loaded, and "
        f"were left out: {listed}{more}."
    ]


def _names(reward: Sequence[str]) -> list[str]:
    return [name for name in reward if name in FEEDBACK_REWARDS]


def _posterior(
    name: str, matched: Matched, fit_M: np.ndarray, config: ClipConfig, report: dict[str, Any]
) -> Posterior:
    """Fit the training images by themselves, so that nothing held out takes part in a prior.

    Held-out images, whose rewards are only measured with, have theirs from a fit to all images.
    """
    cells = _cells(name, matched, config)
    size = matched.images, len(matched.classes)
    of_training = of_images(cells, fit_M)
    if not len(getattr(of_training, fields(of_training)[0].name)):
        raise UserError("No training image has feedback: check --data, or --train-slice.")
    training = _fit(name, of_training, size, config, report)
    every = _fit(name, cells, size, config, {})
    return Posterior(
        np.where(fit_M[:, None], training.mean_MK, every.mean_MK),
        np.where(fit_M[:, None], training.sd_MK, every.sd_MK),
        every.known_MK,
    )


def _cells(name: str, matched: Matched, config: ClipConfig) -> Any:
    if name == "clicks":
        return impression_cells(matched, half_life=config.half_life)
    if name == "dwell":
        return dwell_cells(matched, half_life=config.half_life)
    if name == "grades":
        return grade_cells(matched)
    if name == "preferences":
        return preference_cells(matched)
    return rater_votes(matched) if config.raters == "dawid-skene" else vote_cells(matched)


def _fit(
    name: str, cells: Any, size: tuple[int, int], config: ClipConfig, report: dict[str, Any]
) -> Posterior:
    """Return the posterior of one reward, and note in the report what was estimated besides."""
    strength = config.prior_strength or _PRIOR_STRENGTH.get(name, _VOTES_FOR_EACH_LABEL)
    if name == "clicks":
        examination = None
        if config.position_bias == "auto" and cells.position_C.any():
            examination = _examination(cells, report)
        return click_posterior(cells, *size, prior_strength=strength, examination=examination)
    if name in ("dwell", "grades"):
        return value_posterior(cells, *size, prior_strength=strength)
    if name == "preferences":
        scores = davidson_scores(cells, *size, prior_sd=strength**-0.5)
        report["tie"] = scores.tie
        return scores.posterior
    if config.raters == "dawid-skene":
        raters = dawid_skene(cells, *size)
        report["raters"] = len(cells.users)
        report["rater_reliability"] = float(raters.reliability_U.mean())
        cells = weighted_votes(cells, raters, *size)
    shares_of = share_posterior if name == "votes" else log_share_posterior
    return shares_of(cells, *size, prior=strength)


def _examination(cells: ImpressionCells, report: dict[str, Any]) -> Examination | None:
    """Estimate and report how positions are looked at; None, with the reason, if that fails."""
    try:
        examination = fit_examination(cells)
    except NotComparable as error:
        report["no_examination"] = str(error)
        return None
    shares = zip(examination.positions_P, examination.examination_P, strict=True)
    report["examination"] = {str(position): float(share) for position, share in shares}
    return examination


def _votes(matched: Matched) -> Tensor:
    cells = vote_cells(matched)
    size = matched.images, len(matched.classes)
    return torch.from_numpy(scatter(cells.image_C, cells.label_C, cells.votes_C, *size))


def _with_rows(
    splits: Splits, observed_MK: np.ndarray, config: ClipConfig, session: Session
) -> Splits:
    """Name the table's row of every image; leave out those that teach nothing."""
    starts = np.cumsum([0, len(splits.train), len(splits.validation)])
    train, validation, test = (
        replace(part, columns={**part.columns, ROW_COLUMN: start + np.arange(len(part))})
        for part, start in zip((splits.train, splits.validation, splits.test), starts, strict=True)
    )
    teaches_M = np.asarray(observed_MK.any(axis=1))[: len(train)]
    labels_teach = config.supervised_weight > 0 or config.warm_start > 0
    if config.unknown == "mask" and not labels_teach and not teaches_M.all():
        session.note(
            f"{int((~teaches_M).sum()):,} of {len(train):,} training images have no feedback and "
            "were left out; --unknown prior or predict keeps them."
        )
        train = train.subset(np.flatnonzero(teaches_M))
    of_validation = starts[1] + np.arange(len(validation))
    if config.resolved_select() != "accuracy" and not observed_MK[of_validation].any():
        raise UserError(
            "No validation image has feedback, so the best step cannot be chosen by the reward: "
            "--select accuracy, or a larger --validation-fraction."
        )
    return replace(splits, train=train, validation=validation, test=test)


def _source_report(matched: Matched) -> dict[str, Any]:
    return {
        "source": matched.events.name,
        "kind": matched.events.kind,
        "events": matched.events.rows,
        "matched": matched.rows,
        "unmatched_images": matched.unmatched_image_count,
    }


def _coverage_report(
    posteriors: Mapping[str, Posterior], observed_MK: np.ndarray, fit_M: np.ndarray
) -> dict[str, Any]:
    """What is known of the training images, and how surely: the rewards' mean deviation."""
    return {
        "coverage": float(observed_MK[fit_M].mean()),
        "images_with_feedback": int(observed_MK[fit_M].any(axis=1).sum()),
        "mean_sd": {
            name: float(posterior.sd_MK[fit_M][posterior.known_MK[fit_M]].mean())
            for name, posterior in posteriors.items()
        },
    }


def _say_coverage(report: Mapping[str, Any], images: int, session: Session) -> None:
    session.say(
        f"Feedback: {report['events']:,} {report['kind']} in {report['source']}; of the training "
        f"images {report['images_with_feedback']:,} of {images:,} have some, of their pairs with "
        f"labels {report['coverage']:.1%}."
    )


def _check_size(rows: int, classes: int) -> None:
    if rows * classes > MOST_PAIRS:
        raise UserError(
            f"{rows:,} images × {classes:,} labels are more pairs than fit in memory "
            f"({MOST_PAIRS:,}): take fewer images with --train-slice."
        )
