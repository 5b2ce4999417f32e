"""Mistakes with `visgrpo vlm`, and `evaluate` and `predict` on its models: one line, exit 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import refused, see, vlm_words

Capture = pytest.CaptureFixture[str]
Row = dict[str, object]
VLM = ["vlm", "--output", "run", "--device", "cpu"]

# Words that cannot work, whatever the files hold: nothing is loaded
WORDS = {
    "stage": ("--method grop", 'Did you mean "grpo"?'),
    "no stage": ("--method ppo", "Choose from: all, sft, grpo, dr-grpo, dapo, gspo, cispo, rloo"),
    "preset": ("--preset tny", 'Did you mean "tiny"?'),
    "style": ("--style dirct", 'Did you mean "direct"?'),
    "groups in sft": ("--method sft --group-size 4", "--group-size does not go with --method sft"),
    "steps of sft": ("--method grpo --sft-steps 4", "--sft-steps does not go with --method grpo"),
    "clip of rloo": ("--method rloo --epsilon-low 0.1", "--epsilon-low does not go with"),
    "a group of one": ("--group-size 1", "--group-size 1 leaves grpo nothing to compare"),
    "checkpointing": (
        "--method grpo --gradient-checkpointing",
        "completions share the cache of their prompt",
    ),
    "typo": ("--sft-step 3", "Unknown option --sft-step. Did you mean --sft-steps?"),
    "preset of a model": ("--model m --preset small", "--preset is for new models"),
    "rank": ("--lora-rank 4", "--lora-rank is for --train lora"),
    "nothing to steer": ("--kl-target 3 --beta 0", "--kl-target steers --beta"),
    "kl is needed": ("--no-track-kl", "--no-track-kl is for --beta 0"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(case: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, message = WORDS[case]
    assert message in refused(capsys, [*VLM, *words.split()])
    assert not list(tmp_path.iterdir())


# What the model, the data or the rewards say to it: no run is left behind
OPTIONS = {
    "train": ("grpo", "--train megrer", 'is no part of this model. Did you mean "merger"?'),
    "layers": ("grpo", "--train layers:0-9", "the language model has the layers 0-1"),
    "reward": ("grpo", "--reward exat", 'Did you mean "exact"?'),
    "ordinal": ("grpo", "--reward ordinal:x", '"x" is no number'),
    "length": ("grpo", "--reward length", 'write for example "length:64"'),
    "weights": ("grpo", "--reward-weights 1", "1 reward weights for 2 rewards (format, exact)"),
    "one output": ("grpo", "--group-size 1", "group"),
    "no room": ("grpo", "--max-new-tokens 128", "--max-new-tokens 128 leaves no room for a prompt"),
    "little room": (
        "grpo",
        "--max-new-tokens 110",
        "tokens, but at most 18 fit beside the longest",
    ),
    "no room in sft": ("sft", "--max-new-tokens 128", "leaves no room for a prompt"),
    "pixels": ("grpo", "--max-pixels 10", "--max-pixels 10"),
    "small budget": ("grpo", "--token-budget 9", "--token-budget 9 is less than"),
    "large batch": ("grpo", "--batch-size 99", "batch"),
    "column": ("sft", "--answer-column ground_truht", 'Did you mean "ground_truth"?'),
    "no model": ("grpo", "--model nowhere/at/all", "does not exist"),
    "no other data": ("grpo", "--shifts nowhere.jsonl", "nowhere.jsonl"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, capsys: Capture, seer: Path, counts: Path, tmp_path: Path) -> None:
    stage, options, message = OPTIONS[case]
    words = vlm_words(stage, seer, counts, tmp_path / "run", *options.split())
    assert message in refused(capsys, words, notes=True)
    assert not (tmp_path / "run").exists()


def _without(column: str) -> Callable[[Row], Row]:
    return lambda row: {key: value for key, value in row.items() if key != column}


DATA: dict[str, tuple[str, str, Callable[[Row], Row], str]] = {
    "no reasoning": ("sft", "", _without("thinking"), "has no reasoning to imitate"),
    "no answers": ("sft", "", _without("ground_truth"), "has no answer"),
    "no question": ("sft", "", _without("question"), "question"),
    "no image": ("grpo", "", lambda row: {**row, "image_path": "gone.png"}, "gone.png"),
    "words for numbers": (
        "grpo",
        "--reward ordinal:4",
        lambda row: {**row, "ground_truth": "many"},
        'needs whole numbers as true answers, not "many"',
    ),
    "an image token in the question": (
        "grpo",
        "",
        lambda row: {**row, "question": "<|image_pad|>?"},
        "<|image_pad|>",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data(case: str, capsys: Capture, seer: Path, counts: Path, tmp_path: Path) -> None:
    stage, options, change, message = DATA[case]
    file = _changed(counts, tmp_path / "data", change)
    words = vlm_words(stage, seer, file, tmp_path / "run", *options.split())
    assert message in refused(capsys, words, notes=True)
    assert not (tmp_path / "run").exists()


def test_rewards_that_say_nothing(
    capsys: Capture, seer: Path, counts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def silent(completions, **columns):\n    return [None] * len(completions)\n")
    words = vlm_words("grpo", seer, counts, tmp_path / "run", "--reward", f"{file}:silent")
    assert "returned None for prompt" in refused(capsys, words, notes=True)


def test_an_unreadable_image_is_named_or_left_out(
    capsys: Capture, seer: Path, counts: Path, tmp_path: Path
) -> None:
    file = _changed(counts, tmp_path / "data", lambda row: row)
    (file.parent / "3.png").write_bytes(b"no picture")
    words = vlm_words("sft", seer, file, tmp_path / "run", "--steps", 12)
    assert "3.png" in refused(capsys, words, notes=True)
    see("sft", seer, file, tmp_path / "other", "--skip-bad-images")
    notes = capsys.readouterr().err
    assert "left out 1 unreadable image(s):" in notes
    assert "3.png" in notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate MODEL", "name questions about images, such as shapes"),
        ("evaluate MODEL --data COUNTS --label-column x", "--label-column does not go with"),
        ("evaluate MODEL --data COUNTS --templates x", "It is for a CLIP or SigLIP model"),
        ("evaluate MODEL --data COUNTS --split all", "name train, validation or test"),
        ("evaluate MODEL --data COUNTS --task couting", 'Did you mean "counting"?'),
        ("evaluate MODEL --data COUNTS --styles dirct", 'Did you mean "direct"?'),
        ("evaluate MODEL --data WORDS --task counting", "which is no count"),
        ("evaluate MODEL --data COUNTS --start CLIP", "is a CLIP or SigLIP model: give a vision-"),
        ("predict MODEL PICTURE", "ask it something, with --ask"),
        ("predict MODEL PICTURE --ask x --classes a", "--classes does not go with"),
        ("predict MODEL PICTURE --ask x --top-k 2", "--top-k does not go with"),
        ("predict MODEL PICTURE --ask x --max-new-tokens 110", "lower --max-pixels or --max-new-"),
        ("predict MODEL nowhere.png --ask x", 'Image "nowhere.png" does not exist'),
        ("predict CLIP PICTURE --ask x", "--ask does not go with"),
        ("evaluate CLIP --data digits --task counting", "--task does not go with"),
        ("generate MODEL hello", "qwen2_5_vl model, which does not write text"),
        ("language --method sft --model MODEL", "qwen2_5_vl model, which does not write text"),
    ],
)
def test_evaluate_and_predict(
    words: str,
    message: str,
    capsys: Capture,
    seer: Path,
    start: Path,
    counts: Path,
    tmp_path: Path,
) -> None:
    places: dict[str, Path] = {
        "MODEL": seer,
        "CLIP": start,
        "COUNTS": counts,
        "PICTURE": counts.parent / "0.png",
    }
    if "WORDS" in words:
        change = {"ground_truth": "many"}
        places["WORDS"] = _changed(counts, tmp_path / "data", lambda row: {**row, **change})
    given = [str(places.get(word, word)) for word in words.split()]
    assert message in refused(capsys, given, notes=True)


def _changed(counts: Path, folder: Path, change: Callable[[Row], Row]) -> Path:
    shutil.copytree(counts.parent, folder)
    rows = [change(json.loads(line)) for line in counts.read_text().splitlines()]
    file = folder / counts.name
    file.write_text("\n".join(map(json.dumps, rows)))
    return file
