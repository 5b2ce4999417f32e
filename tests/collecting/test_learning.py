"""The rounds of `visgrpo feedback collect --learn`: `visgrpo clip` on a few judgements."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visgrpo.arguments import parse
from visgrpo.collecting.design import Answer, Ask
from visgrpo.collecting.learning import (
    VISGRPO,
    ClipProcess,
    Training,
    clip_config,
    clip_words,
    photos_for_training,
)
from visgrpo.collecting.options import CollectConfig
from visgrpo.collecting.store import Store
from visgrpo.collecting.tables import Drawn
from visgrpo.data.read import read_split
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.models.load import load_clip
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.task import train

CLASSES = ("cat", "dog", "apple")
TEMPLATES = ("a photo of a {}.",)


def config_of(model: Path | str, data: Path | str, **options: Any) -> CollectConfig:
    config = CollectConfig(model=str(model), data=str(data), device="cpu", **options)
    config.check()
    return config


def settings_file(folder: Path, text: str) -> str:
    (folder / "settings.yaml").write_text(text)
    return str(folder / "settings.yaml")


# ---- the command line ---------------------------------------------------------------------------


def test_it_is_one_of_visgrpo_clip(tmp_path: Path) -> None:
    config = config_of(
        "start", "photos", store=str(tmp_path / "f.db"), ask="rank", seed=3, learn=5,
        id_column="path", split="train[-20:]",
    )  # fmt: skip
    words = clip_words(config, ("a photo of a {}.", "{}"), images=40)
    learned = parse(ClipConfig, "clip", [*words, "--output", "out"])
    learned.check()
    assert (learned.model, learned.data, learned.output) == ("start", "photos", "out")
    assert learned.feedback == f"sqlite:///{tmp_path}/f.db?table=preferences"
    assert (learned.reward, learned.lora, learned.report) == (("preferences",), True, False)
    assert learned.templates == ("a photo of a {}.", "{}")
    assert (learned.seed, learned.id_column, learned.train_slice) == (3, "path", "-20:")
    assert (learned.estimator, learned.batch_size, learned.keep) == ("exact", 16, "last")


def test_positions_are_random_so_nothing_is_estimated_of_them() -> None:
    learned = clip_config(config_of("start", "photos", ask="click", learn=5))
    assert (learned.reward, learned.position_bias) == (("clicks",), "none")


def test_batches_follow_what_there_is() -> None:
    config = config_of("start", "photos", learn=5)
    for images, expected in ((0, 1), (1, 1), (7, 7), (16, 16), (500, 16)):
        learned = parse(ClipConfig, "clip", clip_words(config, TEMPLATES, images))
        assert learned.batch_size == expected


def test_the_file_s_options_come_first(tmp_path: Path) -> None:
    text = "batch-size: 4\nlora: false\nkeep: best\nepochs: 3\nreward: [clicks, hard]\n"
    config = config_of(
        "start", "photos", learn=5, learn_config=settings_file(tmp_path, text), seed=3
    )
    learned = parse(ClipConfig, "clip", clip_words(config, TEMPLATES, 16))
    assert (learned.batch_size, learned.lora, learned.keep) == (4, False, "best")
    assert (learned.epochs, learned.reward) == (3.0, ("clicks", "hard"))
    assert (learned.estimator, learned.seed) == ("exact", 3)  # not in the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", 'settings.yaml: unknown option "epoch". Did you mean "epochs"'),
        ("model: other", 'settings.yaml: leave out "model", which follows from what is collected'),
        ("train-slice: ':5'", 'leave out "train_slice"'),
        ("{", "settings.yaml is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of("start", "photos", learn=5, learn_config=settings_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: many", '--learn-config .*settings.yaml: --epochs takes a number, not "many"'),
        ("raters: dawid-skene", "--learn-config: --raters weighs votes"),
    ],
)
def test_what_training_would_refuse_is_refused_at_once(
    tmp_path: Path, text: str, message: str
) -> None:
    file = settings_file(tmp_path, text)
    with pytest.raises(UserError, match=message):
        clip_config(config_of("start", "photos", learn=5, learn_config=file))


@pytest.mark.parametrize(("judged", "left"), [(10, 7), (2, 0), (20, 14), (100, 72)])
def test_photos_that_are_left_to_train_on(judged: int, left: int) -> None:
    # A fifth for the test, then a tenth for validation, one at least: 10 - 2 - 1, 100 - 20 - 8.
    assert photos_for_training(judged, 0.1) == left


# ---- whole rounds -------------------------------------------------------------------------------


def judge(store: Store, count: int, answers: dict[str, str], ask: Ask = "click") -> None:
    """Judge so many images, each by its own answer."""

    def draw(image: str, number: int) -> Drawn:
        return Drawn(CLASSES, (0.5, 0.25, 0.25), "cat", "start")

    for _ in range(count):
        offer = store.next_offer("Ann", ask, draw)
        assert offer is not None
        answer: Answer = [answers[offer.image]]
        store.judge(offer.key, "Ann", answer)


def changed(start: Path, run: Path) -> bool:
    before, after = load_clip(str(start)).model, load_clip(str(run / "model")).model
    return any(
        not np.array_equal(old.detach().numpy(), new.detach().numpy())
        for old, new in zip(before.parameters(), after.parameters(), strict=True)
    )


def test_ten_judged_photos_in_a_process_of_its_own(
    tmp_path: Path, tiny_clip_folder: Path, tiny_dataset: Table
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    answers = {}
    for row, image in enumerate(tiny_dataset.images):
        image.save(folder / f"{row:02}.png")
        answers[f"{row:02}.png"] = CLASSES[tiny_dataset.labels[row]]
    (folder / "broken.png").write_bytes(b"\x89PNG")
    config = config_of(
        tiny_clip_folder, folder, store=str(tmp_path / "f.db"), learn=10, classes=CLASSES
    )
    with Store(tmp_path / "f.db", list(answers)) as store:
        judge(store, 10, answers)
        judged = partial(store.judged_images, "click")
        training = Training(config, clip_config(config), TEMPLATES, judged)
        assert training.words()[:4] == [*VISGRPO, "clip"]
        ClipProcess(training.words)(tmp_path / "0001")
    assert changed(tiny_clip_folder, tmp_path / "0001")


@pytest.mark.parametrize(
    ("split", "judged", "ask"), [("train", 20, "click"), ("train[:60]", 12, "rank")]
)
def test_a_few_judged_rows_of_three_hundred(
    split: str,
    judged: int,
    ask: Ask,
    tmp_path: Path,
    tiny_clip_folder: Path,
    tiny_dataset: Table,
) -> None:
    data = write_rows(tmp_path / "data.parquet", tiny_dataset, 300)
    rows = read_split(data, split)
    names = [str(name) for name in rows.columns["image_id"]]
    answers = {name: CLASSES[label] for name, label in zip(names, rows.labels, strict=True)}
    settings = settings_file(tmp_path, "epochs: 1")
    config = config_of(
        tiny_clip_folder, data, store=str(tmp_path / "f.db"), ask=ask, split=split,
        learn=judged, learn_config=settings,
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(len(names))
    with Store(tmp_path / "f.db", [names[row] for row in order]) as store:
        judge(store, judged, answers, ask)
        images = partial(store.judged_images, ask)
        words = Training(config, clip_config(config), TEMPLATES, images).words()
    learned = parse(ClipConfig, "clip", [*words[4:], "--output", str(tmp_path / "run")])
    summary = train(learned)
    # Those that nobody judged are left out, and some that were are for validation.
    assert 5 <= summary["data"]["train"] < judged
    assert learned.batch_size == min(16, summary["data"]["train"])


def write_rows(path: Path, dataset: Table, rows: int) -> str:
    """Write the pictures of a data set, again and again, under numbers of their own."""
    files = []
    for image in dataset.images:
        buffer = io.BytesIO()
        image.save(buffer, "png")
        files.append({"bytes": buffer.getvalue(), "path": None})
    which = [row % len(files) for row in range(rows)]
    table = {
        "image": [files[row] for row in which],
        "label": [CLASSES[dataset.labels[row]] for row in which],
        "image_id": [1000 + row for row in range(rows)],
    }
    pq.write_table(pa.table(table), path)
    return str(path)
