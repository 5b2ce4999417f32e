"""From a table of what people did to the rewards, or the log, that a CLIP job learns from."""

from __future__ import annotations

import hashlib
import json
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
    LogCells,
    log_cells,
)
from visgrpo.feedback.events import open_events
from visgrpo.feedback.matching import Matched, image_keys, key_columns, match, remarks_on_images
from visgrpo.feedback.posterior import Posterior
from visgrpo.rewards.feedback import ROW_COLUMN, FeedbackReward
from visgrpo.tasks.configs import ClipConfig
from visgrpo.tasks.feedback_posteriors import (
    kind_of_rewards,
    posterior_of,
    rewards_of_table,
    votes_of,
)
from visgrpo.tasks.session import Session

FEEDBACK_FILE = "feedback.json"
MOST_PAIRS = 100_000_000
"""Images × labels whose rewards fit in memory: about 10 GB while they are made, 1 GB after."""


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
    names = rewards_of_table(config.reward)
    keys = keys_of(parts, config.id_column)
    with open_events(
        str(config.feedback),
        query=config.query,
        kind=kind_of_rewards(config.reward),
        drop_duplicates=config.drop_duplicates,
    ) as events:
        matched = match(events, keys, classes)
        session.note(*events.notes, *remarks_on_images(matched))
        report = _source_report(matched)
        fit_M = np.arange(rows) < len(splits.train)
        posteriors = {name: posterior_of(name, matched, fit_M, config, report) for name in names}
        votes_MK = votes_of(matched) if events.kind == "votes" else None
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
    if report.get("positions", 1) > 1:
        session.note(
            "--off-policy takes clicks as they are, whatever position the label stood at: they "
            "must have been shuffled."
        )
    report["fingerprint"] = _fingerprint(posteriors, cells)
    with_rows = _with_rows(splits, observed_MK, config, session)
    return Feedback(with_rows, rewards, posteriors, fit_M, votes_MK, cells, report)


def read_votes(spec: str, dataset: ImageDataset) -> Tensor:
    """Return people's votes on the images of a data set, (M, K); other votes are left out.

    Raises:
        UserError: for a table that holds no votes on these images.
    """
    with open_events(spec, kind="votes") as events:
        return votes_of(match(events, keys_of((dataset,), None), dataset.classes))


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
    labels_teach = (
        config.method == "supervised" or config.supervised_weight > 0 or config.warm_start > 0
    )
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


def _fingerprint(posteriors: Mapping[str, Posterior], cells: LogCells | None) -> str:
    """Name what was made of the table, so that a run goes on with what it began with."""
    digest = hashlib.sha256()
    for posterior in posteriors.values():
        digest.update(posterior.mean_MK.tobytes() + posterior.known_MK.tobytes())
    for column in () if cells is None else fields(cells):
        digest.update(getattr(cells, column.name).tobytes())
    return digest.hexdigest()[:32]


def keep_report(feedback: Feedback, session: Session) -> None:
    """Write RUN/feedback.json, what the run begins with; or check that it goes on with the same.

    Raises:
        UserError: a run is resumed, and its feedback has changed, as that of a database may.
    """
    file = session.run.path / FEEDBACK_FILE
    report = feedback.report
    if not session.config.resume:
        if session.processes.is_main:
            text = json.dumps(report, indent=1, ensure_ascii=False)
            file.write_text(text, encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != report["fingerprint"]:
        raise UserError(
            f"--resume: the feedback in {report['source']} has changed since {session.run.path} "
            "began: go on with a copy as it was then, or start a new run."
        )


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
