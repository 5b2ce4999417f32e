"""How saved models would have done on a log: `visgrpo feedback replay`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
from visgrpo.feedback.replay_details import calibration_bins, ratio_bins
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
from visgrpo.reporting.replay import write_replay_page
from visgrpo.tasks.run import print_notes
from visgrpo.terminal import show, show_table
from visgrpo.training.processes import Processes

LOGGED = "logged policy"
_ESTIMATORS = {
    "ips": "IPS",
    "snips": "SNIPS",
    "direct": "direct",
    "doubly_robust": "doubly robust",
}
Row = dict[str, Any]
"""A model's numbers as JSON has them; `not_supported`, where the log says too little of it."""


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
    features_MD, probability_MK = next(iter(answers.values()))
    # One click model, of the first, serves all.
    clicks_MK = predicted_clicks(cells, features_MD, probability_MK.shape[1], seed=config.seed)
    found = _judge(cells, answers, clicks_MK, config)
    supported = {name: each for name, each in found.items() if isinstance(each, OffPolicy)}
    notes = [f"{name}: {each}." for name, policy in supported.items() for each in remarks(policy)]
    print_notes(notes, processes)
    results: dict[str, Any] = {
        "log": {
            "source": matched.events.name,
            "impressions": float(cells.count_C.sum()),
            "images": len(dataset),
            "unmatched_images": matched.unmatched_image_count,
            "labels": list(dataset.classes),
        },
        "logged": _numbers(logged),
        "models": {
            name: each
            if isinstance(each, dict)
            else {**_row(each), "ratios": ratio_bins(cells, answers[name][1])}
            for name, each in found.items()
        },
        "click_model": calibration_bins(cells, clicks_MK),
        "differences": _differences(logged, supported),
    }
    printed = config.printed(results)
    if not printed:
        _show(results)
    if config.output is not None:
        page = write_replay_page(results, Path(config.output))
        if not printed:
            show(f"Page: {page}")
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
    return _unlabelled(config, events, list(files), images_of(events.folder, list(files)))


def _unlabelled(
    config: ReplayConfig, events: Events, names: Sequence[str], images: Sequence[Image.Image]
) -> Table:
    labels = config.classes or _saved_classes(config) or logged_labels(events)
    return unlabelled(events.name, labels, names, images)


def _saved_classes(config: ReplayConfig) -> tuple[str, ...]:
    """Return the classes that the first model which names any was trained with."""
    saved = (tuple(read_info(model_folder(name)).get("classes", ())) for name in config.model)
    return next(filter(None, saved), ())


def _judge(
    cells: LogCells,
    answers: Mapping[str, tuple[Floats, Floats]],
    clicks_MK: Floats,
    config: ReplayConfig,
) -> dict[str, OffPolicy | Row]:
    """Estimate the models that the log supports."""
    found: dict[str, OffPolicy | Row] = {}
    for name, (_, probability_MK) in answers.items():
        support = overlap(cells, probability_MK)
        reason = unsupported(support, config.least_effective_share)
        found[name] = (
            {"not_supported": reason, **_support(support)}
            if reason
            else estimate_policy(cells, probability_MK, clicks_MK)
        )
    reasons = [each["not_supported"] for each in found.values() if isinstance(each, dict)]
    if len(reasons) == len(found):
        which = f'"{config.model[0]}"' if len(found) == 1 else f"any of the {len(found)} models"
        raise UserError(f"The log cannot support {which}: {reasons[0]}.")
    return found


def _differences(logged: Estimate, found: Mapping[str, OffPolicy]) -> list[Row]:
    """Compare the first model with the log's policy, and the others with the first, paired."""
    first, *others = found
    pairs = [(first, LOGGED), *((name, first) for name in others)]
    values = {LOGGED: logged} | {name: policy.doubly_robust for name, policy in found.items()}
    return [
        {"policy": one, "against": two, **_numbers(difference(values[two], values[one]))}
        for one, two in pairs
    ]


def _row(policy: OffPolicy) -> Row:
    estimates: Row = {name: _numbers(getattr(policy, name)) for name in (*_ESTIMATORS, "sndr")}
    for name, cut in (("clipped", policy.clipped), ("switch", policy.switch)):
        at = cut.at if math.isfinite(cut.at) else None  # JSON has no infinity
        estimates[name] = {**_numbers(cut), "at": at}
    return {**estimates, **_support(policy)}


def _support(found: Overlap) -> Row:
    return {
        "effective_samples": found.effective_samples,
        "effective_share": found.effective_share,
        "mean_ratio": _numbers(found.mean_ratio),
        "largest_ratio": found.largest_ratio,
        "uncovered": found.uncovered,
    }


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {name: getattr(estimate, name) for name in ("value", "error", "low", "high")}


def _show(results: Mapping[str, Any]) -> None:
    """Print the table and a sentence for each comparison."""
    log, models = results["log"], results["models"]
    # Paths would fill the table; the lines above it say which is which.
    called = {name: f"model {number}" for number, name in enumerate(models, start=1)}
    show(
        f"Clicks per impression, with 95 % intervals: {log['source']}, "
        f"{log['impressions']:,.0f} impressions of {log['images']:,} images"
    )
    for name, number in called.items():
        show(f"{number}: {name}")
    lines = [[LOGGED, _cell(results["logged"])]]
    lines += [[called[name], *_cells(row)] for name, row in models.items()]
    headings = ["", *_ESTIMATORS.values(), "effective", "mean ratio"]
    show_table(headings, lines, width=120, lines=True)
    for name, row in models.items():
        if "not_supported" in row:
            show(f"{called[name]} is not supported: {row['not_supported']}.")
        else:  # the table has no room for it
            show(f"{called[name]}, self-normalized doubly robust: {_cell(row['sndr'], ' ')}")
            for key, words in (("clipped", "clipped IPS"), ("switch", "Switch-DR")):
                show(f"{called[name]}, {words}: {_cut(row[key])}")
    for change in results["differences"]:
        show(_sentence(change, {LOGGED: LOGGED, **called}))


def _cut(row: Row) -> str:
    told = "nothing" if row["at"] is None else f"ratios above {row['at']:.3g}"
    return f"{_cell(row, ' ')}, cuts {told}"


def _sentence(change: Row, called: Mapping[str, str]) -> str:
    policy, against = called[change["policy"]], called[change["against"]]
    if change["low"] > 0:
        verdict = f"{policy} earns more"
    elif change["high"] < 0:
        verdict = f"{policy} earns less"
    else:
        verdict = "the log cannot tell them apart"
    numbers = f"{change['value']:+.4f} [{change['low']:.4f}, {change['high']:.4f}]"
    return f"{policy} − {against}: {numbers} clicks per impression; {verdict}."


def _cells(row: Row) -> list[str]:
    """Return a model's row as text, with its effective sample size and what ought to be 1."""
    if "not_supported" in row:
        estimates = ["not supported", "", "", ""]
    else:
        # An interval of the direct estimate would not say how wrong the predicted clicks are.
        estimates = [
            f"{row[name]['value']:.3f}" if name == "direct" else _cell(row[name])
            for name in _ESTIMATORS
        ]
    effective = f"{row['effective_samples']:,.0f}\n{row['effective_share']:.1%}"
    return [*estimates, effective, _cell(row["mean_ratio"])]


def _cell(estimate: Mapping[str, float], between: str = "\n") -> str:
    # The bracket would be read as markup.
    return f"{estimate['value']:.3f}{between}[{estimate['low']:.3f}, {estimate['high']:.3f}]"
