"""`visgrpo language` with byte pairs: text of a young model is encoded again as other tokens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from running import language_words, read_json, read_lines, refused, speak, training_lines
from transformers import AutoTokenizer

QWEN = ("--architecture", "qwen2", "--tokenizer", "bpe", "--vocabulary", 300)
CONTEXT = 24
FILLED = ("--max-new-tokens", 16)  # after a prompt of 8 tokens


@pytest.fixture(scope="module")
def bytes_stages(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft, pairs and reward, of a model that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("bytes")
    start = speak("sft", None, short_text, folder / "sft", *QWEN, "--context", CONTEXT)
    speak("preferences", start, short_text, folder / "pairs")
    speak("reward", start, short_text, folder / "reward")
    return folder


def test_pairs_that_cannot_be_read_again_are_left_out(
    bytes_stages: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bytes_stages / "pairs"
    rows = read_lines(run / "pairs.jsonl")
    assert len(rows) == read_json(run / "summary.json")["pairs"] == 40
    tokenizer = AutoTokenizer.from_pretrained(bytes_stages / "sft" / "model")
    for row in rows:
        for which in ("chosen", "rejected"):
            tokens = tokenizer.tokenize(row["prompt"]) + tokenizer.tokenize(row[which])
            assert len(tokens) + row[f"{which}_ended"] <= CONTEXT
    left_out = read_json(run / "summary.json")["pairs_left_out"]
    assert left_out > 0
    capsys.readouterr()
    speak("preferences", bytes_stages / "sft", short_text, tmp_path / "run")
    said = f"note: {left_out} more pairs were left out: their text, encoded again, is longer than"
    assert said in capsys.readouterr().err


def test_too_few_pairs_can_be_read_again(
    bytes_stages: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, run = bytes_stages / "sft", tmp_path / "run"
    words = language_words("preferences", start, short_text, run, *FILLED)
    refusal = refused(capsys, words, notes=True)
    assert "more are too long when encoded again: take a higher --temperature, shorter" in refusal
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["grpo", "ppo", "best-of-n"])
def test_what_was_drawn_is_scored(
    stage: str, bytes_stages: Path, short_text: Path, tmp_path: Path
) -> None:
    """The policy fills the context with tokens whose text would be longer."""
    reward = ("--reward", f"model:{bytes_stages / 'reward'}")
    run = speak(stage, bytes_stages / "sft", short_text, tmp_path / "run", *reward, *FILLED)
    if stage == "best-of-n":
        assert math.isfinite(read_json(run / "summary.json")["after"]["reward"])
        return
    assert all(math.isfinite(line["rewards/model/mean"]) for line in training_lines(run))
    outputs = [text for row in read_lines(run / "samples.jsonl") for text in row["outputs"]]
    assert any("\N{REPLACEMENT CHARACTER}" in text for text in outputs)
