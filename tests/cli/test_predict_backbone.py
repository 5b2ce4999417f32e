"""`visgrpo predict` with a backbone and a head: classes of images, and masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import VIT, refused

from making import CLASSES, MASK_CLASSES, masked_picture, picture
from visgrpo.cli import main
from visgrpo.measures.masks import class_colours
from visgrpo.models.backbone import Backbone, RepresentationClassifier, Segmenter
from visgrpo.models.save import save
from visgrpo.models.small import build_small_backbone

Capture = pytest.CaptureFixture[str]


def save_classifier(folder: Path) -> tuple[Path, RepresentationClassifier]:
    """A random backbone and head; "both" is not the pool that a backbone without a head has."""
    parts = build_small_backbone(VIT, seed=0)
    torch.manual_seed(0)
    model = RepresentationClassifier(Backbone(parts.model), CLASSES, pool="both", hidden=8).eval()
    save(model, parts, folder)
    return folder, model


def save_segmenter(
    folder: Path, classes: tuple[str, ...] = MASK_CLASSES, image_size: list[int] | None = None
) -> tuple[Path, Segmenter]:
    """A random backbone and head, whose answers differ from pixel to pixel."""
    parts = build_small_backbone(VIT, seed=0)
    torch.manual_seed(0)
    model = Segmenter(Backbone(parts.model), classes, hidden=8).eval()
    torch.nn.init.normal_(model.head.output.weight, std=10.0)
    save(model, parts, folder, "", {"image_size": image_size})
    return folder, model


def photos(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    """Files of noisy pictures with these widths and heights."""
    files = []
    for number, size in enumerate(sizes):
        files.append(folder / f"photo{number}.png")
        masked_picture(1, number)[0].resize(size).save(files[-1])
    return files


def predict(capsys: Capture, model: Path, images: list[Path], *options: str) -> list[dict]:
    capsys.readouterr()
    main(["predict", str(model), *map(str, images), "--json", "-", "--device", "cpu", *options])
    return json.loads(capsys.readouterr().out)


def normalised(image: Image.Image) -> torch.Tensor:
    """ImageNet's mean and deviation, by hand."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels_HWC = (np.asarray(image) / 255 - mean) / std
    return torch.from_numpy(pixels_HWC.transpose(2, 0, 1)).float()[None]


# Classes of images


def test_the_most_probable_classes(tmp_path: Path, capsys: Capture) -> None:
    folder, model = save_classifier(tmp_path / "model")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for label, file in enumerate(files):
        picture(label, 7).save(file)
    answers = predict(capsys, folder, files, "--top-k", "2")
    for file, answer in zip(files, answers, strict=True):
        with torch.no_grad():
            logits_K = model(normalised(Image.open(file)))[0].numpy()
        probabilities_K = np.exp(logits_K) / np.exp(logits_K).sum()
        order = np.argsort(-probabilities_K)[:2]
        assert answer["image"] == str(file)
        assert answer["classes"] == [CLASSES[k] for k in order]
        assert answer["probabilities"] == pytest.approx(probabilities_K[order], abs=1e-5)


def test_the_table_of_classes(tmp_path: Path, capsys: Capture) -> None:
    folder, _ = save_classifier(tmp_path / "model")
    file = tmp_path / "a.png"
    picture(0, 7).resize((40, 24)).save(file)
    main(["predict", str(folder), str(file)])
    printed = capsys.readouterr().out
    assert "probability" in printed
    assert all(name in printed for name in CLASSES)


# Masks


def answered(model: Segmenter, pixels_1CHW: torch.Tensor) -> np.ndarray:
    """Class ids (H, W): torch's own upsampling, at a size that patches divide."""
    with torch.no_grad():
        logits_1KHW = torch.nn.functional.interpolate(
            model(pixels_1CHW).permute(0, 3, 1, 2), size=pixels_1CHW.shape[-2:], mode="bilinear"
        )
    return logits_1KHW[0].argmax(dim=0).numpy()


def test_masks_overlays_and_shares(tmp_path: Path, capsys: Capture) -> None:
    folder, model = save_segmenter(tmp_path / "model")
    files = photos(tmp_path, (16, 16), (24, 12))
    answers = predict(capsys, folder, files, "--output", str(tmp_path / "out" / "masks"))
    for file, answer in zip(files, answers, strict=True):
        photo = Image.open(file)
        ids_HW = answered(model, normalised(photo))
        assert len(np.unique(ids_HW)) > 1
        assert answer["mask"] == str(tmp_path / "out" / "masks" / f"{file.stem}-mask.png")
        mask = Image.open(answer["mask"])
        assert (mask.mode, mask.size) == ("L", photo.size)
        assert np.array_equal(np.asarray(mask), ids_HW)
        mixed = (np.asarray(photo).astype(float) + class_colours(3)[ids_HW]) / 2
        overlay = np.asarray(Image.open(answer["overlay"])).astype(float)
        assert np.abs(overlay - mixed).max() <= 0.5
        shares = {name: float((ids_HW == k).mean()) for k, name in enumerate(MASK_CLASSES)}
        found = dict(zip(answer["classes"], answer["shares"], strict=True))
        assert found == pytest.approx({name: s for name, s in shares.items() if s > 0})
        assert answer["shares"] == sorted(answer["shares"], reverse=True)


def test_a_mask_has_the_photos_size_whatever_the_model_sees(
    tmp_path: Path, capsys: Capture
) -> None:
    folder, model = save_segmenter(tmp_path / "model", image_size=[16, 8])
    (file,) = photos(tmp_path, (24, 32))
    (answer,) = predict(capsys, folder, [file], "--output", str(tmp_path))
    seen = Image.open(file).resize((8, 16), Image.Resampling.BICUBIC)
    ids_HW = answered(model, normalised(seen)).repeat(2, axis=0).repeat(3, axis=1)
    assert np.array_equal(np.asarray(Image.open(answer["mask"])), ids_HW)


def test_many_classes_need_sixteen_bits(tmp_path: Path, capsys: Capture) -> None:
    classes = tuple(f"class {k}" for k in range(300))
    folder, model = save_segmenter(tmp_path / "model", classes)
    (file,) = photos(tmp_path, (32, 32))
    (answer,) = predict(capsys, folder, [file], "--output", str(tmp_path), "--top-k", "300")
    ids_HW = answered(model, normalised(Image.open(file)))
    assert ids_HW.max() > 255
    mask = Image.open(answer["mask"])
    assert mask.mode == "I;16"
    assert np.array_equal(np.asarray(mask), ids_HW)
    assert sum(answer["shares"]) == pytest.approx(1)


def test_pictures_go_to_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder, _ = save_segmenter(tmp_path / "model")
    (file,) = photos(tmp_path, (16, 16))
    monkeypatch.chdir(tmp_path)
    words = ["predict", str(folder), str(file), "--top-k", "1"]
    main(words)
    printed = capsys.readouterr().out
    assert "share of pixels" in printed
    assert "Mask: masks/photo0-mask.png  Overlay: masks/photo0-overlay.png" in printed
    left = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    assert left.keys() == {"photo0-mask.png", "photo0-overlay.png"}
    line = refused(capsys, words)
    assert "masks/photo0-mask.png is there already: remove it, or give another --output" in line
    assert left == {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}


# Mistakes


REFUSED = {
    "classes, head": ("classifier", "--classes a b", "a head answers the classes that it was"),
    "templates, head": ("classifier", "--templates a_{}", "it has no text tower"),
    "output, head": ("classifier", "--output o", "It is for a backbone with a segmentation head"),
    "classes, masks": ("segmenter", "--classes a b", "--classes does not go with"),
    "templates, masks": ("segmenter", "--templates a_{}", "--templates does not go with"),
    "no head": ("backbone", "", "train one with visgrpo representation or visgrpo segmentation"),
    "output, clip": ("clip", "--output o", "--output does not go with"),
    "an output that is a file": ("segmenter", "--output photo0.png", "cannot be written"),
    "no image": ("segmenter", "nothing.png", 'Image "nothing.png" does not exist'),
    "one name twice": ("segmenter", "other/photo0.png", 'Two images are called "photo0"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_predicted(
    name: str,
    vit: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    kind, options, message = REFUSED[name]
    folder = {"backbone": vit, "clip": start}.get(kind, tmp_path / "model")
    if kind == "classifier":
        save_classifier(folder)
    elif kind == "segmenter":
        save_segmenter(folder)
    (tmp_path / "other").mkdir()
    photos(tmp_path / "other", (16, 16))
    photos(tmp_path, (16, 16))
    monkeypatch.chdir(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert message in refused(capsys, ["predict", folder, "photo0.png", *options.split()])
    assert {path.name for path in tmp_path.iterdir()} == files
