"""What is done with saved models: `visgrpo evaluate` and `visgrpo predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.folders import image_files
from visgrpo.data.images import decode
from visgrpo.data.read import DataKind, read, read_split
from visgrpo.data.split import parse_split, sliced
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.measures import evaluate_logits
from visgrpo.measures.classification import classification_report, one_for_all
from visgrpo.measures.decisions import Decision, fit_biases
from visgrpo.models.backbone import FAMILIES, encodes_images
from visgrpo.models.load import DUAL_ENCODERS, nanogpt_checkpoint, start_of
from visgrpo.models.parts import in_one_line, is_adapter, model_folder, pretrained, read_info
from visgrpo.models.vision_families import SEEING
from visgrpo.models.whole import check_model_name
from visgrpo.objectives.counts import CountScore
from visgrpo.progress import tracked
from visgrpo.reporting import print_measures
from visgrpo.reporting.console import table_of, write_table
from visgrpo.rewards.labels import NO_ANSWER
from visgrpo.tasks.images import abstaining, columns_of, with_no_answer
from visgrpo.tasks.lineage import Learned, learned_from
from visgrpo.tasks.run import print_notes
from visgrpo.tasks.task import Kind, kinds, loaded
from visgrpo.tasks.use_options import EvaluateConfig, PredictConfig
from visgrpo.terminal import say, show, show_table
from visgrpo.training.processes import Processes

# How transformers' classes are called that write text, and those that score it.
_ARCHITECTURES: Mapping[str, str] = {
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForSequenceClassification": "reward",
}
_BACKBONES = ("classification", "segmentation", "backbone")
# Of backbones; that images' options do not go with text needs no words.
_BECAUSE: Mapping[str, str] = {
    "alpha": "a head begins at random, so weights between the start's and its own answer nothing",
    "batch_size": "masks are evaluated as many at a time as fit into fixed memory",
    "classes": "a head answers the classes that it was trained on",
    "pool": "its head was trained on features of its own pool",
    "templates": "it has no text tower",
}
_NUMBERS = {"probabilities": "probability", "shares": "share of pixels"}

_WEAKEST = 5
MACRO_F1, MEAN_IOU = CountScore(2, 1, 0), CountScore(1, 1, -1)


class Evaluation(Protocol):
    """What models of one kind are measured by, on one data set.

    It is made of options and processes: that reads the data, and refuses what cannot be used.
    """

    title: str
    """What stands above the table: the data, and how much of it."""

    def measures(self, row: str, name: str) -> Mapping[str, Any]:
        """Return measures of a model by the row that they stand in.

        Args:
            row: "start" or "model"; the start comes first.
            name: a folder, or a name on the Hub.
        """


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return the measures of a model, of the start, and of weights between the two.

    Keys are ``model``, ``start`` and ``alpha=…``; those that were asked for.

    Raises:
        UserError: for a model or data set that cannot be used, and options that do not go with it.
    """
    config.check()
    start = model_folder(config.start) if config.start else None
    config = replace(config, model=model_folder(config.model), start=start)
    names = {row: kind_of(name) for row, name in models_of(config)}
    refuse_other_options(config, names["model"])
    kind, start_kind = (kinds().get(names.get(row, "")) for row in ("model", "start"))
    assert kind is not None
    _check(config, kind, start_kind)
    evaluation: Evaluation = loaded(kind.evaluation)(config, Processes(config.device))
    results: dict[str, Any] = {}
    for row, name in models_of(config):
        results |= evaluation.measures(row, name)
    for measures in results.values():
        if "confusion" in measures and "per_class_accuracy" in measures:
            classes = list(measures["per_class_accuracy"])
            report = classification_report(measures["confusion"], classes)
            measures["macro_f1"] = report["macro avg"]["f1-score"]
            measures["classification_report"] = report
    _show(results, config, evaluation.title)
    return results


def models_of(config: EvaluateConfig) -> Iterator[tuple[str, str]]:
    """The names of the rows to print, and their models; the start comes first."""
    if config.start:
        yield "start", config.start
    yield "model", config.model


def division_of(config: EvaluateConfig, fraction: float | None = None) -> dict[str, Any]:
    """Return how rows are divided: by the options first, then as in the model's own runs.

    On the data that the model was tuned on, they are divided as they were then: with another seed
    most of a made validation split would be rows that the model was trained on.

    Args:
        fraction: of a made validation split where nothing else is known; None for the usual one.
    """
    resting = {"seed": 0, "validation_fraction": fraction, "train_slice": None}
    given = {name: getattr(config, name) for name in resting}
    said = {name: value for name, value in given.items() if value is not None}
    learned = learned_before(config)
    before = learned._asdict() if learned else resting
    return {name: said.get(name, before[name]) for name in resting}


def learned_before(config: EvaluateConfig) -> Learned | None:
    """Return the stage in which the model, or else its start, learned from this data."""
    found = (learned_from(name, config.data) for name in (config.model, config.start))
    return next(filter(None, found), None)


def splits_of(config: EvaluateConfig, kind: str = "labels", **more: Any) -> Splits:
    """Read data in three splits, for what learns from one and is judged on another.

    Args:
        kind: of data, as `read` has it, which takes more, too.
    """
    splits = read(config.data, kind, **_asked(config), **division_of(config), **more)
    return with_no_answer(splits) if _may_abstain(config, kind) else splits


def rows_of(config: EvaluateConfig, kind: str = "labels", **more: Any) -> Table:
    """Read the rows to evaluate on; any that are stored, or of a validation split that is made."""
    division = division_of(config)
    split, rows = parse_split(config.split)
    if split == "validation" and division["train_slice"] is not None:
        return sliced(splits_of(config, kind, **more).validation, rows)
    del division["train_slice"]
    table = read_split(config.data, config.split, kind, **_asked(config), **division, **more)
    return abstaining(table) if _may_abstain(config, kind) else table


def _may_abstain(config: EvaluateConfig, kind: DataKind | str) -> bool:
    """Whether the model has the output of no answer, which data know nothing of."""
    return kind == "labels" and NO_ANSWER in read_info(config.model).get("classes", ())


def rows_apart(
    config: EvaluateConfig, kind: DataKind | str, fraction: float, processes: Processes
) -> Table:
    """Read rows that share nothing with those of other splits; say how they were divided.

    Args:
        fraction: as in `division_of`.

    Raises:
        UserError: for a split of all rows.
    """
    split, rows = named_split(config)
    division = division_of(config, fraction)
    splits = read(config.data, kind, **_asked(config), **division)
    print_notes(splits.notes, processes)
    return sliced(getattr(splits, split), rows)


def named_split(config: EvaluateConfig) -> tuple[str, slice]:
    """Return a split and its rows, where rows of all splits together mean nothing.

    Raises:
        UserError: for "all".
    """
    split, rows = parse_split(config.split)
    if split == "all":
        raise UserError(f"--split {config.split}: name train, validation or test.")
    return split, rows


def _asked(config: EvaluateConfig) -> dict[str, Any]:
    return {"columns": columns_of(config), "skip_bad_images": config.skip_bad_images}


def _check(config: EvaluateConfig, kind: Kind, start: Kind | None) -> None:
    """Raise UserError where data must be named, and for a start that is no such model."""
    if kind.data is not None and config.data == EvaluateConfig.data:
        raise UserError(f'"{config.model}" is {kind.words}: name {kind.data} with --data.')
    if start not in (None, kind) and kind.alike:
        assert start is not None
        raise UserError(
            f'--start "{config.start}" is {start.words}: give {kind.words}, or leave --start out.'
        )


def _show(results: Mapping[str, Any], config: EvaluateConfig, title: str) -> None:
    """Print JSON, or a table of all rows; write the JSON file that was asked for."""
    if config.table:
        write_table(config.table, *table_of(_with_shifts(results)))
    if config.printed(results):
        return
    print_measures(title, _with_shifts(results))
    warning = one_for_all(results["model"])
    if warning:
        say(f"warning: {warning}")
    for measure in ("per_class_accuracy", "per_class_iou"):
        if measure in results["model"]:
            _print_weakest(results["model"][measure])
    for each in results["model"].get("weakest_images", ()):
        show(
            "Weakest image: {file}, {label}, taken for {answer}, p {probability:.3f}".format(**each)
        )


def _with_shifts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Give the measures on every shifted copy a row of their own."""
    rows = {}
    for name, measures in results.items():
        rows[name] = measures
        for shift, shifted in measures.get("shifts", {}).items():
            rows[f"{name}, {shift}"] = shifted
    return rows


def _print_weakest(per_class: Mapping[str, float | None]) -> None:
    known = {name: value for name, value in per_class.items() if value is not None}
    worst = sorted(known, key=lambda name: known[name])[:_WEAKEST]
    show("Weakest classes: " + ", ".join(f"{name} {known[name]:.3f}" for name in worst))


def kind_of(name: str) -> str:
    """Return what a folder or Hub name holds, without loading weights.

    Raises:
        UserError: when the model is not there, or is of a kind that nothing here takes.
    """
    if nanogpt_checkpoint(name) is not None:
        return "language"
    check_model_name(name)
    task = read_info(name).get("task")
    if task in kinds():
        return str(task)
    if is_adapter(name):
        kind = kind_of(start_of(name))
        return kind if kind in ("language", "vision-language") else "clip"
    with in_one_line(name):
        config = pretrained("AutoConfig", name)
    if encodes_images(config.model_type):
        return "backbone"
    if config.model_type in SEEING:
        return "vision-language"
    for ending, kind in _ARCHITECTURES.items():
        if any(each.endswith(ending) for each in config.architectures or ()):
            return kind
    if config.model_type in DUAL_ENCODERS:
        return "clip"
    classes = f" ({', '.join(config.architectures)})" if config.architectures else ""
    raise UserError(
        f'"{name}" is a {config.model_type} model{classes}, which nothing here takes: take a dual '
        f"encoder ({', '.join(DUAL_ENCODERS)}), a backbone ({', '.join(FAMILIES)}), a "
        f"vision-language model ({', '.join(SEEING)}), or a causal language model such as gpt2 or "
        "qwen2."
    )


def refuse_other_options(config: EvaluateConfig | PredictConfig, kind: str) -> None:
    """Raise UserError for an option that was given and does not go with this kind of model."""
    all_kinds = kinds()
    for option in fields(config):
        takers = [name for name, each in all_kinds.items() if option.name in each.takes]
        if not takers or kind in takers or getattr(config, option.name) == option.default:
            continue
        flag = "--" + option.name.replace("_", "-")
        because = _BECAUSE.get(option.name, "") if kind in _BACKBONES else ""
        reason = f": {because}" if because else ""
        *most, last = (all_kinds[name].words for name in takers)
        wanted = f"{', '.join(most)} or {last}" if most else last
        raise UserError(
            f'{flag} does not go with "{config.model}", {all_kinds[kind].words}{reason}. '
            f"It is for {wanted}."
        )


class Prediction(Protocol):
    """A model that says something about images: made of options and processes.

    That refuses what cannot work and loads the model. Images are opened and answered one by one:
    any number of large ones fits in memory, and they may differ in size.
    """

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        """Return classes with "probabilities" or "shares", or "completion" and "answer"."""


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Return for each image its most probable classes, its pixels' or an answer; print them.

    Of an image that cannot be answered there is the "error" instead, and the others follow.

    Raises:
        UserError: for images of which none can be answered, a model that knows no class names, and
            options that do not go with the model.
    """
    config.check()
    config = replace(config, model=model_folder(config.model))
    name = kind_of(config.model)
    kind = kinds()[name]
    if kind.prediction is None:
        raise UserError(f'"{config.model}" is {kind.words} and {kind.no_answers}.')
    refuse_other_options(config, name)
    files = tuple(file for each in config.images for file in _files_of(each))
    config = replace(config, images=files)
    if kind.labels:
        classes_of(config)
    prediction: Prediction = loaded(kind.prediction)(config, Processes(config.device))
    answers = [_answer(prediction, path) for path in tracked(config.images, "images")]
    if all("error" in answer for answer in answers):
        raise UserError(answers[0]["error"])
    if config.table:
        write_table(config.table, *_as_table(answers))
    if not config.printed(answers):
        _show_answers(answers)
    return answers


def _files_of(name: str) -> list[str]:
    """Return an image, or those below a folder."""
    if not Path(name).is_dir():
        if not Path(name).is_file():
            raise UserError(f'Image "{name}" does not exist.')
        return [name]
    files = list(map(str, image_files(Path(name))))
    if not files:
        raise UserError(f'Folder "{name}" holds no images.')
    return files


@torch.no_grad()
def _answer(prediction: Prediction, path: str) -> dict[str, Any]:
    try:
        image = decode(path, f'Image "{path}"', mend="replace it, or leave it out")
        return {"image": path, **prediction(path, image)}
    except UserError as error:
        return {"image": path, "error": str(error)}


def _as_table(answers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and a row for each image; of lists, such as classes, a column for each."""
    flat = [
        {
            f"{key} {place}" if isinstance(value, list) else key: "" if each is None else str(each)
            for key, value in answer.items()
            for place, each in enumerate(value if isinstance(value, list) else [value], start=1)
        }
        for answer in answers
    ]
    headings = list(dict.fromkeys(key for row in flat for key in row))
    return headings, [[row.get(heading, "") for heading in headings] for row in flat]


def classes_of(config: PredictConfig) -> tuple[str, ...]:
    """Return the classes to choose among: those that were given, or that the model knows.

    Raises:
        UserError: where there are none.
    """
    classes = config.classes or tuple(read_info(config.model).get("classes", ()))
    if not classes:
        raise UserError(f'"{config.model}" names no classes: give them with --classes.')
    return classes


def weakest_images(logits_MK: Tensor, rows: Table) -> dict[str, Any]:
    """Return the images whose own class is least probable, by their files; {} where none are known.

    Args:
        logits_MK: of every row.
    """
    files = rows.columns.get("file")
    if files is None:
        return {}
    labels_M = torch.from_numpy(rows.labels)
    own_M = logits_MK.float().softmax(dim=-1)[torch.arange(len(rows)), labels_M]
    weakest = own_M.argsort(stable=True)[:_WEAKEST].tolist()
    answers_M = logits_MK.argmax(dim=-1)
    return {
        "weakest_images": [
            {
                "file": str(files[m]),
                "label": rows.classes[int(labels_M[m])],
                "answer": rows.classes[int(answers_M[m])],
                "probability": float(own_M[m]),
            }
            for m in weakest
        ]
    }


def decided(
    config: EvaluateConfig,
    row: str,
    dataset: Table,
    logits_MK: Tensor,
    logits_of_rows: Callable[[Table], Tensor],
) -> dict[str, Any]:
    """Return the rows of rules that were asked for, beside a row of the likeliest classes.

    Args:
        logits_of_rows: the model's answers to other rows, for biases that are fitted.
    """
    rows: dict[str, Any] = {}
    labels_M = torch.from_numpy(dataset.labels)
    rule = Decision.parse(config.decide, dataset.classes)
    if config.decide != "argmax":
        rows[f"{row}, {config.decide}"] = rule.measures(logits_MK, labels_M)
    if rule.costs_KK is not None:  # what the likeliest classes cost
        argmax_M = logits_MK.argmax(dim=1).cpu()
        rows[row] = {"cost": rule.costs_KK[labels_M, argmax_M].mean().item()}
    if config.fit_biases:
        fitting = splits_of(config).validation
        fitting_M = torch.from_numpy(fitting.labels)
        biases_K = fit_biases(logits_of_rows(fitting), fitting_M, MACRO_F1)
        biased = (logits_MK.cpu() + biases_K, labels_M)
        rows[f"{row}, biases"] = evaluate_logits(*biased, dataset.classes)
    return rows


def most_probable(logits_1K: Tensor, classes: Sequence[str], top_k: int) -> dict[str, Any]:
    """Return the classes of an image that have most probability, in order."""
    top = logits_1K.softmax(dim=-1).topk(min(top_k, len(classes)), dim=-1)
    return {
        "classes": [classes[k] for k in top.indices[0].tolist()],
        "probabilities": top.values[0].tolist(),
    }


def _show_answers(answers: Sequence[Mapping[str, Any]]) -> None:
    """Print the classes of every image and the numbers that belong to them, or its answer."""
    for answer in answers:
        if "error" in answer:
            say(f"left out: {answer['error']}")
            continue
        if "completion" in answer:
            show(answer["image"])
            if answer["answer"] is not None:
                show(f"  answer: {answer['answer']}")
            show(f"  {answer['completion']}")
            continue
        numbers = next(name for name in _NUMBERS if name in answer)
        rows = [
            [name, f"{value:.3f}"]
            for name, value in zip(answer["classes"], answer[numbers], strict=True)
        ]
        show_table(["class", _NUMBERS[numbers]], rows, title=answer["image"])
        if "answer" in answer:
            show(f"Answer: {answer['answer'] or 'none, since no class is sure enough'}")
        if "mask" in answer:
            show(f"Mask: {answer['mask']}  Overlay: {answer['overlay']}")
