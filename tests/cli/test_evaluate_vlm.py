"""`visgrpo evaluate` and `visgrpo predict` on vision-language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import read_json, see
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from visgrpo.cli import main
from visgrpo.tasks.use import kind_of

Capture = pytest.CaptureFixture[str]
RENDERS = Path(__file__).parents[3] / "shared" / "data" / "clevr"
ASK = "How many squares are there in the image?"


@pytest.fixture(scope="module")
def run(counts: Path, other_counts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned the form of answers."""
    output = tmp_path_factory.mktemp("sft") / "run"
    options = ["--steps", 60, "--eval-every", 60, "--batch-size", 16, "--learning-rate", 4e-3]
    more = ["--max-new-tokens", 32, "--shifts", other_counts]
    return see("sft", None, counts, output, *options, *more)


def evaluate(capsys: Capture, model: Path, data: Path, *options: object) -> dict[str, Any]:
    capsys.readouterr()
    words = [str(word) for word in ("evaluate", model, "--data", data, "--json", "-", *options)]
    main([*words, "--device", "cpu"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_kinds(run: Path, seer: Path, tmp_path: Path) -> None:
    assert kind_of(str(run / "model")) == "vision-language"
    assert kind_of(str(seer)) == "vision-language"
    info = json.loads((seer / "visgrpo.json").read_text())
    assert info == {"task": "vision-language"}


def test_the_run_measured_the_same(run: Path, other_counts: Path, capsys: Capture) -> None:
    options = ["--task", "counting", "--max-new-tokens", 32, "--split", "test[:6]"]
    found = evaluate(capsys, run, other_counts, *options)["model"]
    out = read_json(run / "summary.json")["shifts"]["out"]["after"]
    for name in ("accuracy", "unparsed", "format", "majority", "sampled_accuracy", "length"):
        assert found[name] == pytest.approx(out[name]), name
    assert not any("reward" in name for name in found)
    assert sum(map(sum, found["confusion"]["rows"])) == 6


def test_pass_at_k_of_several_samples(run: Path, other_counts: Path, capsys: Capture) -> None:
    options = ["--max-new-tokens", 32, "--split", "test[:6]", "--samples", 4]
    found = evaluate(capsys, run, other_counts, *options)["model"]
    chances = [found[name] for name in ("sampled_accuracy", "pass@2", "pass@4")]
    assert chances == sorted(chances)
    assert chances[0] > 0


def test_training_rows_are_not_measured_on(run: Path, counts: Path, capsys: Capture) -> None:
    """An undivided table is all test to a stranger, and is divided again for its own model."""
    after = read_json(run / "summary.json")["after"]
    own = evaluate(capsys, run, counts, "--max-new-tokens", 32, "--split", "test[:6]")["model"]
    assert own["accuracy"] == pytest.approx(after["accuracy"])
    assert own["majority"] == pytest.approx(after["majority"])
    whole = evaluate(capsys, run, counts, "--max-new-tokens", 32)["model"]
    assert whole["examples"] == 7  # of a fifth of the 17 pictures


def test_two_styles_stand_beside_each_other(run: Path, other_counts: Path, capsys: Capture) -> None:
    both = evaluate(
        capsys, run, other_counts, "--styles", "reasoning", "direct", "--max-new-tokens", 32
    )
    assert list(both) == ["model", "model, direct"]
    assert both["model"]["format"] > 0.5  # which it was trained to write
    assert both["model, direct"]["format"] < 0.5


def test_a_table_for_people(run: Path, seer: Path, counts: Path, capsys: Capture) -> None:
    words = ["evaluate", run, "--data", counts, "--start", seer, "--max-new-tokens", 8]
    main([*map(str, words), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "7 questions, --style reasoning" in printed
    for word in ("accuracy", "sampled", "unparsed", "majority", "│ start ", "│ model "):
        assert word in printed


def test_predict_writes_what_transformers_generates(
    run: Path, counts: Path, capsys: Capture
) -> None:
    pictures = [counts.parent / f"{row}.png" for row in (0, 1)]
    capsys.readouterr()
    words = ["predict", run, *pictures, "--ask", ASK, "--json", "-", "--device", "cpu"]
    main([str(word) for word in [*words, "--max-new-tokens", 20]])
    answers = json.loads(capsys.readouterr().out)
    assert [each["image"] for each in answers] == list(map(str, pictures))
    for each, picture in zip(answers, pictures, strict=True):
        assert each["completion"] == _generated(run / "model", picture)
        if each["answer"] is not None:
            assert f"<answer>{each['answer']}</answer>" in each["completion"]


def test_predict_prints_the_answer(run: Path, counts: Path, capsys: Capture) -> None:
    capsys.readouterr()
    words = ["predict", run, counts.parent / "0.png", "--ask", ASK, "--style", "direct"]
    main([*map(str, words), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == str(counts.parent / "0.png")
    assert "answer: " in printed or "<" in printed


@torch.no_grad()
def _generated(folder: Path, picture: Path) -> str:
    """The greedy completion of 20 tokens by plain transformers."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    seen = images(images=[Image.open(picture)], return_tensors="pt")
    places = int(seen["image_grid_thw"].prod()) // 4
    asked = f"{ASK} Think in <think> </think>, then answer with a number in <answer> </answer>."
    content = [{"type": "image"}, {"type": "text", "text": asked}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace("<|image_pad|>", "<|image_pad|>" * places)
    ids = tokenizer(text, return_tensors="pt")
    out = model.generate(
        **ids,
        pixel_values=seen["pixel_values"],
        image_grid_thw=seen["image_grid_thw"],
        mm_token_type_ids=(ids["input_ids"] == model.config.image_token_id).int(),
        do_sample=False,
        max_new_tokens=20,
    )
    written: str = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return written


@pytest.mark.parametrize("file", ["clevr10.parquet", "superclevr10/counting.jsonl"])
def test_real_renders(file: str, seer: Path, capsys: Capture) -> None:
    """Ten renders of each kind go through loading, preprocessing and evaluation."""
    data = RENDERS / file
    if not data.exists():
        pytest.skip(f"{data} is not here")
    found = evaluate(capsys, seer, data, "--task", "counting", "--max-new-tokens", 4)["model"]
    assert found["examples"] == 10
    assert found["unparsed"] == 1  # a random model answers nothing
    assert sum(map(sum, found["confusion"]["rows"])) == 10


def test_predict_says_that_an_image_is_made_smaller(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    large = tmp_path / "large.png"
    Image.new("RGB", (600, 600), "red").save(large)
    capsys.readouterr()
    main(["predict", str(run), str(large), "--ask", "How many?", "--max-new-tokens", "2"])
    assert "note: large images are made smaller for the model." in capsys.readouterr().err
