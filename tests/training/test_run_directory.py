from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from visgrpo.errors import UserError
from visgrpo.training.run_directory import (
    RunDirectory,
    check_free,
    check_place,
    free_name,
    read_config,
)


def test_a_new_or_empty_folder_is_free(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "deep" / "new")
    assert not (tmp_path / "deep").exists()  # checking makes nothing


def test_a_file_is_not_free(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("")
    with pytest.raises(UserError, match=r"notes\.txt is a file; name a folder"):
        check_free(file)


def test_a_folder_with_other_things_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(UserError, match="is not empty: name another folder") as caught:
        check_free(tmp_path)
    assert "--resume" not in str(caught.value)


def test_a_run_is_not_free_but_can_be_resumed(tmp_path: Path) -> None:
    RunDirectory(tmp_path).create("clip", {})
    with pytest.raises(UserError, match="already holds a run: --resume to go on with it"):
        check_free(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission"):
        check_free(tmp_path / "run")


def test_free_names_count_up(tmp_path: Path) -> None:
    assert free_name(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert free_name(tmp_path / "run") == tmp_path / "run-3"


def test_config_comes_back_as_it_was(tmp_path: Path) -> None:
    config = {"data": "digits", "steps": None, "beta": 0.1, "augment": ["flip"], "lora": True}
    RunDirectory(tmp_path).create("clip", config)
    assert read_config(tmp_path) == config
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert list(stored) == ["recipe", *config, "versions"]
    assert {"python", "visgrpo", "torch", "transformers"} <= set(stored["versions"])


def test_config_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run to resume: config\.yaml is missing"):
        read_config(tmp_path)


def test_lines_are_appended(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log_metrics({"step": 1, "reward": 0.5})
    run.log_metrics({"step": 2, "reward": 1.0})
    run.log_sample({"step": 2, "label": "café"})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "reward": 0.5},
        {"step": 2, "reward": 1.0},
    ]
    assert "café" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


def test_rewinding_forgets_later_lines_and_a_half_written_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (0, 1, 2, 3):
        run.log_metrics({"step": step})
        run.log_sample({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 2, "rewa')
    run.rewind(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == 3
    run.log_metrics({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text().endswith('{"step": 2}\n{"step": 3}\n')


@pytest.mark.parametrize("damage", [Path.unlink, lambda log: log.write_text('{"step": 1}\nx\n')])
def test_lines_that_are_gone_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.log_metrics({"step": step})
        run.log_sample({"step": step})
    expected = {name: count - 1 for name, count in run.lines.items()}  # as of step 2
    damage(tmp_path / "samples.jsonl")
    again = RunDirectory(tmp_path)
    again.rewind(2, expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'samples.jsonl'} has lost ")
    assert line.endswith("of its 2 lines up to step 2: the run goes on without them.")
    assert again.lines["metrics.jsonl"] == 2


def test_rewinding_a_line_cut_off_within_a_letter(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log_sample({"step": 1, "label": "é"})
    with (tmp_path / "samples.jsonl").open("ab") as handle:
        handle.write(b'{"step": 1, "label": "\xc3')  # the first of two bytes
    run.rewind(1)
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1, "label": "é"}\n'


def test_a_number_that_json_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunDirectory(tmp_path).log_metrics({"step": 1, "loss": float("nan")})


def test_only_the_writing_process_writes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", writes=False)
    run.create("clip", {})
    run.log_metrics({"step": 1})
    run.log_sample({"step": 1})
    run.write_summary({})
    run.rewind(0)
    assert not (tmp_path / "run").exists()


def test_the_summary_is_json(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_summary({"method": "grpo", "after": {"accuracy": 0.5}})
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == {"method": "grpo", "after": {"accuracy": 0.5}}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("target", ["nowhere", "link"])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_link_that_leads_nowhere(tmp_path: Path, target: str, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="link is a link that leads nowhere"):
        check_place(tmp_path / "link" / below)
