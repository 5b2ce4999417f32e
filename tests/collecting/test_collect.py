"""`visgrpo feedback collect`: its options, its images, its model, and learning beside it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from visgrpo.collecting import serve
from visgrpo.collecting.options import CollectConfig
from visgrpo.collecting.serve import AnsweringModel, collect
from visgrpo.errors import UserError
from visgrpo.locks import FolderLock
from visgrpo.models.backbone import Backbone, RepresentationClassifier
from visgrpo.models.save import save
from visgrpo.models.small import SmallBackbone, build_small_backbone
from visgrpo.tasks.use import predict
from visgrpo.tasks.use_options import PredictConfig
from visgrpo.training.processes import Processes

CLASSES = ("cat", "dog", "apple")


def config_of(model: Path | str, data: Path | str, **options: Any) -> CollectConfig:
    return CollectConfig(model=str(model), data=str(data), device="cpu", **options)


def model_of(model: Path | str, data: Path | str, **options: Any) -> AnsweringModel:
    return AnsweringModel(config_of(model, data, **options), Processes("cpu"))
    return AnsweringModel(config_of(model, data, **options), Processes("cpu"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one of them in a folder below, and one that is damaged."""
    folder = tmp_path / "photos"
    (folder / "2024").mkdir(parents=True)
    for row, name in enumerate(("b.png", "a.png", "2024/c.png")):
        pixels = np.random.default_rng(row).integers(0, 255, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "Name the model"),
        ({"data": ""}, "Name the images"),
        ({"store": ""}, "Name the file for judgements"),
        ({"exploration": 0.0}, "--exploration 0.0 must lie in"),
        ({"group_size": 10}, "--group-size 10 is more than 9, the keys 1 to 9"),
        ({"group_size": 0}, "--group-size must be above 0"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"learn": 0}, "--learn must be above 0"),
        ({"learn_config": "c.yaml"}, "--learn-config is for the training of --learn"),
        ({"learn": 5, "learn_config": "c.yaml"}, "--learn-config c.yaml: there is no such file"),
        ({"learn": 5, "split": "test"}, "trains on the training rows: .* not --split test"),
        ({"learn": 5, "split": "all[:9]"}, "trains on the training rows"),
        ({"port": 65536}, "--port 65536 must lie between"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 lets other machines in: give a --token"),
        ({"host": "example.org"}, "--host example.org lets other machines in"),
        ({"token": "short"}, "--token takes 8 or more letters"),
        ({"token": "with space in it"}, "--token takes 8 or more letters"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CollectConfig(**{"model": "m", "data": "d", **options}).check()


def test_options_that_can(tmp_path: Path) -> None:
    CollectConfig(model="m", data="d", host="0.0.0.0", token="a-long~token_1").check()
    CollectConfig(model="m", data="d", host="::1", group_size=9, learn=10).check()
    CollectConfig(model="m", data="d", learn=10, split="train[:20]").check()


def test_help_needs_no_torch_and_no_server() -> None:
    words = "import sys, visgrpo.collecting.options as c; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    heavy = {"torch", "fastapi", "starlette", "uvicorn", "numpy", "PIL"}
    assert heavy.isdisjoint(said.stdout.split())


# ---- images and answers -------------------------------------------------------------------------


def test_a_folder_of_photos(photos: Path, tiny_clip_folder: Path) -> None:
    model = model_of(tiny_clip_folder, photos, classes=CLASSES)
    assert model.names == ["2024/c.png", "a.png", "b.png"]
    assert len(model.dataset.skipped) == 1
    assert "broken.png" in model.dataset.skipped[0]
    answers = model.answers(str(tiny_clip_folder))
    assert answers.model == str(tiny_clip_folder)
    # As visgrpo predict says, which takes image by image.
    files = tuple(str(photos / name) for name in model.names)
    said = predict(
        PredictConfig(
            model=str(tiny_clip_folder),
            images=files,
            classes=CLASSES,
            device="cpu",
            top_k=3,
            json="-",
        )
    )
    for row, of_image in enumerate(said):
        known = dict(zip(of_image["classes"], of_image["probabilities"], strict=True))
        np.testing.assert_allclose(
            answers.probability_MK[row], [known[name] for name in CLASSES], atol=1e-6
        )


def test_class_folders_are_named_as_the_data_names_them(
    tmp_path: Path, tiny_clip_folder: Path
) -> None:
    for name in CLASSES:
        for row in range(6):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (row, 0, 0)).save(tmp_path / "train" / name / f"{row}.png")
    model = model_of(tiny_clip_folder, tmp_path)
    assert set(model.classes) == set(CLASSES)  # the data's: the model names none
    assert "train/cat/0.png" in model.names


def test_a_backbone_with_a_head_answers_too(photos: Path, small_head: Path) -> None:
    model = model_of(small_head, photos)
    assert model.classes == CLASSES
    np.testing.assert_allclose(model.answers(str(small_head)).probability_MK.sum(axis=1), 1.0)
    with pytest.raises(UserError, match="--classes is for CLIP"):
        model_of(small_head, photos, classes=CLASSES)
    with pytest.raises(UserError, match="--learn is for CLIP"):
        model_of(small_head, photos, learn=5)


@pytest.fixture
def small_head(tmp_path: Path) -> Path:
    """A random backbone with a classification head, saved as its own command does."""
    sizes = SmallBackbone("dinov2", image_size=16, patch_size=8, width=16, layers=1, heads=2)
    parts = build_small_backbone(sizes, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RepresentationClassifier(Backbone(parts.model), CLASSES, hidden=0)
    save(model, parts, tmp_path / "head")
    return tmp_path / "head"


def test_models_that_offer_no_labels(tmp_path: Path, photos: Path, tiny_clip_folder: Path) -> None:
    with pytest.raises(UserError, match="names no classes, and photos have none: give them with"):
        model_of(tiny_clip_folder, photos)
    with pytest.raises(
        UserError, match=r"--split is of data that is stored in splits: .*photos is"
    ):
        model_of(tiny_clip_folder, photos, split="all")
    language = tmp_path / "language"
    language.mkdir()
    (language / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    (language / "visgrpo.json").write_text(json.dumps({"task": "language"}))
    with pytest.raises(UserError, match="is a language model; labels are offered by a CLIP"):
        model_of(language, photos)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"price": [1, 2, 3, 4, 5, 6]}, "no column names the images"),
        ({"image_id": [7, 8, 7, 9, 10, 11]}, "row 0 shares its name with another row"),
        ({"image_id": [None, 8, 7, 9, 10, 11]}, "row 0 shares its name with another row, or has"),
    ],
)
def test_images_that_a_log_could_not_tell_apart(
    tmp_path: Path, tiny_clip_folder: Path, columns: dict[str, list[Any]], message: str
) -> None:
    data = write_table(tmp_path / "train.parquet", columns)
    with pytest.raises(UserError, match=message):
        model_of(tiny_clip_folder, data, split="all")


def test_a_second_column_helps_where_the_first_is_not_unique(
    tmp_path: Path, tiny_clip_folder: Path
) -> None:
    columns: dict[str, list[Any]] = {
        "image_id": [7, 8, 7, 9, 10, 11],
        "path": [f"{row}.png" for row in range(6)],
    }
    data = write_table(tmp_path / "train.parquet", columns)
    model = model_of(tiny_clip_folder, data, split="all")
    assert model.names == ["0.png", "8", "2.png", "9", "10", "11"]


def test_learning_knows_the_data_s_classes_alone(tmp_path: Path, tiny_clip_folder: Path) -> None:
    data = write_table(tmp_path / "train.parquet", {"path": [f"{row}.png" for row in range(6)]})
    foreign: dict[str, Any] = {"classes": ("cat", "cow"), "learn": 5}
    with pytest.raises(UserError, match=r'--learn trains on the classes of .*which has no "cow"'):
        model_of(tiny_clip_folder, data, **foreign)
    some = model_of(tiny_clip_folder, data, classes=("cat", "dog"), learn=5)
    assert some.classes == ("cat", "dog")


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    images = []
    for row in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (row, 0, 0)).save(buffer, "png")
        images.append({"bytes": buffer.getvalue(), "path": None})
    labels = ["cat", "dog", "apple"] * 2
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)
    return path


# ---- the whole command --------------------------------------------------------------------------


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored, as it would be under nohup."""
    plain = signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(request.param, plain)
    yield request.param
    signal.signal(request.param, before)


def test_the_page_is_served_until_ctrl_c(
    number: signal.Signals,
    tmp_path: Path,
    photos: Path,
    tiny_clip_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages: list[str] = []

    def visit(address: str) -> None:
        try:
            with urllib.request.urlopen(address, timeout=60) as page:
                pages.append(page.read().decode())
        finally:  # or the page would be served for ever
            os.kill(os.getpid(), number)

    def browse(address: str) -> None:
        Thread(target=visit, args=(address,)).start()

    monkeypatch.setattr(webbrowser, "open", browse)
    store = tmp_path / "feedback.db"
    collect(
        config_of(
            tiny_clip_folder,
            photos,
            store=str(store),
            classes=CLASSES,
            port=0,
            open=True,
            token="correct-horse",
            learn=5,
        )
    )
    assert "<title>visgrpo: judge</title>" in pages[0]
    said = capsys.readouterr()
    assert re.match(r"Judge at http://127\.0\.0\.1:\d+/\?token=correct-horse  \(Ctrl-C", said.out)
    assert said.out.endswith(f"0 judgements on 0 of 3 images are in {store}.\n")
    assert "broken.png cannot be read" in said.err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_two_that_learn_from_one_store(
    tmp_path: Path, photos: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"store": str(tmp_path / "f.db"), "classes": CLASSES, "port": 0}
    config = config_of(tiny_clip_folder, photos, learn=5, **options)
    with (
        FolderLock(tmp_path / "f.db-learned"),
        pytest.raises(UserError, match=rf"learned is in use by process {os.getpid()}: leave --le"),
    ):
        collect(config)
    monkeypatch.setattr(serve, "_serve", lambda *_: None)
    collect(config)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["f.db", "photos"]


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is in use"):
            collect(config_of("no/such/model", "nowhere", port=port))
