"""Data and files that cannot be used: one line that names the thing, exit code 2, nothing left."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from running import (
    clip_words,
    language_words,
    metric_lines,
    refused,
    represent,
    see,
    vlm_words,
    words,
)

from making import picture, write_pictures
from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]
Row = dict[str, Any]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("beta: 0.1\nbtea: 0.2\n", 'unknown option "btea". Did you mean "beta"?'),
        ("beta: [0.1\n", "is not YAML"),
        ("- beta\n", "must hold lines of the form option: value"),
        ("beta: much\n", "much"),
        ("steps: 0\n", "--steps must be above 0"),
    ],
)
def test_config_files(
    content: str, said: str, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    assert said in refused(capsys, ["clip", "--config", file])
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


# Folders and tables of images


def _renamed(*changes: tuple[str, str]) -> Callable[[Path], None]:
    """A folder of four training images of each class, and two of test, in which some move."""

    def make(folder: Path) -> None:
        write_pictures(folder, {"train": 4, "test": 2})
        for before, after in changes:
            (folder / before).rename(folder / after)

    return make


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


def _two_names(folder: Path) -> None:
    _table(folder, ["cat", "dog"] * 9, datasets.Value("string"))


def _pictures(folder: Path) -> None:
    write_pictures(folder, {"train": 8})


SAME_PROMPT = _renamed(
    *(
        (f"{split}/{name}", f"{split}/ice{gap}cream")
        for split in ("train", "test")
        for name, gap in (("leaf", " "), ("sky", "_"))
    )
)
IMAGES: list[tuple[Callable[[Path], Any], str, str]] = [
    (Path.mkdir, "", "is empty"),
    (_one_class, "", '1 class ("apple") found'),
    (_no_class_folders, "", "holds images but no class folders"),
    (_class_named_twice, "", 'class "fruit" is named twice'),
    (SAME_PROMPT, "", 'Classes "ice cream" and "ice_cream"'),
    (_renamed(("test/leaf", "test/leaves")), "", 'class "leaves" is not in'),
    (_label_outside, "", "label 7, outside its 2 classes"),
    (_column_called_classes, "", 'has a column "classes"'),
    (_two_names, "--label-column lable", 'Did you mean "label"?'),
    (_pictures, "--batch-size 64", "--batch-size 64 is larger than"),
    (_pictures, "--minibatches 3", "take a multiple of 3"),
    (_pictures, "--train-slice 90:", "holds no rows"),
    (_pictures, "--train-slice all", '"all" is no slice'),
    (_pictures, "--group-size 1", "A group of one output has no baseline: take a larger group"),
    (_pictures, "--templates photo", 'Template "photo" must hold {} exactly once'),
]


@pytest.mark.parametrize(("make", "options", "said"), IMAGES)
def test_images(
    make: Callable[[Path], Any],
    options: str,
    said: str,
    start: Path,
    tmp_path: Path,
    no_model: None,
    capsys: Capture,
) -> None:
    make(tmp_path / "data")
    given = clip_words(start, tmp_path / "data", tmp_path / "run", *options.split())
    assert said in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_named(
    start: Path, vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    file = data / "test" / "sky" / "003.png"
    file.write_bytes(file.read_bytes()[:100])
    line = refused(capsys, clip_words(start, data, tmp_path / "run"))
    assert str(file) in line
    assert "skip" in line
    given = words("representation", vit, data, tmp_path / "run")
    assert str(file) in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()
    assert str(file) in refused(capsys, ["evaluate", start, "--data", data])


def test_an_unreadable_image_in_the_middle_of_a_run_loses_nothing(
    start: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    file = data / "train" / "sky" / "003.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    given = clip_words(start, data, tmp_path / "run", "--augment", "flip", "--epochs", 2)
    given = [*given[: given.index("--steps")], *given[given.index("--steps") + 2 :]]
    assert str(file) in refused(capsys, given, notes=True)
    file.write_bytes(whole)
    main([*given, "--resume"])
    assert (tmp_path / "run" / "summary.json").exists()
    given[given.index("--output") + 1] = str(tmp_path / "whole")
    main(given)
    runs = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "whole")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


# Masks


def _mask(value: int, *shape: int, split: str = "train") -> Callable[[Path], None]:
    """Write another mask of the fourth image."""
    pixels = np.full(shape or (16, 16), value, dtype=np.uint8)
    return lambda data: Image.fromarray(pixels).save(data / split / "masks" / "003.png")


def _wider_image(data: Path) -> None:
    for kind, shape in (("images", (20, 16, 3)), ("masks", (20, 16))):
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(data / "train" / kind / "003.png")


MASKS: list[tuple[Callable[[Path], Any], str, str]] = [
    (_mask(0, 8, 8), "", "its mask is 8 × 8 pixels but its image is 16"),
    (_mask(7), "", "003.png): its mask has class id 7, outside the 3 classes"),
    (_mask(7, split="test"), "", "its mask has class id 7"),
    (_mask(255), "", "its mask labels no pixel"),
    (_mask(0, 16, 16, 3), "", "whose colours are no class ids"),
    (lambda data: (data / "classes.txt").unlink(), "", "classes.txt"),
    (lambda data: (data / "classes.txt").write_text("apple\n"), "", "at least two"),
    (lambda data: (data / "train/masks/003.png").unlink(), "", "has no file of the same name in"),
    (_wider_image, "", "--image-size"),
    (_wider_image, "--train full", "--image-size"),
    (lambda data: (data / "train/images/003.png").write_text("no image"), "", "003.png"),
    (lambda data: None, "--image-size 4 4", "is a single patch"),
]


@pytest.mark.parametrize(("spoil", "options", "said"), MASKS)
def test_masks(
    spoil: Callable[[Path], Any],
    options: str,
    said: str,
    vit: Path,
    masks: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    data = shutil.copytree(masks, tmp_path / "data")
    spoil(data)
    given = words("segmentation", vit, data, tmp_path / "run", *options.split())
    assert said in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()


# Text, prompts and pairs

SENTENCES = "One.\n\nTwo.\n\nThree."
EQUAL = (
    '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    '{"prompt": "b", "chosen": "d", "rejected": "d"}\n'
)
METHODS = "".join(f'{{"prompt": "method {n}"}}\n' for n in range(9))
CHATS = "".join(f'{{"prompt": [{{"role": "user", "content": "{n}"}}]}}\n' for n in range(9))
TEXT = [
    ("sft", "text.txt", "", "is empty; name a file with text"),
    ("sft", "text.txt", SENTENCES, "but a block takes 49"),
    ("sft", "text.txt", "All in one.", "1 documents are too few"),
    ("grpo", "text.txt", SENTENCES, "for prompts of 8"),
    ("reward", "pairs.jsonl", EQUAL, "row 1 has the same text as chosen and as rejected"),
    ("reward", "pairs.jsonl", '{"prompt": "a", "chosen": "b"}\n', '"rejected"'),
    ("preferences", "prompts.jsonl", METHODS, "needs --data with text"),
    ("all", "prompts.jsonl", '{"prompt": "a"}\n', "--method all starts from text"),
    ("grpo", "prompts.jsonl", "hello\n", "line 1 is not JSON"),
    ("grpo", "prompts.jsonl", '{"prompt": 3}\n', "prompt"),
    ("grpo", "prompts.jsonl", CHATS, "chat template"),
]


@pytest.mark.parametrize(("stage", "name", "content", "said"), TEXT)
def test_text(
    stage: str,
    name: str,
    content: str,
    said: str,
    stages: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    (tmp_path / name).write_text(content)
    init = None if stage in ("sft", "all") else stages / "sft"
    given = language_words(stage, init, tmp_path / name, tmp_path / "run")
    if stage == "grpo" and name == "prompts.jsonl":  # without text there is no judge
        given[given.index("gold")] = f"model:{stages / 'reward'}"
    assert said in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()


# Questions about images


def _changed(counts: Path, folder: Path, **changes: Any) -> Path:
    """Copy a table with other values in every row; None leaves out a column."""
    shutil.copytree(counts.parent, folder)
    rows = [json.loads(line) | changes for line in counts.read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    file = folder / counts.name
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


QUESTIONS: list[tuple[str, str, Row, str]] = [
    ("sft", "", {"thinking": None}, "has no reasoning to imitate"),
    ("sft", "", {"ground_truth": None}, "has no answer"),
    ("sft", "", {"question": None}, "question"),
    ("grpo", "", {"image_path": "gone.png"}, "gone.png"),
    (
        "grpo",
        "--reward ordinal:4",
        {"ground_truth": "many"},
        'needs whole numbers as true answers, not "many"',
    ),
    ("grpo", "", {"question": "<|image_pad|>?"}, "<|image_pad|>"),
]


@pytest.mark.parametrize(("stage", "options", "changes", "said"), QUESTIONS)
def test_questions(
    stage: str,
    options: str,
    changes: Row,
    said: str,
    capsys: Capture,
    seer: Path,
    counts: Path,
    tmp_path: Path,
) -> None:
    file = _changed(counts, tmp_path / "data", **changes)
    given = vlm_words(stage, seer, file, tmp_path / "run", *options.split())
    assert said in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_of_a_question_is_named_or_left_out(
    capsys: Capture, seer: Path, counts: Path, tmp_path: Path
) -> None:
    file = _changed(counts, tmp_path / "data")
    (file.parent / "3.png").write_bytes(b"no picture")
    given = vlm_words("sft", seer, file, tmp_path / "run", "--steps", 12)
    assert "3.png" in refused(capsys, given, notes=True)
    see("sft", seer, file, tmp_path / "other", "--skip-bad-images")
    notes = capsys.readouterr().err
    assert "left out 1 row(s) that cannot be used:" in notes
    assert "3.png" in notes


# What is done with a model


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("evaluate SEER", "name questions about images, such as shapes"),
        ("evaluate SEER --data COUNTS --label-column x", "--label-column does not go with"),
        ("evaluate SEER --data COUNTS --templates x", "It is for a CLIP or SigLIP model"),
        ("evaluate SEER --data COUNTS --split all", "name train, validation or test"),
        ("evaluate SEER --data COUNTS --task couting", 'Did you mean "counting"?'),
        ("evaluate SEER --data COUNTS --styles dirct", 'Did you mean "direct"?'),
        ("evaluate SEER --data WORDS --task counting", "which is no count"),
        ("evaluate SEER --data COUNTS --start CLIP", "is a CLIP or SigLIP model: give a vision-"),
        ("predict SEER PICTURE", "ask it something, with --ask"),
        ("predict SEER PICTURE --ask x --classes a", "--classes does not go with"),
        ("predict SEER PICTURE --ask x --top-k 2", "--top-k does not go with"),
        ("predict SEER PICTURE --ask x --max-new-tokens 110", "lower --max-pixels or --max-new-"),
        ("predict SEER nowhere.png --ask x", 'Image "nowhere.png" does not exist'),
        ("predict CLIP PICTURE --ask x", "--ask does not go with"),
        ("predict CLIP photo.jpg", 'Image "photo.jpg" does not exist'),
        ("predict CLIP NO-IMAGE", "counts.jsonl"),
        ("predict CLIP PICTURE --classes cat cat", 'Classes "cat" and "cat"'),
        ("evaluate CLIP --data digits --task counting", "--task does not go with"),
        ("evaluate CLIP --data digts", 'Did you mean "digits"?'),
        ("evaluate CLIP --data PICTURES --split tset", 'Did you mean "test"?'),
        ("evaluate CLIP --data PICTURES --start ./none --alpha 0.5", "does not exist"),
        (
            "evaluate CLIP --data PICTURES --json /nowhere/numbers.json",
            "/nowhere/numbers.json cannot be written",
        ),
        ("generate SEER hello", "qwen2_5_vl model, which does not write text"),
        ("language --method sft --model SEER", "qwen2_5_vl model, which does not write text"),
        ("generate WRITER " + "word" * 25 + " --max-new-tokens 8", "but 1 to 40 are allowed"),
    ],
)
def test_evaluate_predict_and_generate(
    given: str,
    said: str,
    capsys: Capture,
    seer: Path,
    start: Path,
    stages: Path,
    counts: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    places: dict[str, Path] = {
        "SEER": seer,
        "CLIP": start,
        "WRITER": stages / "sft",
        "COUNTS": counts,
        "PICTURES": pictures,
        "PICTURE": counts.parent / "0.png",
        "NO-IMAGE": counts,
    }
    if "WORDS" in given:
        places["WORDS"] = _changed(counts, tmp_path / "data", ground_truth="many")
    line = refused(capsys, [places.get(word, word) for word in given.split()], notes=True)
    assert said in line
    assert "predict" not in given or "skip" not in line  # an option that predict does not have


# The cache of features


def test_a_cache_that_cannot_be_written(
    vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "cache"
    file.write_text("mine")
    for cache in (file, file / "below"):
        given = words("representation", vit, pictures, tmp_path / "run", "--cache", str(cache))
        assert f"Features cannot be kept in {cache}" in refused(capsys, given, notes=True)
    assert file.read_text() == "mine"
    assert not (tmp_path / "run").exists()


def test_a_damaged_cache(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    cache = ["--cache", str(tmp_path / "cache"), "--steps", "1"]
    first = represent(vit, pictures, tmp_path / "1", *cache)
    file = tmp_path / "cache" / "features.sqlite"
    file.write_bytes(b"0" * 100 + file.read_bytes()[100:])
    given = words("representation", vit, pictures, tmp_path / "2", *cache)
    line = refused(capsys, given, notes=True)
    assert f"The cached features {file} cannot be used" in line
    assert "delete the file" in line
    assert not (tmp_path / "2").exists()
    file.unlink()
    again = represent(vit, pictures, tmp_path / "2", *cache)
    assert metric_lines(again) == metric_lines(first)
    assert not list((tmp_path / "cache").glob(".*"))
