"""Text in a column of a table, from the first stage of `visgrpo language` to the last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import read_json, speak

from visgrpo.tasks.language.options import PRESETS
from visgrpo.tasks.options import Budget


@pytest.fixture(scope="module")
def table(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paragraphs of the short text in the column "body"."""
    file = tmp_path_factory.mktemp("table") / "short.jsonl"
    paragraphs = short_text.read_text().split("\n\n")
    file.write_text("\n".join(json.dumps({"body": text, "page": 1}) for text in paragraphs))
    return file


def test_the_reward_model_learns_from_the_pairs_that_were_made(
    stages: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--text-column", "body", "--keep", "last")
    run = speak("reward", stages / "sft", table, tmp_path / "run", *options)
    pairs = stages / "pairs" / "pairs.jsonl"
    assert f"note: the pairs are {pairs}." in capsys.readouterr().err
    assert read_json(run / "summary.json")["data"]["name"] == str(pairs)
    assert read_json(run / "model" / "visgrpo.json")["learned"][-1]["data"] == str(pairs)


def test_all_stages(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: Budget(3, 4, 1e-3) for name in ("sft", "reward", "policy")}
    monkeypatch.setitem(PRESETS, "tiny", PRESETS["tiny"]._replace(**few))
    options = ("--text-column", "body", "--critic-warmup", 1)
    runs = speak("all", None, table, tmp_path / "all", *options)
    for name in ("sft", "best-of-n", "grpo", "ppo"):
        assert read_json(runs / name / "summary.json")["data"]["name"] == str(table)
    reward = read_json(runs / "reward" / "summary.json")
    assert reward["data"]["name"] == str(runs / "pairs" / "pairs.jsonl")
