"""Mistakes: one line that names the thing and the mend, exit code 2, and nothing left behind."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from running import clip_words, refused

from making import picture, write_pictures
from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]


# What is wrong with the words alone


WORDS = {
    "unknown command": ("clp --data digits", 'Unknown command "clp". Did you mean "clip"?'),
    "half a command": ("pretrain --data digits", 'Say what to pre-train: "visgrpo pretrain clip"'),
    "unknown option": ("clip --bta 0.1", "nknown option --bta. Did you mean --beta?"),
    "unknown option, underscore": ("clip --grup_size 4", "Did you mean --group-size?"),
    "unknown method": ("clip --method grp", "grp"),
    "no number": ("clip --steps many", "many"),
    "no value": ("clip --steps", "--steps"),
    "a word too many": ("clip digits", "digits"),
    "zero steps": ("clip --steps 0", "--steps must be above 0, not 0"),
    "zero batch": ("clip --batch-size 0", "--batch-size must be above 0"),
    "not a number": ("clip --beta nan", "--beta"),
    "infinite rate": ("clip --learning-rate inf", "--learning-rate"),
    "negative beta": ("clip --beta -1", "--beta must not be negative"),
    "negative epsilon": ("clip --epsilon-low -0.1", "--epsilon-low"),
    "negative last blocks": ("clip --last-blocks -1", "--last-blocks"),
    "dropout of one and more": ("clip --train lora --lora-dropout 1.5", "--lora-dropout"),
    "warm-up of more than all": ("clip --warmup 2", "--warmup"),
    "negative final rate": ("clip --final-learning-rate -1", "--final-learning-rate"),
    "unknown augmentation": ("clip --augment flop", "flop"),
    "unknown tracker": ("clip --report-to tensorbord", "tensorbord"),
    "lora on projections": ("clip --train lora --train projections", "--train lora adapts towers"),
    "cached while augmenting": ("clip --augment flip --reference cached", "drop --augment"),
    "nothing to warm up": ("clip --method supervised --warm-start 3", "--warm-start is for GRPO"),
    "alpha without start": ("evaluate m --alpha 0.5", "--alpha needs --start"),
    "alpha outside": ("evaluate m --start s --alpha 2", "--alpha 2.0 must lie between 0 and 1"),
    "no images": ("predict m", "Name at least one image"),
    "no model to evaluate": ("evaluate --data digits", "visgrpo evaluate MODEL"),
    "no model to predict": ("predict", "visgrpo predict MODEL"),
    "no run to report": ("report", "visgrpo report RUN"),
    "no runs to compare": ("compare", "visgrpo compare RUN"),
    "run that is not there": ("report nothing-here", "nothing-here"),
    "runs that are not there": ("compare nothing-here nor-here", "nothing-here"),
    "model that is not there": ("evaluate ./nothing --data digits", "./nothing"),
    "gpu where there is none": ("clip --data digits --device cuda", "no GPU is visible"),
    "bf16 on a cpu": (
        "clip --data digits --device cpu --precision bf16",
        "--precision bf16 needs a GPU",
    ),
    "unknown data": ("clip --data digts", 'Unknown data set "digts". Did you mean "digits"?'),
    "data folder that is not there": ("clip --data ./nowhere", "No such file or folder: ./nowhere"),
    "no config file": ("clip --config", "--config needs a file"),
    "config file that is not there": ("clip --config no.yaml", "no.yaml cannot be read"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", WORDS)
def test_words(
    name: str,
    tmp_path: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = WORDS[name]
    assert expected in refused(capsys, words.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("beta: 0.1\nbtea: 0.2\n", 'unknown option "btea". Did you mean "beta"?'),
        ("beta: [0.1\n", "is not YAML"),
        ("- beta\n", "must hold lines of the form option: value"),
        ("beta: much\n", "much"),
        ("steps: 0\n", "--steps must be above 0"),
    ],
)
def test_config_files(
    content: str, expected: str, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    assert expected in refused(capsys, ["clip", "--config", file])
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


# What is wrong with the data


def _empty(folder: Path) -> None:
    folder.mkdir()


def _one_class(folder: Path) -> None:
    write_pictures(folder, {"train": 4})
    for name in ("leaf", "sky"):
        shutil.rmtree(folder / "train" / name)


def _no_class_folders(folder: Path) -> None:
    folder.mkdir()
    picture(0, 0).save(folder / "a.png")


def _class_named_twice(folder: Path) -> None:
    write_pictures(folder, {"train": 4})
    (folder / "classes.txt").write_text("fruit\nplant\nfruit\n")


def _same_prompt(folder: Path) -> None:
    write_pictures(folder, {"train": 4})
    (folder / "train" / "leaf").rename(folder / "train" / "ice cream")
    (folder / "train" / "sky").rename(folder / "train" / "ice_cream")


def _class_of_test_alone(folder: Path) -> None:
    write_pictures(folder, {"train": 4, "test": 2})
    (folder / "test" / "leaf").rename(folder / "test" / "leaves")


def _table(folder: Path, labels: list[Any], feature: Any, **columns: Any) -> None:
    folder.mkdir()
    images = []
    for row in range(len(labels)):
        buffer = io.BytesIO()
        picture(row % 3, row).save(buffer, "png")
        images.append({"bytes": buffer.getvalue(), "path": None})
    names = {"image": datasets.Image(), "label": feature}
    kinds = {name: datasets.Value("string") for name in columns}
    table = datasets.Dataset.from_dict(
        {"image": images, "label": labels, **columns}, features=datasets.Features(names | kinds)
    )
    table.to_parquet(folder / "train.parquet")


def _label_outside(folder: Path) -> None:
    _table(folder, [0, 1] * 9 + [7], datasets.Value("int64"))
    table = datasets.Dataset.from_parquet(str(folder / "train.parquet"))
    named = table.features.copy()
    named["label"] = datasets.ClassLabel(names=["cat", "dog"])
    table.info.features = named
    table._data = table._data.replace_schema_metadata(named.arrow_schema.metadata)
    table.to_parquet(folder / "train.parquet")


def _column_called_classes(folder: Path) -> None:
    _table(folder, ["cat", "dog"] * 9, datasets.Value("string"), classes=["x"] * 18)


DATA: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "empty": (_empty, "", "is empty"),
    "one class": (_one_class, "", '1 class ("apple") found'),
    "no class folders": (_no_class_folders, "", "holds images but no class folders"),
    "class named twice": (_class_named_twice, "", 'class "fruit" is named twice'),
    "two classes, one prompt": (_same_prompt, "", 'Classes "ice cream" and "ice_cream"'),
    "class of test alone": (_class_of_test_alone, "", 'class "leaves" is not in'),
    "label outside": (_label_outside, "", "label 7, outside its 2 classes"),
    "column called classes": (_column_called_classes, "", 'has a column "classes"'),
    "unknown column": (
        lambda folder: _table(folder, ["cat", "dog"] * 9, datasets.Value("string")),
        "--label-column lable",
        'Did you mean "label"?',
    ),
    "batch larger than data": (
        lambda folder: write_pictures(folder, {"train": 4}) and None,
        "--batch-size 64",
        "--batch-size 64 is larger than",
    ),
    "batch that cannot be split": (
        lambda folder: write_pictures(folder, {"train": 8}) and None,
        "--minibatches 3",
        "take a multiple of 3",
    ),
    "no rows": (
        lambda folder: write_pictures(folder, {"train": 4}) and None,
        "--train-slice 90:",
        "holds no rows",
    ),
    "slice that is none": (
        lambda folder: write_pictures(folder, {"train": 4}) and None,
        "--train-slice all",
        '"all" is no slice',
    ),
    "groups of one": (
        lambda folder: write_pictures(folder, {"train": 8}) and None,
        "--group-size 1",
        "A group of one output has no baseline: take a larger group size",
    ),
    "template without a place": (
        lambda folder: write_pictures(folder, {"train": 8}) and None,
        "--templates photo",
        'Template "photo" must hold {} exactly once',
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, start: Path, tmp_path: Path, no_model: None, capsys: Capture) -> None:
    make, options, expected = DATA[name]
    make(tmp_path / "data")
    capsys.readouterr()
    words = clip_words(start, tmp_path / "data", tmp_path / "run", *options.split())
    assert expected in refused(capsys, words, notes=True)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_named(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    file = data / "test" / "sky" / "003.png"
    file.write_bytes(file.read_bytes()[:100])
    line = refused(capsys, clip_words(start, data, tmp_path / "run"))
    assert str(file) in line
    assert "skip" in line
    assert not (tmp_path / "run").exists()
    line = refused(capsys, ["evaluate", start, "--data", data])
    assert str(file) in line


def test_an_unreadable_image_in_the_middle_of_a_run_loses_nothing(
    start: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    file = data / "train" / "sky" / "003.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    words = clip_words(start, data, tmp_path / "run", "--augment", "flip", "--epochs", 2)
    words = [*words[: words.index("--steps")], *words[words.index("--steps") + 2 :]]
    capsys.readouterr()
    line = refused(capsys, words, notes=True)
    assert str(file) in line
    file.write_bytes(whole)
    main([*words, "--resume"])
    assert (tmp_path / "run" / "summary.json").exists()
    words[words.index("--output") + 1] = str(tmp_path / "whole")
    main(words)
    runs = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "whole")]
    assert runs[0].read_bytes() == runs[1].read_bytes()
