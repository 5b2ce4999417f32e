"""Two processes with half the prompts each train the language model of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import language_words, refused

from visgrpo.training.processes import Processes


@pytest.mark.parametrize("stage", ["preferences", "all"])
def test_what_runs_in_one_process_says_so(
    stage: str,
    stages: Path,
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Processes, "world_size", 2)
    init = None if stage == "all" else stages / "sft"
    line = refused(capsys, language_words(stage, init, short_text, tmp_path / "run"))
    assert f"--method {stage} runs in one process" in line
    assert not list(tmp_path.iterdir())
