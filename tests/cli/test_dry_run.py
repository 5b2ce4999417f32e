"""--dry-run says what would train and writes nothing; config.yaml says what defaults became."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import clip, clip_words, language_words, refused, vlm_words

from making import write_counts, write_text
from visgrpo.cli import main
from visgrpo.tasks.plan import written

Capture = pytest.CaptureFixture[str]


def plan_of(words: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    main([*words, "--dry-run"])
    return " ".join(capsys.readouterr().out.split())


def test_of_images(start: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    text = plan_of(clip_words(start, pictures, tmp_path / "run"), capsys)
    for said in (
        "A dry run: nothing was trained.",
        "48 train, 18 validation, 18 test images",
        "parameters",
        "4 of 8 images, 6 in an epoch",
        "1e-05, cosine",
        "3 × 16 × 16 numbers",
        "label: ",
        "train/",
    ):
        assert said in text
    assert not (tmp_path / "run").exists()
    words = clip_words(start, pictures, tmp_path / "run", "--dry-run", "--resume")
    assert "--dry-run is for a new run" in refused(capsys, words)


def test_of_a_story_and_of_prompts_with_images(tmp_path: Path, capsys: Capture) -> None:
    data = write_counts(tmp_path / "counts")
    text = plan_of(vlm_words("all", None, data, tmp_path / "run"), capsys)
    assert "The first of 2 stages, sft:" in text
    assert "<|image_pad|> × " in text
    assert "to be answered: " in text
    assert not (tmp_path / "run").exists()
    text = plan_of(
        language_words("sft", None, write_text(tmp_path / "a.txt"), tmp_path / "run"), capsys
    )
    assert "48 tokens: " in text
    assert not (tmp_path / "run").exists()


def test_equal_special_tokens_are_counted() -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "<|a|>" + "<|pad|>" * 64 + "<b><b> how many?\n"

    assert written(Tokenizer(), []) == "'<|a|><|pad|> × 64 <b><b> how many?\\n'"


def test_config_says_what_defaults_became(start: Path, pictures: Path, tmp_path: Path) -> None:
    run = clip(start, pictures, tmp_path / "run", "--steps", "4")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["eval_every"] is None
    found = config["by_default"]
    assert (found["eval_every"], found["save_every"]) == (1, 1)
    assert (found["select"], found["scope"], found["epsilon_low"]) == ("accuracy", "group", 0.2)
    assert "by_default.eval_every" in (run / "report.html").read_text(encoding="utf-8")
    main(["clip", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "summary.json").exists()
