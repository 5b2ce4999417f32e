"""What a first day stumbles over is said with its mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from running import clip, clip_words, read_lines, refused

from visgrpo.arguments import parse
from visgrpo.cli import main
from visgrpo.commands.table import COMMANDS, options_of_command
from visgrpo.errors import UserError
from visgrpo.reporting.console import write_table
from visgrpo.tasks.options import CompareConfig
from visgrpo.tasks.run import print_notes
from visgrpo.terminal import forget_notes
from visgrpo.training.processes import Processes

Capture = pytest.CaptureFixture[str]


def parsed(name: str, *words: str) -> object:
    return parse(options_of_command(name), name, words, COMMANDS[name].positional)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("lr", "learning-rate"), ("bs", "batch-size"), ("wd", "weight-decay"), ("epoch", "epochs")],
)
def test_short_names_hint_at_options(written: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"Did you mean --{meant}"):
        parsed("clip", f"--{written}", "1e-4")
    (tmp_path / "a.yaml").write_text(f"{written}: 1e-4\n")
    with pytest.raises(UserError, match=f'Did you mean "{meant}"'):
        parsed("clip", "--config", str(tmp_path / "a.yaml"))


def test_commas_between_values() -> None:
    assert parsed("compare", "a", "b", "--metric", "kl,reward") == CompareConfig(
        runs=("a", "b"), metric=("kl", "reward")
    )
    assert parsed("clip", "--augment", "crop,flip").augment == ("crop", "flip")  # type: ignore[attr-defined]
    assert parsed("evaluate", "m", "--alpha", "0,0.5").alpha == (0.0, 0.5)  # type: ignore[attr-defined]
    texts = parsed("clip", "--templates", "a photo, of a {}")
    assert texts.templates == ("a photo, of a {}",)  # type: ignore[attr-defined]


def test_join_takes_its_two_models_without_flags() -> None:
    found = parsed("join", "A", "B", "--output", "C")
    assert (found.vision, found.language) == ("A", "B")  # type: ignore[attr-defined]


def test_a_batch_that_is_too_large_says_what_to_type(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = refused(capsys, clip_words(start, pictures, tmp_path / "run", "--batch-size", 49))
    assert "--batch-size 49 is larger than the 48 training images: take --batch-size 48" in line


def test_a_wrong_name_in_a_file_is_found_before_the_data_are_read(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "rewards.py").write_text("def mine(outputs): ...\n")
    spec = f"{tmp_path}/rewards.py:mien"
    for command in ("clip", "representation", "language --method grpo --model m", "vlm"):
        words = [*command.split(), "--data", str(tmp_path / "none"), "--reward", spec]
        assert "mine" in refused(capsys, [*words, "--output", str(tmp_path / "run")])


def test_a_story_lists_its_runs(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    for run in ("sft", "grpo"):
        (tmp_path / "story" / run / "model").mkdir(parents=True)
        (tmp_path / "story" / run / "model" / "config.json").write_text("{}")
    line = refused(capsys, clip_words(tmp_path / "story", pictures, tmp_path / "run"))
    assert f"name {tmp_path}/story/grpo, or one of grpo, sft" in line


def test_a_reader_that_has_seen_enough_ends_a_command(environment: dict[str, str]) -> None:
    script = f"{sys.executable} -m visgrpo clip --help-all | true; echo ${{PIPESTATUS[0]}}"
    for _ in range(3):  # whether anything is written after the reader has gone is a race
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        assert done.stdout.strip() in ("0", "141")


def test_a_reader_that_has_seen_enough_of_tables_ends_a_command(
    environment: dict[str, str],
) -> None:
    tables = "from visgrpo.terminal import show_table\nwhile True: show_table(['a'], [['b' * 999]])"
    script = f'{sys.executable} -c "$TABLES" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script],
        env={**environment, "TABLES": tables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "141")


def test_a_note_is_said_once_by_a_command(capsys: Capture) -> None:
    forget_notes()
    for _ in range(2):
        print_notes(["one and the same"], Processes("cpu"))
    assert capsys.readouterr().err == "note: one and the same\n"
    with pytest.raises(SystemExit):
        main(["clop"])
    print_notes(["one and the same"], Processes("cpu"))
    assert "note: one and the same" in capsys.readouterr().err


def test_samples_say_their_file(start: Path, pictures: Path, tmp_path: Path) -> None:
    run = clip(start, pictures, tmp_path / "run", "--steps", "2")
    for sample in read_lines(run / "samples.jsonl"):
        assert (pictures / sample["file"]).is_file()
    file = read_lines(run / "samples.jsonl")[0]["file"]
    assert file in (run / "report.html").read_text(encoding="utf-8")


def test_tables_in_three_formats(tmp_path: Path) -> None:
    headings, rows = ["run", "accuracy"], [["a|b_c", "0.5 ± 0.1"], ['say "x", y', "50 %"]]
    found = {}
    for ending in (".csv", ".tex", ".md"):
        write_table(tmp_path / f"t{ending}", headings, rows)
        found[ending] = (tmp_path / f"t{ending}").read_text(encoding="utf-8")
    assert found[".csv"] == 'run,accuracy\na|b_c,0.5 ± 0.1\n"say ""x"", y",50 %\n'
    assert found[".md"].splitlines()[2] == r"| a\|b_c | 0.5 ± 0.1 |"
    assert r"a|b\_c & 0.5 $\pm$ 0.1 \\" in found[".tex"]
    assert found[".tex"].startswith("\\begin{tabular}{lr}\n")
    assert "50 \\% \\\\" in found[".tex"]
