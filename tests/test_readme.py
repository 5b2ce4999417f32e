"""The README's promises that can be checked: its script is the example, and the example learns."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_script_in_the_readme_is_the_example() -> None:
    example = (ROOT / "examples" / "train_clip.py").read_text()
    assert example in (ROOT / "README.md").read_text()


def test_the_example_runs(
    tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_clip.py", str(tiny_clip_folder), "3"])
    runpy.run_path(str(ROOT / "examples" / "train_clip.py"), run_name="__main__")
    assert re.match(r"0 reward 0\.\d+ entropy \d\.\d+", capsys.readouterr().out)


def test_the_loop_to_be_read_first_is_short_and_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = ROOT / "examples" / "grpo_loop.py"
    assert len(example.read_text().splitlines()) <= 100
    assert "visgrpo" not in example.read_text()
    monkeypatch.setattr(sys, "argv", ["grpo_loop.py", "50"])
    runpy.run_path(str(example), run_name="__main__")
    first, last = map(float, re.findall(r"accuracy (0\.\d+)", capsys.readouterr().out))
    assert last > 0.6 > 0.3 > first


def test_the_step_by_hand_is_what_the_code_does() -> None:
    text = (ROOT / "docs" / "step.md").read_text()
    exec(compile(text.split("```python")[1].split("```")[0], "step.md", "exec"), {})


def test_the_example_of_a_language_model_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its reward, the share of vowels, is twice that of the random start after 20 steps."""
    monkeypatch.setattr(sys, "argv", ["train_language.py", "21"])
    runpy.run_path(str(ROOT / "examples" / "train_language.py"), run_name="__main__")
    rewards = re.findall(r"^\d+ reward (0\.\d+) entropy \d", capsys.readouterr().out, re.MULTILINE)
    first, last = map(float, rewards)
    assert last > 2 * first


def test_every_link_and_folder_of_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / target).exists(), target
    for folder in re.findall(r"^  (\w+)/ ", text, re.MULTILINE):
        assert (ROOT / "src" / "visgrpo" / folder).is_dir(), folder
