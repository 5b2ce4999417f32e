"""How saved models would have done on a log: `visgrpo feedback replay`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table as ConsoleTable

from visgrpo.data.folders import holds_photos, images_of, read_photos
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.feedback.images import answers_of, stored_images, unlabelled
from visgrpo.feedback.off_policy import (
    Estimate,
    OffPolicy,
    Overlap,
    difference,
    estimate_policy,
    logged_value,
    overlap,
    remarks,
    unsupported,
)
from visgrpo.feedback.options import ReplayConfig
from visgrpo.feedback.source.events import Events, open_events
from visgrpo.feedback.source.matching import (
    image_keys,
    logged_labels,
    match,
    remarks_on_images,
)
from visgrpo.feedback.worth.cells import Floats, LogCells, log_cells
from visgrpo.feedback.worth.prediction import predicted_clicks
from visgrpo.models.parts import model_folder, read_info
from visgrpo.tasks.run import print_notes
from visgrpo.training.processes import Processes

LOGGED = "logged policy"
_ESTIMATORS = {
    "ips": "IPS",
    "snips": "SNIPS",
    "direct": "direct",
    "doubly_robust": "doubly robust",
}


@dataclass(frozen=True)
class _Refused:
    """A model that the log says too little of.

    Attributes:
        overlap: what it does say.
        reason: why that is too little, and the mend.
    """

    overlap: Overlap
    reason: str


@dataclass(frozen=True)
class _Change:
    """The doubly robust estimate of one policy less that of another, paired."""

    policy: str
    against: str
    estimate: Estimate

    def sentence(self, called: Mapping[str, str]) -> str:
        """Say it in words, with what policies are called in the table."""
        change, policy = self.estimate, called[self.policy]
        if change.low > 0:
            verdict = f"{policy} earns more"
        elif change.high < 0:
            verdict = f"{policy} earns less"
        else:
            verdict = "the log cannot tell them apart"
        numbers = f"{change.value:+.4f} [{change.low:.4f}, {change.high:.4f}]"
        return f"{policy} − {called[self.against]}: {numbers} clicks per impression; {verdict}."


def replay(config: ReplayConfig) -> dict[str, Any]:
    """Estimate the clicks per impression of every model; print them and return them.

    Raises:
        UserError: for a log, images or models that cannot be used, and where the log supports none
            of the models.
    """
    config.check()
    processes = Processes(config.device)
    with open_events(
        config.log,
        query=config.query,
        kind="impressions",
        drop_duplicates=config.drop_duplicates,
    ) as events:
        dataset = _images_of_log(config, events)
        keys = image_keys(dataset.columns, len(dataset), config.id_column)
        matched = match(events, keys, dataset.classes)
        cells = log_cells(matched)
        skipped = [f"left out: {reason}" for reason in dataset.skipped]
        print_notes([*events.notes, *skipped, *remarks_on_images(matched)], processes)
    logged_I, image_C = np.unique(cells.image_C, return_inverse=True)
    cells, dataset = replace(cells, image_C=image_C), dataset.subset(logged_I)
    logged = logged_value(cells)
    size, templates = config.batch_size, config.templates
    answers = {
        name: answers_of(
            model_folder(name), dataset, dataset.classes, templates, processes, batch_size=size
        )
        for name in config.model
    }
    found = _judge(cells, answers, config)
    print_notes(_remarks(found), processes)
    changes = _changes(logged, found)
    results: dict[str, Any] = {
        "log": {
            "source": matched.events.name,
            "impressions": float(cells.count_C.sum()),
            "images": len(dataset),
            "unmatched_images": matched.unmatched_image_count,
            "labels": list(dataset.classes),
        },
        "logged": _numbers(logged),
        "models": {name: _row(policy) for name, policy in found.items()},
        "differences": [
            {"policy": each.policy, "against": each.against, **_numbers(each.estimate)}
            for each in changes
        ],
    }
    _show(results, logged, found, changes, config)
    return results


def _images_of_log(config: ReplayConfig, events: Events) -> Table:
    """Return the images that a log may speak of, with the labels that could be shown as classes.

    Their own labels mean nothing here.

    Raises:
        UserError: where there are none, or fewer than two labels.
    """
    if config.data is None:
        dataset = _named_files(config, events)
    elif holds_photos(Path(config.data).expanduser()):
        names, images = read_photos(Path(config.data).expanduser())
        dataset = _unlabelled(config, events, names, images)
    else:
        stored = stored_images(config)
        nothing_M = np.zeros(len(stored), dtype=np.int64)
        values = {**stored.values, "labels": nothing_M}
        dataset = replace(stored, classes=config.classes or stored.classes, values=values)
    return dataset.without_bad_rows() if config.skip_bad_images else dataset


def _named_files(config: ReplayConfig, events: Events) -> Table:
    """Return the files that the log names as images; those that are not there are left out."""
    found = events.connection.execute("SELECT DISTINCT image FROM events ORDER BY image").fetchall()
    names = [name for (name,) in found]
    files = {name: file for name in names if (file := events.folder / name).is_file()}
    if not files:
        raise UserError(
            f"{events.name}: none of its {len(names)} images is a file beside it, such as "
            f'"{names[0]}": name the images with --data.'
        )
    return _unlabelled(config, events, list(files), images_of(list(files.values())))


def _unlabelled(
    config: ReplayConfig, events: Events, names: list[str], images: Sequence[Image.Image]
) -> Table:
    labels = config.classes or _saved_classes(config) or logged_labels(events)
    return unlabelled(events.name, labels, names, images)


def _saved_classes(config: ReplayConfig) -> tuple[str, ...]:
    """Return the classes that the first model which names any was trained with."""
    saved = (tuple(read_info(model_folder(name)).get("classes", ())) for name in config.model)
    return next(filter(None, saved), ())


def _judge(
    cells: LogCells, answers: Mapping[str, tuple[Floats, Floats]], config: ReplayConfig
) -> dict[str, OffPolicy | _Refused]:
    """Estimate the models that the log supports; one click model, of the first, serves all."""
    features_MD, probability_MK = next(iter(answers.values()))
    clicks_MK = predicted_clicks(cells, features_MD, probability_MK.shape[1], seed=config.seed)
    found: dict[str, OffPolicy | _Refused] = {}
    for name, (_, probability_MK) in answers.items():
        support = overlap(cells, probability_MK)
        reason = unsupported(support, config.least_effective_share)
        found[name] = (
            _Refused(support, reason)
            if reason
            else estimate_policy(cells, probability_MK, clicks_MK)
        )
    reasons = [each.reason for each in found.values() if isinstance(each, _Refused)]
    if len(reasons) == len(found):
        which = f'"{config.model[0]}"' if len(found) == 1 else f"any of the {len(found)} models"
        raise UserError(f"The log cannot support {which}: {reasons[0]}.")
    return found


def _changes(logged: Estimate, found: Mapping[str, OffPolicy | _Refused]) -> list[_Change]:
    """Compare the first model with the log's policy, and the others with the first."""
    values = {
        name: policy.doubly_robust
        for name, policy in found.items()
        if isinstance(policy, OffPolicy)
    }
    first, *others = values
    return [
        _Change(first, LOGGED, difference(logged, values[first])),
        *(_Change(name, first, difference(values[first], values[name])) for name in others),
    ]


def _remarks(found: Mapping[str, OffPolicy | _Refused]) -> list[str]:
    return [
        f"{name}: {remark}."
        for name, policy in found.items()
        if isinstance(policy, OffPolicy)
        for remark in remarks(policy)
    ]


def _row(policy: OffPolicy | _Refused) -> dict[str, Any]:
    """Return a model's numbers for JSON."""
    support = policy.overlap if isinstance(policy, _Refused) else policy
    row: dict[str, Any] = {
        "effective_samples": support.effective_samples,
        "effective_share": support.effective_share,
        "mean_ratio": _numbers(support.mean_ratio),
        "largest_ratio": support.largest_ratio,
        "uncovered": support.uncovered,
    }
    if isinstance(policy, _Refused):
        return {"not_supported": policy.reason, **row}
    return {**{name: _numbers(getattr(policy, name)) for name in _ESTIMATORS}, **row}


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {name: getattr(estimate, name) for name in ("value", "error", "low", "high")}


def _show(
    results: Mapping[str, Any],
    logged: Estimate,
    found: Mapping[str, OffPolicy | _Refused],
    changes: Sequence[_Change],
    config: ReplayConfig,
) -> None:
    """Print JSON, or the table and a sentence for each comparison."""
    if config.printed(results):
        return
    log = results["log"]
    # Paths would fill the table; the lines above it say which is which.
    called = {name: f"model {number}" for number, name in enumerate(found, start=1)}
    print(
        f"Clicks per impression, with 95 % intervals: {log['source']}, "
        f"{log['impressions']:,.0f} impressions of {log['images']:,} images"
    )
    for name, number in called.items():
        print(f"{number}: {name}")
    table = ConsoleTable("", *_ESTIMATORS.values(), "effective", "mean ratio")
    table.add_row(LOGGED, _cell(logged))
    for name, policy in found.items():
        table.add_row(called[name], *_cells(policy))
    Console(width=None if Console().is_terminal else 120).print(table)
    for name, policy in found.items():
        if isinstance(policy, _Refused):
            print(f"{called[name]} is not supported: {policy.reason}.")
    for change in changes:
        print(change.sentence({LOGGED: LOGGED, **called}))


def _cells(policy: OffPolicy | _Refused) -> list[str]:
    """Return a model's row as text, with its effective sample size and what ought to be 1."""
    if isinstance(policy, _Refused):
        support, estimates = policy.overlap, ["not supported", "", "", ""]
    else:
        support = policy
        # An interval of the direct estimate would not say how wrong the predicted clicks are.
        estimates = [
            f"{policy.direct.value:.3f}" if name == "direct" else _cell(getattr(policy, name))
            for name in _ESTIMATORS
        ]
    effective = f"{support.effective_samples:,.0f}\n{support.effective_share:.1%}"
    return [*estimates, effective, _cell(support.mean_ratio)]


def _cell(estimate: Estimate) -> str:
    # The bracket would be read as markup.
    return escape(f"{estimate.value:.3f}\n[{estimate.low:.3f}, {estimate.high:.3f}]")
