"""A CLIP job that learns from a table of what people did: its rewards, or the log they left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial, reduce
from operator import and_
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import TypedDict

from visgrpo.data.batches import InputFunction
from visgrpo.data.table import Splits, Table, derived
from visgrpo.errors import UserError
from visgrpo.feedback.images import events_of, keys_of
from visgrpo.feedback.off_policy import check_support
from visgrpo.feedback.posteriors import (
    posterior_of,
    rewards_of_table,
    votes_of,
)
from visgrpo.feedback.reward import (
    ROW_COLUMN,
    FeedbackReward,
    LoggedGRPO,
    doubly_robust,
    logged,
)
from visgrpo.feedback.source.matching import (
    Matched,
    match,
    remarks_on_images,
)
from visgrpo.feedback.worth.cells import LogCells, log_cells, of_images
from visgrpo.feedback.worth.posterior import Floats, Posterior
from visgrpo.feedback.worth.prediction import predict_unknown
from visgrpo.files import read_json, write_whole
from visgrpo.measures.over import logits_of, outputs_of
from visgrpo.methods.labels import LabelGRPO
from visgrpo.models.clip import ClipClassifier
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import RewardSet
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.extension import Extension
from visgrpo.tasks.run import Session

FEEDBACK_FILE = "feedback.json"
MOST_PAIRS = 100_000_000
"""Images × labels whose rewards fit in memory: about 10 GB while they are made, 1 GB after."""


class Report(TypedDict):
    """What is compared of feedback.json when a run goes on."""

    fingerprint: str


_LOST = (
    "Nothing tells whether the feedback is still the same: restore it from a copy, or start a new "
    "run."
)


class FeedbackLearning(Extension):
    """The table, matched with the images, and the rewards that were asked for.

    Rows of tables are the images of train, validation and test, one after the other; the splits
    have a column that names the row. Training images that nobody judged are left out where nothing
    else could be learned from them.

    Attributes:
        rewards: by name, as they are without a model.
        posteriors: what they were made of.
        fit_M: which images are for training: held-out feedback is only measured with.
        votes_MK: people's votes, where that is what the table holds.
        cells: the log, for learning off policy.
        report: what the summary says.

    Raises:
        UserError: for tables, options and data that do not go together.
    """

    few_images = True

    def __init__(self, config: ClipConfig, splits: Splits, session: Session) -> None:
        self._config, self._session = config, session
        parts = (splits.train, splits.validation, splits.test)
        rows, classes = sum(map(len, parts)), splits.train.classes
        _check_size(rows, len(classes))
        names = rewards_of_table(config.reward)
        keys = keys_of(parts, config.id_column)
        with events_of(config) as events:
            matched = match(events, keys, classes)
            session.note(*events.notes, *remarks_on_images(matched))
            report = _source_report(matched)
            self.fit_M = np.arange(rows) < len(splits.train)
            self.posteriors = {
                name: posterior_of(name, matched, self.fit_M, config, report) for name in names
            }
            self.votes_MK = votes_of(matched) if events.kind == "votes" else None
            self.cells = log_cells(matched) if config.off_policy != "none" else None
        known = (posterior.known_MK for posterior in self.posteriors.values())
        observed_MK: np.ndarray = reduce(and_, known)
        report |= _coverage_report(self.posteriors, observed_MK, self.fit_M)
        report["unknown"] = config.unknown
        _say_coverage(report, len(splits.train), session)
        if without := report.get("raters_without_weight"):
            session.note(
                f"votes of {without:,} of {report['raters']:,} people count next to nothing: they "
                "answer no better than by chance, as far as their votes can tell"
            )
        if "no_examination" in report:
            session.note(f"clicks are not corrected for positions: {report['no_examination']}")
        if report.get("positions", 1) > 1:
            session.note(
                "--off-policy takes clicks as they are, whatever position the label stood at: they "
                "must have been shuffled."
            )
        report["fingerprint"] = _fingerprint(self.posteriors, self.cells)
        worth_MK = self.posteriors[names[0]].mean_MK
        super().__init__(_with_rows(splits, observed_MK, worth_MK, config, session))
        self.report, self.facts = report, {"feedback": report}
        self.rewards = {
            name: FeedbackReward.of(posterior, config.pessimism, masks=config.unknown == "mask")
            for name, posterior in self.posteriors.items()
        }

    def start(
        self,
        classifier: ClipClassifier,
        inputs: Mapping[str, InputFunction],
        rewards: RewardSet,
        objective: Objective,
    ) -> tuple[RewardSet, Callable[..., LabelGRPO]]:
        """Give rewards to pairs that nobody saw, or turn the log into groups, if asked to.

        Raises:
            UserError: the log cannot support the start, or there is too little to learn a reward
                model from.
        """
        config, cells, correction = self._config, self.cells, self._config.off_policy
        if correction == "none" or cells is None:
            if config.unknown == "predict":
                features_MD = self._features(classifier, inputs)
                rewards = rewards.replaced(
                    {name: self._predicted(name, features_MD) for name in self.posteriors}
                )
            return rewards, LabelGRPO
        in_groups = objective.scope == "group" and correction != "doubly-robust"
        self._check_support(cells, classifier, inputs, in_groups)
        shape = len(self.fit_M), len(self.splits.train.classes)
        if correction == "doubly-robust":
            self.report["unknown"] = "doubly robust"
            reward = doubly_robust(
                cells, self.fit_M, self._features(classifier, inputs), shape[1], seed=config.seed
            )
            return rewards.replaced({"clicks": reward}), LabelGRPO
        reward, log = logged(cells, *shape)
        grpo = partial(LoggedGRPO, log=log, correction=correction)
        return rewards.replaced({"clicks": reward}), grpo

    def votes(self, split: str) -> Tensor | None:
        """Return people's votes on the images of one of the splits, (rows, K)."""
        return None if self.votes_MK is None else self.votes_MK[self._rows(split)]

    def begin(self) -> None:
        """Write RUN/feedback.json, what the run begins with, or check that it goes on with it.

        Raises:
            UserError: a run is resumed, and its feedback has changed, as that of a database may.
        """
        session, report = self._session, self.report
        file = session.run.path / FEEDBACK_FILE
        if not (session.resumed and file.exists()):  # a kill may have come before it was written
            if session.processes.is_main:
                text = json.dumps(report, indent=1, ensure_ascii=False)
                write_whole(file, text)
        elif read_json(file, Report, _LOST)["fingerprint"] != report["fingerprint"]:
            raise UserError(
                f"--resume: the feedback in {report['source']} has changed since "
                f"{session.run.path} began: go on with a copy as it was then, or start a new run."
            )

    def _predicted(self, name: str, features_MD: Floats) -> FeedbackReward:
        """Put in what a reward model on image features says of pairs that nobody saw."""
        filled, model = predict_unknown(self.posteriors[name], features_MD, self.fit_M)
        self.report[f"{name}_predicted_r2"] = model.r2
        pairs = int((~filled.known_MK & model.fitted_K).sum())
        self._session.say(
            f"Reward {name}: {pairs:,} unseen pairs predicted from {model.pairs:,}; "
            f"R² {model.r2:.3f}, cross-validated."
        )
        if few := int((~model.fitted_K).sum()):
            self._session.note(f"{few} labels have too little feedback to predict.")
        return FeedbackReward.of(filled, self._config.pessimism, masks=False)

    def _check_support(
        self,
        cells: LogCells,
        classifier: ClipClassifier,
        inputs: Mapping[str, InputFunction],
        in_groups: bool,
    ) -> None:
        """Refuse a log that says too little about the start; else say how much it says."""
        train, processes = self.splits.train, self._session.processes
        logits_NK = logits_of(classifier, train, inputs["train"], processes)
        policy_NK = logits_NK.div(self._config.temperature).softmax(dim=1)
        overlap, remarks = check_support(
            of_images(cells, self.fit_M),
            self._table({"train": policy_NK}),
            least_share=self._config.least_effective_share,
            groups=in_groups,
        )
        self._session.note(*remarks)
        self._session.say(
            f"Log: {overlap.impressions:,.0f} impressions are worth "
            f"{overlap.effective_samples:,.0f} of the start's own ({overlap.effective_share:.1%})."
        )
        self.report["effective_samples"] = overlap.effective_samples
        self.report["effective_share"] = overlap.effective_share

    def _features(self, classifier: ClipClassifier, inputs: Mapping[str, InputFunction]) -> Floats:
        """The start's features of every image, (M, D)."""
        return self._table(
            {
                split: outputs_of(
                    classifier.embed_images,
                    getattr(self.splits, split),
                    inputs[split],
                    self._session.processes,
                )
                for split in ("train", "validation", "test")
            }
        )

    def _table(self, made: Mapping[str, Tensor]) -> Floats:
        """Put what was made of some splits into the table's rows; the others are 0."""
        table = np.zeros((len(self.fit_M), next(iter(made.values())).shape[1]))
        for split, values in made.items():
            table[self._rows(split)] = values.double().cpu().numpy()
        return table

    def _rows(self, split: str) -> np.ndarray:
        return np.asarray(getattr(self.splits, split).columns[ROW_COLUMN])


def _with_rows(
    splits: Splits,
    observed_MK: np.ndarray,
    worth_MK: Floats,
    config: ClipConfig,
    session: Session,
) -> Splits:
    """Name the table's row of every image; leave out those that teach nothing.

    Args:
        worth_MK: what supervised training takes the best label by.
    """
    starts = np.cumsum([0, len(splits.train), len(splits.validation)])
    train, validation, test = (
        replace(part, columns={**part.columns, ROW_COLUMN: start + np.arange(len(part))})
        for part, start in zip((splits.train, splits.validation, splits.test), starts, strict=True)
    )
    teaches_M = np.asarray(observed_MK.any(axis=1))[: len(train)]
    labels_teach = config.supervised_weight > 0 or config.warm_start > 0
    if config.method == "supervised":
        train = _as_liked(train, worth_MK, observed_MK, session)
    elif config.unknown == "mask" and not labels_teach and not teaches_M.all():
        session.note(
            f"{int((~teaches_M).sum()):,} of {len(train):,} training images have no feedback and "
            "were left out; --unknown prior or predict keeps them."
        )
        train = train.subset(np.flatnonzero(teaches_M))
    _say_what_is_alone(observed_MK[: len(teaches_M)], config, session)
    of_validation = starts[1] + np.arange(len(validation))
    if config.resolved_select() != "accuracy" and not observed_MK[of_validation].any():
        raise UserError(
            "No validation image has feedback, so the best step cannot be chosen by the reward: "
            "--select accuracy, or a larger --validation-fraction."
        )
    return replace(splits, train=train, validation=validation, test=test)


def _as_liked(train: Table, worth_MK: Floats, known_MK: np.ndarray, session: Session) -> Table:
    """Return the training images that people liked a label of, each with the one they liked best.

    Liked is a label that is worth no less than the known ones of all training images in the mean:
    an image whose only known label nobody clicked has none.
    """
    known_NK = known_MK[: len(train)]
    worth_NK = np.where(known_NK, worth_MK[: len(train)], -np.inf)
    liked_N = worth_NK.max(axis=1) >= worth_NK[known_NK].mean()
    kept = np.flatnonzero(liked_N)
    session.note(
        f"--method supervised with --feedback learns the label that people liked best, of "
        f"{len(kept):,} of {len(train):,} training images; without --feedback it learns the data's."
    )
    part = train.subset(kept)
    labels = worth_NK[kept].argmax(axis=1)
    identity = derived(part.identity, f"labels {hashlib.sha256(labels.tobytes()).hexdigest()}")
    return replace(part, values={**part.values, "labels": labels}, identity=identity)


def _say_what_is_alone(observed_MK: np.ndarray, config: ClipConfig, session: Session) -> None:
    """Say before training where most groups hold one label, whose advantage is always 0."""
    known_M = observed_MK.sum(axis=1)
    alone, judged = int((known_M == 1).sum()), int((known_M > 0).sum())
    learns = config.method != "supervised" and config.off_policy == "none"
    if learns and config.unknown == "mask" and 2 * alone >= max(judged, 1):
        session.note(
            f"{alone:,} of {judged:,} training images with feedback have it on one label alone; "
            "--unknown mask compares labels that are known, so they teach nothing: take --unknown "
            "predict, which says something of every label."
        )


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
