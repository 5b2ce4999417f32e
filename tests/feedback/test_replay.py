"""`visgrpo feedback replay`: tiny models on logs whose sums are made again row by row."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visgrpo.arguments import parse
from visgrpo.errors import UserError
from visgrpo.feedback.options import ReplayConfig
from visgrpo.feedback.replay import LOGGED, replay
from visgrpo.models.backbone import Backbone, RepresentationClassifier
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.models.save import save
from visgrpo.models.small import SmallBackbone, build_small_backbone

LABELS = ("cat", "dog", "apple")
IMAGES = 24


@pytest.fixture(scope="module")
def models(tiny_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The tiny CLIP, which names no classes, and one that likes other labels and names them."""
    other = tmp_path_factory.mktemp("replay") / "other"
    shutil.copytree(tiny_clip_folder, other)
    parts = load_clip(str(tiny_clip_folder))
    with torch.no_grad():
        parts.model.text_projection.weight.neg_()
    parts.model.save_pretrained(other)
    (other / "visgrpo.json").write_text(json.dumps({"classes": LABELS}))
    return str(tiny_clip_folder), str(other)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Any) -> Path:
    """24 pictures in folders named by their classes."""
    folder = tmp_path_factory.mktemp("photos")
    for row, image in enumerate(tiny_dataset.images):
        place = folder / LABELS[tiny_dataset.labels[row]]
        place.mkdir(exist_ok=True)
        image.save(place / f"{row:02}.png")
    return folder


Row = tuple[str, str, float, int]


def rows_of(photos: Path, seed: int = 0) -> list[Row]:
    """Every label of every image some times, with the propensities that they were drawn with."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for file in sorted(photos.glob("*/*.png")):
        p_K = np.array([0.5, 0.25, 0.25])[rng.permutation(3)]
        for label in rng.choice(3, size=12, p=p_K):
            clicked = int(rng.random() < (0.8 if file.parent.name == LABELS[label] else 0.2))
            name = file.relative_to(photos).as_posix()
            rows.append((name, LABELS[label], float(p_K[label]), clicked))
    return rows


def write_log(file: Path, rows: list[Row]) -> str:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "propensity", "clicked"])
        writer.writerows(rows)
    return str(file)


@pytest.fixture
def log(photos: Path) -> str:
    return write_log(photos / "log.csv", rows_of(photos))


def config_of(log: str, *models: str, **options: Any) -> ReplayConfig:
    return ReplayConfig(model=models, log=log, device="cpu", **options)


@torch.no_grad()
def policy_of(model: str, photos: Path, names: set[str]) -> dict[str, dict[str, float]]:
    """What a model says of each image, by a forward pass of its own."""
    parts = load_clip(model)
    classifier = ClipClassifier(parts.model, parts.tokenizer, LABELS, ["a photo of a {}."]).eval()
    policies = {}
    for name in names:
        pixels = parts.preprocess(Image.open(photos / name).convert("RGB"))
        probabilities = classifier(pixels[None])[0].double().softmax(dim=0).tolist()
        policies[name] = dict(zip(LABELS, probabilities, strict=True))
    return policies


def test_the_sums_over_rows(models: tuple[str, str], photos: Path, log: str) -> None:
    found = replay(config_of(log, *models))
    rows = rows_of(photos)
    assert found["log"]["impressions"] == len(rows) == 12 * IMAGES
    assert (found["log"]["images"], found["log"]["unmatched_images"]) == (IMAGES, 0)
    assert found["log"]["labels"] == list(LABELS)  # as the second model names them
    assert found["logged"]["value"] == pytest.approx(np.mean([row[3] for row in rows]))
    for model in models:
        policies = policy_of(model, photos, {row[0] for row in rows})
        rho = np.array([policies[image][label] / p for image, label, p, _ in rows])
        clicks = np.array([row[3] for row in rows])
        row = found["models"][model]
        assert row["ips"]["value"] == pytest.approx((rho * clicks).mean(), rel=1e-5)
        assert row["snips"]["value"] == pytest.approx((rho * clicks).sum() / rho.sum(), rel=1e-5)
        assert row["effective_samples"] == pytest.approx(rho.sum() ** 2 / (rho**2).sum(), rel=1e-5)
        assert row["mean_ratio"]["value"] == pytest.approx(rho.mean(), rel=1e-5)
        at = row["clipped"]["at"]  # None where nothing is cut
        clipped = (np.minimum(rho, at or np.inf) * clicks).mean()
        assert row["clipped"]["value"] == pytest.approx(clipped, rel=1e-5)
        assert row["doubly_robust"]["low"] < row["ips"]["value"] < row["doubly_robust"]["high"]


def test_differences_are_with_the_log_and_with_the_first(
    models: tuple[str, str], log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replay(config_of(log, *models))
    values = {name: row["doubly_robust"]["value"] for name, row in found["models"].items()}
    first, second = found["differences"]
    assert (first["policy"], first["against"]) == (models[0], LOGGED)
    assert first["value"] == pytest.approx(values[models[0]] - found["logged"]["value"])
    assert (second["policy"], second["against"]) == (models[1], models[0])
    assert second["value"] == pytest.approx(values[models[1]] - values[models[0]])
    text = capsys.readouterr().out
    line = f"model 2 − model 1: {second['value']:+.4f} [{second['low']:.4f}, "
    assert f"model 2: {models[1]}\n" in text
    assert line in text
    assert re.search(r"model 2, Switch-DR: 0\.\d+ \[.*\], cuts (nothing|ratios above)", text)
    assert "log.csv, 288 impressions of 24 images" in text
    assert f"[{found['logged']['low']:.3f}, {found['logged']['high']:.3f}]" in text


def test_data_instead_of_files(models: tuple[str, str], photos: Path, log: str) -> None:
    by_files = replay(config_of(log, *models, classes=LABELS))
    by_data = replay(config_of(log, *models, classes=LABELS, data=str(photos), split="all"))
    for model in models:
        for estimator in ("ips", "snips"):
            expected = by_files["models"][model][estimator]
            assert by_data["models"][model][estimator] == pytest.approx(expected)
    # Those that the data names come in its own order.
    assert replay(config_of(log, models[0], data=str(photos), split="all"))["log"]["labels"] == [
        "apple", "cat", "dog",
    ]  # fmt: skip


def test_photos_instead_of_files(
    models: tuple[str, str], photos: Path, log: str, tmp_path: Path
) -> None:
    """A folder without class folders: the same images under the same names, and one more."""
    folder = tmp_path / "flat"
    shutil.copytree(photos, folder, ignore=shutil.ignore_patterns("*.csv"))
    Image.new("RGB", (16, 16)).save(folder / "nobody saw this.png")
    by_files = replay(config_of(log, *models))
    by_photos = replay(config_of(log, *models, data=str(folder)))
    assert by_photos["log"] == by_files["log"]
    for model in models:
        ours, theirs = by_photos["models"][model], by_files["models"][model]
        assert ours["doubly_robust"] == pytest.approx(theirs["doubly_robust"])
    # No model names the labels: they are the log's.
    assert replay(config_of(log, models[0], data=str(folder)))["log"]["labels"] == sorted(LABELS)


def test_labels_of_the_log_where_no_model_names_any(models: tuple[str, str], log: str) -> None:
    assert replay(config_of(log, models[0]))["log"]["labels"] == sorted(LABELS)


def test_json_is_all_that_is_printed(
    models: tuple[str, str], log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replay(config_of(log, models[0], json="-"))
    assert json.loads(capsys.readouterr().out) == found


def test_missing_files_are_listed(
    models: tuple[str, str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(str(photos / name), *rest) for name, *rest in rows_of(photos)]
    rows += [("gone/<b>.png", "cat", 0.5, 1)] * 3
    found = replay(config_of(write_log(tmp_path / "log.csv", rows), models[0]))  # type: ignore[arg-type]
    assert (found["log"]["images"], found["log"]["unmatched_images"]) == (IMAGES, 1)
    assert "3 of 291 events are about 1 image that is" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r'none of its 1 images is a file beside it, such as "gone/<b>.png"'
    ):
        replay(config_of(write_log(tmp_path / "gone.csv", rows[-1:]), models[0]))  # type: ignore[arg-type]


def test_paths_are_relative_to_the_log_and_not_to_here(
    models: tuple[str, str], photos: Path, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = replay(config_of(log, models[1]))["models"]
    for name, *_ in rows_of(photos):  # other pictures of the same names
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert replay(config_of(log, models[1]))["models"] == expected
    with sqlite3.connect(photos / "log.db") as connection:
        connection.execute("CREATE TABLE log (image, label, propensity, clicked)")
        connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows_of(photos))
    connection.close()
    address = f"sqlite:///{photos / 'log.db'}?table=log"
    assert replay(config_of(address, models[1]))["models"] == expected


def test_an_unsupported_model_beside_a_supported_one(
    models: tuple[str, str], log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {
        name: row["effective_share"]
        for name, row in replay(config_of(log, *models))["models"].items()
    }
    worse, better = sorted(shares, key=lambda name: shares[name])
    bound = (shares[worse] + shares[better]) / 2
    found = replay(config_of(log, worse, better, least_effective_share=bound))
    assert "effective sample size" in found["models"][worse]["not_supported"]
    assert "ips" not in found["models"][worse]
    assert [(each["policy"], each["against"]) for each in found["differences"]] == [
        (better, LOGGED)
    ]
    assert "model 1 is not supported: its effective sample size" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="The log cannot support any of the 2 models: its effective"
    ):
        replay(config_of(log, worse, better, least_effective_share=0.999))


def test_wrong_propensities_are_refused(
    models: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    rows = [(str(photos / name), label, 1.0, c) for name, label, _, c in rows_of(photos)]
    wrong = write_log(tmp_path / "wrong.csv", rows)
    with pytest.raises(UserError, match=r"cannot support .*the propensities are too large"):
        replay(config_of(wrong, models[0]))


def head_folder(folder: Path, classes: tuple[str, ...]) -> str:
    sizes = SmallBackbone(image_size=16, patch_size=8, width=16, layers=1, heads=2)
    parts = build_small_backbone(sizes, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RepresentationClassifier(Backbone(parts.model), classes, hidden=8)
    save(model, parts, folder)
    return str(folder)


def test_heads_answer_in_their_own_order(
    models: tuple[str, str], log: str, photos: Path, tmp_path: Path
) -> None:
    head = head_folder(tmp_path / "head", ("dog", "apple", "cat"))
    alone = replay(config_of(log, head))
    mixed = replay(config_of(log, models[1], head))
    assert mixed["log"]["labels"] == list(LABELS)
    assert mixed["models"][head]["ips"] == pytest.approx(alone["models"][head]["ips"])


def test_models_that_show_no_such_labels(models: tuple[str, str], log: str, tmp_path: Path) -> None:
    other = head_folder(tmp_path / "other", ("cat", "dog", "pear"))
    with pytest.raises(UserError, match=r'answers 3 classes.*only one of them has "apple"'):
        replay(config_of(log, models[1], other))
    plain = tmp_path / "plain"
    sizes = SmallBackbone(image_size=16, patch_size=8, width=16, layers=1, heads=2)
    parts = build_small_backbone(sizes, seed=0)
    save(parts.model, parts, plain)
    with pytest.raises(UserError, match="is a backbone without a head; labels are shown by"):
        replay(config_of(log, str(plain)))


def test_unknown_labels_and_missing_propensities(
    models: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    rows = [(str(photos / name), label, p, c) for name, label, p, c in rows_of(photos)]
    odd = [(rows[0][0], "aple", 0.5, 1), *rows]
    with pytest.raises(UserError, match=r'row 1: unknown label "aple"\. Did you mean "apple"'):
        replay(config_of(write_log(tmp_path / "odd.csv", odd), models[1]))
    bare = tmp_path / "bare.csv"
    bare.write_text("image,label,clicked\n" + f"{rows[0][0]},cat,1\n")
    with pytest.raises(UserError, match='needs the column "propensity"'):
        replay(config_of(str(bare), models[1]))


def test_bad_images(models: tuple[str, str], photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    (copy / "cat" / "00.png").write_bytes(b"no picture")
    log = write_log(copy / "log.csv", rows_of(photos))
    with pytest.raises(UserError, match="--skip-bad-images"):
        replay(config_of(log, models[1]))
    found = replay(config_of(log, models[1], skip_bad_images=True))
    assert (found["log"]["images"], found["log"]["unmatched_images"]) == (IMAGES - 1, 1)


def test_options() -> None:
    words = ["--model", "A", "--model", "B", "--log", "events.parquet", "--json", "-"]
    config = parse(ReplayConfig, "feedback replay", words)
    assert (config.model, config.log, config.json) == (("A", "B"), "events.parquet", "-")
    config.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ()}, "Name a model"),
        ({"log": ""}, "Name the log"),
        ({"model": ("A", "B", "A")}, '--model "A" is given twice'),
        ({"least_effective_share": 1.0}, r"--least-effective-share 1.0 must lie in \[0, 1\)"),
        ({"batch_size": 0}, "--batch-size must be above 0"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"id_column": "name"}, "--id-column is about --data"),
    ],
)
def test_options_that_will_not_do(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(ReplayConfig(model=("A",), log="events.csv"), **change).check()


def test_the_page(models: tuple[str, str], photos: Path, log: str, tmp_path: Path) -> None:
    """Its numbers are those of --json; ratios and clicks are counted again row by row."""
    found = replay(config_of(log, *models, output=str(tmp_path)))
    rows = rows_of(photos)
    policies = policy_of(models[1], photos, {row[0] for row in rows})
    by_pair: dict[tuple[str, str], list[float]] = {}
    for image, label, p, _ in rows:
        by_pair.setdefault((image, label), []).append(policies[image][label] / p)
    ratio_of = {pair: np.mean(ratios) for pair, ratios in by_pair.items()}
    bins = found["models"][models[1]]["ratios"]
    for each in bins:
        within = [each["low"] <= ratio_of[row[0], row[1]] < each["high"] for row in rows]
        assert each["count"] == sum(within)
    assert sum(each["count"] for each in bins) == len(rows)
    clicks = found["click_model"]
    assert sum(each["count"] for each in clicks) == len(rows)
    total = sum(each["value"] * each["count"] for each in clicks)
    assert total == pytest.approx(sum(row[3] for row in rows))
    predicted = [each["predicted"] for each in clicks]
    assert predicted == sorted(predicted)
    assert all(each["low"] <= each["value"] <= each["high"] for each in clicks)
    page = (tmp_path / "replay.html").read_text()
    assert "http://" not in page
    assert "Ratios to the propensities, model 2" in page
    assert f"{found['models'][models[0]]['doubly_robust']['value']:.3f}<small>" in page
    assert page.count("<figure") == 5
