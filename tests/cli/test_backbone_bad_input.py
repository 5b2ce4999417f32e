"""Mistakes with `visgrpo representation` and `segmentation`: one line, exit code 2, no run left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Job, metric_lines, refused, represent, segment, words

from visgrpo.training.processes import Processes

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a backbone is loaded."""

    def loaded(name: str) -> None:
        pytest.fail(f"{name} was loaded before cheap checks were done")

    monkeypatch.setattr("visgrpo.tasks.backbone.shared.load_backbone", loaded)


# Options that cannot work; for both jobs


BOTH = {
    "batch": ("--batch-size 100", "--batch-size 100 is larger than the"),
    "pieces": ("--accumulation 3", "--batch-size 8 cannot be split evenly"),
    "unknown reward": ("--reward hrad", 'Unknown reward "hrad". Did you mean "hard"?'),
    "soft reward": ("--reward soft", "the same number for every output"),
    "weights": ("--reward-weights 1 2 3", "3 reward weights for 2 rewards"),
    "refresh": ("--refresh-every epoh", '--refresh-every takes a number of steps or "epoch"'),
    "never refreshed": ("--refresh-every 0", "--refresh-every takes a number of steps"),
    "baseline of itself": ("--baseline --method supervised", "this run is the baseline itself"),
    "rate": ("--backbone-rate -1", "--backbone-rate must not be negative"),
    "hidden": ("--hidden -1", "--hidden must not be negative"),
    "method": ("--method grpo", "grpo-rm"),
    "train": ("--train image", "--train"),
    "pass": ("--inner-passes 0", "--inner-passes must be above 0"),
    "resume": ("--resume", "holds no run to resume"),
}
REPRESENTATION = {
    "probes": ("--probe none knn", "--probe none goes alone"),
    "unknown probe": ("--probe kn", "--probe"),
    "unknown shift": ("--shifts blurr", "--shifts"),
    "too large a subset": ("--class-subset 4", "A class subset of 4 cannot be: give 2 to 3"),
    "too small a subset": ("--class-subset 1", "A class subset of 1 cannot be: give 2 to 3"),
    "subset and estimator": ("--class-subset 2 --estimator exact", "goes with --estimator uniform"),
    "features and pieces": ("--feature-uniformity 1 --accumulation 2", "does not go with"),
    "features and minibatches": ("--feature-uniformity 1 --minibatches 2", "does not go with"),
    "features of one image": ("--feature-uniformity 1 --batch-size 1", "must be 2 or more"),
    "features of drawn classes": (
        "--feature-uniformity 1 --estimator sampled",
        "goes with --estimator uniform or exact",
    ),
    "kl of what changes": ("--beta 1 --augment flip", "drop --augment"),
    "unknown retention": ("--retention digts", 'Did you mean "digits"?'),
    "pool": ("--pool max", "--pool"),
    "group": ("--estimator sampled --group-size 0", "--group-size must be above 0"),
    "group of one": ("--estimator sampled --group-size 1", "A group of one output has no baseline"),
}
SEGMENTATION = {
    "background": ("--background lef", '--background "lef" is no class. Did you mean "leaf"?'),
    "negative background": ("--background-reward -1", "--background-reward must not be negative"),
    "nothing to lower": ("--background-reward 0.2 --reward uniformity", "there is no hard among"),
    "image size": ("--image-size 0 8", "--image-size takes height and width in pixels, not 0"),
    "one number": ("--image-size 8", "--image-size"),
    "label column": ("--label-column y", "name theirs with --mask-column"),
    "pictures": ("--pictures -1", "--pictures must not be negative"),
    "ignored class": ("--ignore-index 2", "--ignore-index 2 is also the id of class"),
    "class names": ("--classes-file none.txt", "none.txt"),
    "sampled": ("--estimator sampled", "--estimator"),
    "no masks": ("--data digits", "digits"),
    "decide": ("--decide-at image", "--decide-at"),
}


@pytest.mark.parametrize("name", [*BOTH, *REPRESENTATION])
def test_options_of_representation(
    name: str, vit: Path, pictures: Path, tmp_path: Path, no_backbone: None, capsys: Capture
) -> None:
    options, expected = (BOTH | REPRESENTATION)[name]
    words_ = words("representation", vit, pictures, tmp_path / "run", *options.split())
    assert expected in refused(capsys, words_)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*BOTH, *SEGMENTATION])
def test_options_of_segmentation(
    name: str, vit: Path, masks: Path, tmp_path: Path, no_backbone: None, capsys: Capture
) -> None:
    options, expected = (BOTH | SEGMENTATION)[name]
    words_ = words("segmentation", vit, masks, tmp_path / "run", *options.split())
    assert expected in refused(capsys, words_)
    assert not list(tmp_path.iterdir())


# Models


def _no_such(vit: Path, folder: Path) -> str:
    return "does not exist"


def _no_weights(vit: Path, folder: Path) -> str:
    shutil.copytree(vit, folder)
    (folder / "model.safetensors").unlink()
    return "model.safetensors"


def _damaged_weights(vit: Path, folder: Path) -> str:
    shutil.copytree(vit, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return str(folder)


def _text_model(vit: Path, folder: Path) -> str:
    from transformers import CLIPTextConfig, CLIPTextModel

    shutil.copytree(vit, folder)
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder)
    return "is a clip_text_model model; this job needs one of:"


def _no_processor(vit: Path, folder: Path) -> str:
    shutil.copytree(vit, folder)
    (folder / "preprocessor_config.json").unlink()
    return str(folder)


MODELS = {
    "no such folder": _no_such,
    "no weights": _no_weights,
    "damaged weights": _damaged_weights,
    "text model": _text_model,
    "no image processor": _no_processor,
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_no_backbones(
    name: str, vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    expected = MODELS[name](vit, tmp_path / "model")
    line = refused(capsys, words("representation", tmp_path / "model", pictures, tmp_path / "run"))
    assert expected in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("vit", "--train last-blocks --last-blocks 3", "--last-blocks 3: this dinov2 has 2 blocks"),
        ("resnet", "--train last-blocks --last-blocks 3", "this resnet has 2 blocks"),
        ("resnet", "--train lora", "--train lora: a resnet has no linear layers"),
        ("vit", "--beta 0.1", "--beta: KL to a start whose head is random"),
    ],
)
def test_backbones_that_cannot_do_what_is_asked(
    model: str,
    options: str,
    expected: str,
    pictures: Path,
    tmp_path: Path,
    capsys: Capture,
    request: pytest.FixtureRequest,
) -> None:
    folder = request.getfixturevalue(model)
    words_ = words("representation", folder, pictures, tmp_path / "run", *options.split())
    assert expected in refused(capsys, words_)
    assert not (tmp_path / "run").exists()


def test_heads(
    vit: Path, pictures: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    """Another task's head is replaced, a damaged one refused."""
    model = segment(vit, masks, tmp_path / "masks", "--steps", "1") / "model"
    capsys.readouterr()
    represent(model, pictures, tmp_path / "run", "--steps", "1")
    assert f"note: the head of {model} has another task" in capsys.readouterr().err
    words_ = words("representation", model, pictures, tmp_path / "kl", "--beta", "1")
    assert "--beta: KL to a start whose head is random" in refused(capsys, words_, notes=True)
    file = model / "head.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    line = refused(capsys, words("segmentation", model, masks, tmp_path / "more"))
    assert f'Cannot read the head "{file}"' in line
    assert not (tmp_path / "kl").exists()
    assert not (tmp_path / "more").exists()


# Images and masks


def _mask(data: Path, split: str = "train", number: int = 3) -> Path:
    return data / split / "masks" / f"{number:03d}.png"


def _another_size(data: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(_mask(data))


def _outside(data: Path) -> None:
    Image.fromarray(np.full((16, 16), 7, dtype=np.uint8)).save(_mask(data))


def _outside_in_test(data: Path) -> None:
    Image.fromarray(np.full((16, 16), 7, dtype=np.uint8)).save(_mask(data, "test"))


def _all_ignored(data: Path) -> None:
    Image.fromarray(np.full((16, 16), 255, dtype=np.uint8)).save(_mask(data))


def _in_colour(data: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(_mask(data))


def _no_names(data: Path) -> None:
    (data / "classes.txt").unlink()


def _one_name(data: Path) -> None:
    (data / "classes.txt").write_text("apple\n")


def _no_mask(data: Path) -> None:
    _mask(data).unlink()


def _another_image_size(data: Path) -> None:
    image = np.zeros((20, 16, 3), dtype=np.uint8)
    Image.fromarray(image).save(data / "train" / "images" / "003.png")
    Image.fromarray(image[..., 0]).save(_mask(data))


def _broken_image(data: Path) -> None:
    (data / "train" / "images" / "003.png").write_text("no image")


SPOILT: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "mask of another size": (_another_size, "", "its mask is 8 × 8 pixels but its image is 16"),
    "ids outside": (_outside, "", "003.png): its mask has class id 7, outside the 3 classes"),
    "ids outside, in test": (_outside_in_test, "", "its mask has class id 7"),
    "all ignored": (_all_ignored, "", "its mask labels no pixel"),
    "mask in colour": (_in_colour, "", "whose colours are no class ids"),
    "no class names": (_no_names, "", "classes.txt"),
    "one class": (_one_name, "", "at least two"),
    "no mask": (_no_mask, "", "has no file of the same name in"),
    "image sizes": (_another_image_size, "", "--image-size"),
    "image sizes, pixels": (_another_image_size, "--train full", "--image-size"),
    "broken image": (_broken_image, "", "003.png"),
    "a single patch": (lambda data: None, "--image-size 4 4", "is a single patch"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_masks_that_cannot_be_used(
    name: str, vit: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    spoil, options, expected = SPOILT[name]
    data = tmp_path / "data"
    shutil.copytree(masks, data)
    spoil(data)
    words_ = words("segmentation", vit, data, tmp_path / "run", *options.split())
    assert expected in refused(capsys, words_, notes=True)
    assert not (tmp_path / "run").exists()


def test_a_broken_picture_of_a_class(
    vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "train" / "sky" / "000.png").write_text("no image")
    line = refused(capsys, words("representation", vit, data, tmp_path / "run"), notes=True)
    assert "000.png" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("job", ["representation", "segmentation"])
def test_a_model_that_diverges(
    job: Job, vit: Path, pictures: Path, masks: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = pictures if job == "representation" else masks
    words_ = words(job, vit, data, tmp_path / "run", "--learning-rate", "1e30")
    line = refused(capsys, words_, notes=True)
    assert "NaN or infinity in the logits" in line
    assert "lower learning rate" in line


# Several processes


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("vit", "--feature-uniformity 1", "it runs in one process"),
        ("resnet", "--train full", "--train full: this resnet normalises by the statistics of a"),
        ("resnet", "--train last-blocks", "run it in one process, or take --train frozen"),
    ],
)
def test_what_runs_in_one_process(
    model: str,
    options: str,
    expected: str,
    pictures: Path,
    tmp_path: Path,
    capsys: Capture,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Processes, "world_size", 2)
    folder = request.getfixturevalue(model)
    words_ = words("representation", folder, pictures, tmp_path / "run", *options.split())
    assert expected in refused(capsys, words_)
    assert not (tmp_path / "run").exists()


# The cache of features


def test_a_cache_that_cannot_be_written(
    vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "cache"
    file.write_text("mine")
    for cache in (file, file / "below"):
        words_ = words("representation", vit, pictures, tmp_path / "run", "--cache", str(cache))
        assert f"Features cannot be kept in {cache}" in refused(capsys, words_, notes=True)
    assert file.read_text() == "mine"
    assert not (tmp_path / "run").exists()


def test_a_damaged_cache(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    cache = ["--cache", str(tmp_path / "cache"), "--steps", "1"]
    first = represent(vit, pictures, tmp_path / "1", *cache)
    file = next((tmp_path / "cache").glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-5])
    line = refused(
        capsys, words("representation", vit, pictures, tmp_path / "2", *cache), notes=True
    )
    assert f"The cached features {file} cannot be used" in line
    assert "delete the file" in line
    assert not (tmp_path / "2").exists()
    file.unlink()
    again = represent(vit, pictures, tmp_path / "2", *cache)
    assert metric_lines(again) == metric_lines(first)
    assert not list((tmp_path / "cache").glob(".*"))


# Runs that are there


def test_a_run_in_use_and_other_settings(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    run = represent(vit, pictures, tmp_path / "run", "--steps", "1")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = refused(capsys, words("representation", vit, pictures, run))
    assert "already holds a run: --resume to go on with it" in line
    line = refused(
        capsys, ["representation", "--resume", "--output", run, "--pool", "mean", "--hidden", "9"]
    )
    assert "pool was 'cls', now 'mean'" in line
    assert "hidden was 8, now 9" in line
    line = refused(capsys, ["segmentation", "--resume", "--output", run])
    assert "is a run of visgrpo representation: go on with" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
