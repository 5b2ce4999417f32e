"""Rewards, folders and models that cannot work: one line, exit code 2, nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import clip_words, read_lines, refused

from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]


# What is wrong with the rewards


REWARDS = {
    "unknown": ("hrad", 'Unknown reward "hrad". Did you mean "hard"?'),
    "no such file": ("nofile.py:f", "nofile.py"),
    "no such function": ("{file}:shap", 'has no function "shap". Did you mean "shape"?'),
    "no such module": ("nomodule:f", 'Module "nomodule" not found'),
    "soft with groups": ("soft", "the same number for every output"),
    "needs a column": ("{file}:priced", 'needs "price", which is not a column'),
    "top-k of nothing": ("top-k:9", "k must be a whole number from 1 to 3"),
    "no table": ("cost:costs.csv", "costs.csv"),
}
REWARD_FILE = """
def shape(outputs):
    return outputs[:, :1].float()

def nan(outputs):
    return outputs * float("nan")

def raising(outputs):
    return {}["a key of mine"]

def priced(outputs, price):
    return outputs
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(REWARD_FILE)
    return file


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_that_are_refused_before_a_model_is_loaded(
    name: str,
    start: Path,
    pictures: Path,
    tmp_path: Path,
    reward_file: Path,
    no_model: None,
    capsys: Capture,
) -> None:
    reward, expected = REWARDS[name]
    words = clip_words(
        start, pictures, tmp_path / "run", "--reward", reward.format(file=reward_file)
    )
    assert expected in refused(capsys, words)
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit(
    start: Path, pictures: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    words = clip_words(start, pictures, tmp_path / "run", "--reward-weights", 1, 2)
    assert "2 reward weights for 1 rewards" in refused(capsys, words)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("shape", 'Reward "shape" returned shape (18, 1); the outputs have shape (18, 3)'),
        ("nan", 'Reward "nan" returned nan in row 0'),
    ],
)
def test_rewards_that_return_something_else(
    function: str,
    expected: str,
    start: Path,
    pictures: Path,
    tmp_path: Path,
    reward_file: Path,
    capsys: Capture,
) -> None:
    words = clip_words(start, pictures, tmp_path / "run", "--reward", f"{reward_file}:{function}")
    assert expected in refused(capsys, words, notes=True)


def test_a_reward_that_raises_shows_the_users_own_traceback(
    start: Path, pictures: Path, tmp_path: Path, reward_file: Path, no_page: None, capsys: Capture
) -> None:
    words = clip_words(start, pictures, tmp_path / "run", "--reward", f"{reward_file}:raising")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    said = next(i for i, line in enumerate(lines) if line.startswith("visgrpo: "))
    assert lines[said] == "visgrpo: Reward \"raising\" raised KeyError: 'a key of mine'"
    assert lines[said + 1] == "Traceback (most recent call last):"
    text = "\n".join(lines[said + 1 :])
    assert 'mine.py", line 9, in raising' in text
    assert "visgrpo/" not in text  # of the user's frames alone
    reward_file.write_text(REWARD_FILE.replace('{}["a key of mine"]', "outputs.float()"))
    assert not (tmp_path / "run").exists()
    main(words)  # once mended, the same words work
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) > 4


# What is wrong with folders and models


def test_an_output_folder_in_use(
    start: Path, pictures: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    line = refused(capsys, clip_words(start, pictures, tmp_path / "run"))
    assert "is not empty: name another folder" in line
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    file = tmp_path / "run" / "notes.txt"
    assert "is a file" in refused(capsys, clip_words(start, pictures, file))
    assert "is a file" in refused(capsys, clip_words(start, pictures, file / "run"))


def _pickled(start: Path, folder: Path) -> Path:
    shutil.copytree(start, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return folder


def test_models_that_are_refused_unloaded(
    start: Path,
    pictures: Path,
    tmp_path: Path,
    no_model: None,
    capsys: Capture,
) -> None:
    pickled = _pickled(start, tmp_path / "pickled")
    image = pictures / "test" / "sky" / "000.png"
    for words in (
        clip_words(pickled, pictures, tmp_path / "run"),
        ["evaluate", pickled, "--data", pictures],
        ["predict", pickled, image],
    ):
        assert "pytorch_model.bin, which needs pickle" in refused(capsys, words)
    line = refused(capsys, clip_words(tmp_path / "none", pictures, tmp_path / "run"))
    assert "does not exist" in line
    assert not (tmp_path / "run").exists()


def test_damaged_weights_of_a_model(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(start, damaged)
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    line = refused(capsys, clip_words(damaged, pictures, tmp_path / "run"))
    assert str(damaged) in line
    assert not (tmp_path / "run").exists()


def test_damaged_settings_of_a_model(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(start, damaged)
    (damaged / "config.json").write_text("{")
    line = refused(capsys, ["evaluate", damaged, "--data", pictures])
    assert str(damaged) in line


def test_a_model_of_another_kind(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    from transformers import ViTConfig, ViTModel

    other = tmp_path / "vit"
    shutil.copytree(start, other)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(other)
    line = refused(capsys, clip_words(other, pictures, tmp_path / "run"))
    assert "is a vit model; this job needs one of: clip, siglip" in line
    assert not (tmp_path / "run").exists()


def test_a_hub_model_that_cannot_be_fetched(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = clip_words(Path("nobody/no-such-model"), pictures, tmp_path / "run")
    assert 'Cannot load model "nobody/no-such-model"' in refused(capsys, words)
    assert not (tmp_path / "run").exists()


def test_more_last_blocks_than_there_are(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = refused(capsys, clip_words(start, pictures, tmp_path / "run", "--last-blocks", 9))
    assert "--last-blocks 9: the image tower has 2 blocks" in line
    assert not (tmp_path / "run").exists()


def test_predict_without_its_image(
    start: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    line = refused(capsys, ["predict", start, tmp_path / "photo.jpg"])
    assert f'Image "{tmp_path / "photo.jpg"}" does not exist' in line
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    line = refused(capsys, ["predict", start, text])
    assert str(text) in line
    assert "skip" not in line  # an option that predict does not have


def test_predict_with_a_class_named_twice(start: Path, pictures: Path, capsys: Capture) -> None:
    image = pictures / "test" / "sky" / "000.png"
    line = refused(capsys, ["predict", start, image, "--classes", "cat", "cat"])
    assert 'Classes "cat" and "cat"' in line


def test_evaluate_with_data_or_split_that_is_not_there(
    start: Path, pictures: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    assert 'Did you mean "digits"?' in refused(capsys, ["evaluate", start, "--data", "digts"])
    words = ["evaluate", start, "--data", pictures, "--split", "tset"]
    assert 'Did you mean "test"?' in refused(capsys, words)
    words = ["evaluate", start, "--data", pictures, "--start", tmp_path / "none", "--alpha", "0.5"]
    assert "does not exist" in refused(capsys, words)


def test_numbers_that_cannot_be_written(start: Path, pictures: Path, capsys: Capture) -> None:
    words = ["evaluate", start, "--data", pictures, "--json", "/nowhere/numbers.json"]
    assert "--json /nowhere/numbers.json cannot be written" in refused(capsys, words)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ("--patch-size 5", "--patch-size 5 does not divide --image-size 32"),
        ("--heads 3", "--heads 3 does not divide --width 128"),
        ("--layers 0", "--layers"),
        ("--vocabulary 0", "--vocabulary"),
        ("--templates cat", 'Template "cat" must hold {} exactly once'),
        ("--more-data digts", 'Did you mean "digits"?'),
    ],
)
def test_sizes_of_a_small_clip(
    sizes: str, expected: str, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["pretrain", "clip", "--data", pictures, "--output", tmp_path / "run"]
    assert expected in refused(capsys, [*words, "--batch-size", "8", *sizes.split()])
    assert not (tmp_path / "run").exists()


def test_the_demo_in_a_folder_in_use(tmp_path: Path, no_model: None, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in refused(capsys, ["demo", "--output", tmp_path])
