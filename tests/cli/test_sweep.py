"""Sweeps end to end: what they leave, what they refuse, and how they go on."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
from pathlib import Path
from pkgutil import resolve_name
from statistics import fmean, stdev

import pytest
import yaml
from running import clip, read_json, refused, same_run

from visgrpo.cli import COMMANDS, main
from visgrpo.tasks.task import TASKS
from visgrpo.training.options import Loop
from visgrpo.training.run_directory import RunDirectory

Capture = pytest.CaptureFixture[str]
SIZES = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 2, "device": "cpu"}
VARIANTS = {"grpo": {}, "supervised": {"method": "supervised"}}


@pytest.fixture(autouse=True)
def one_plot(no_page: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one curve on the page of the sweep: all of them take longer than its runs."""
    from visgrpo.reporting import compare_runs

    def compare(runs: list[Path], metrics: None, page: Path) -> Path:
        return compare_runs(runs, ["eval/accuracy"], page)

    monkeypatch.setattr("visgrpo.tasks.sweep.compare_runs", compare)


@pytest.fixture
def plan(start: Path, pictures: Path, tmp_path: Path) -> Path:
    """A file with two variants of clip."""
    return write(tmp_path / "plan.yaml", start, pictures)


def write(file: Path, start: Path, pictures: Path, **changes: object) -> Path:
    options = {"model": str(start), "data": str(pictures), **SIZES, "variants": VARIANTS}
    file.write_text(yaml.safe_dump({**options, **changes}, sort_keys=False))
    return file


def words(plan: Path, output: Path, *options: object) -> list[str]:
    known = ["sweep", "clip", "--config", plan, "--output", output, "--seeds", 2]
    return [str(word) for word in [*known, *options]]


def runs_of(output: Path) -> list[str]:
    return sorted(str(file.parent.relative_to(output)) for file in output.rglob("summary.json"))


def runs_said(text: str) -> list[str]:
    """The lines that say which run is next; the time left, which some have, is taken out."""
    lines = [line for line in text.splitlines() if line.startswith("run ")]
    return [re.sub(r", about \S+ \S+ left", "", line) for line in lines]


ALL_RUNS = ["grpo/seed-0", "grpo/seed-1", "supervised/seed-0", "supervised/seed-1"]


def test_a_sweep_leaves_runs_and_one_table(
    plan: Path, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "sweep"
    main(words(plan, output, "--measure", "accuracy", "--measure", "before.nll"))
    captured = capsys.readouterr()
    assert runs_said(captured.err) == [
        "run 1 of 4: grpo seed 0",
        "run 2 of 4: supervised seed 0",
        "run 3 of 4: grpo seed 1",
        "run 4 of 4: supervised seed 1",
    ]
    assert runs_of(output) == ALL_RUNS

    content = read_json(output / "sweep.json")
    assert [row["name"] for row in content["rows"]] == ["grpo", "supervised"]
    for row in content["rows"]:
        found = [
            read_json(output / row["name"] / f"seed-{seed}" / "summary.json")["after"]["accuracy"]
            for seed in (0, 1)
        ]
        cell = row["measures"]["accuracy"]
        assert cell["values"] == found
        assert cell["mean"] == pytest.approx(fmean(found))
        assert cell["spread"] == pytest.approx(stdev(found))
    cell = content["rows"][0]["measures"]["accuracy"]
    shown = f"{cell['mean']:.3f} ± {cell['spread']:.3f}"

    # stdout holds the one table, and the page.
    assert captured.out.startswith("clip: mean ± standard deviation over seeds (n - 1)\n")
    assert shown in captured.out
    assert captured.out.splitlines()[-1] == str(output / "compare.html")
    assert "2 seeds" in (output / "compare.html").read_text()
    table = (output / "table.md").read_text()
    assert f"| grpo | 2 | {shown} |" in table
    assert shlex.split(table.splitlines()[0]) == [
        *["visgrpo", "sweep", "clip", "--config", str(plan), "--seeds", "2"],
        *["--output", str(output), "--measure", "accuracy", "--measure", "before.nll"],
    ]

    # A run of a sweep is the run that the command alone makes.
    options = ["--batch-size", "8", "--steps", "2", "--eval-every", "2", "--log-every", "10"]
    alone = clip(start, pictures, tmp_path / "alone", *options, "--seed", "1")
    assert same_run(output / "grpo" / "seed-1", alone)


def stop_in_update(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C within the update of this number, counted from 0 over all runs."""
    from visgrpo.training.trainer import Trainer

    update, seen = Trainer._update, iter(range(10**6))

    def interrupted(self: Trainer, *arguments: object) -> object:
        if next(seen) == number:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", interrupted)


def test_a_stopped_sweep_goes_on(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        stop_in_update(patch, 2)  # the first step of the second run
        with pytest.raises(SystemExit) as caught:
            main(words(plan, output))
    assert caught.value.code == 130
    command = shlex.split(capsys.readouterr().err.splitlines()[-1].partition("Go on with: ")[2])
    assert command == ["visgrpo", "sweep", "--output", str(output), "--resume"]
    assert runs_of(output) == ["grpo/seed-0"]
    assert (output / "supervised" / "seed-0" / "config.yaml").exists()
    assert "| grpo | 1 |" in (output / "table.md").read_text()

    plan.unlink()  # the sweep has its own copy
    moved = output.rename(tmp_path / "moved")
    written = (moved / "grpo" / "seed-0" / "summary.json").stat().st_mtime_ns
    main(["sweep", "--output", str(moved), "--resume"])
    assert runs_said(capsys.readouterr().err) == [
        "run 1 of 4: grpo seed 0: finished before",
        "run 2 of 4: supervised seed 0: going on",
        "run 3 of 4: grpo seed 1",
        "run 4 of 4: supervised seed 1",
    ]
    assert (moved / "grpo" / "seed-0" / "summary.json").stat().st_mtime_ns == written
    assert runs_of(moved) == ALL_RUNS
    rows = read_json(moved / "sweep.json")["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1], [0, 1]]


@pytest.fixture(scope="module")
def finished(start: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep, and beside it its plan."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for place in ("tasks.run", "reporting.page"):
            patch.setattr(f"visgrpo.{place}.write_report", lambda path: path)
        patch.setattr("visgrpo.tasks.sweep.compare_runs", lambda runs, metrics, page: page)
        main(words(write(folder / "plan.yaml", start, pictures), folder / "sweep"))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished sweep to change."""
    return Path(shutil.copytree(finished / "sweep", tmp_path / "sweep"))


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(task: object, config: object) -> None:
        pytest.fail("a run began before everything was checked")

    monkeypatch.setattr("visgrpo.tasks.clip.train.ClipTask.train", run)


def test_a_finished_sweep_shows_another_measure_at_once(
    copied: Path, nothing_runs: None, capsys: Capture
) -> None:
    again = ["sweep", "--resume", "--output", str(copied), "--measure"]
    line = refused(capsys, [*again, "acuracy"], notes=True)
    assert 'No run measured "acuracy". Did you mean "accuracy"?' in line
    main([*again, "before.accuracy"])
    assert "before.accuracy" in capsys.readouterr().out


def test_a_default_measure_that_no_run_has_is_no_column(
    copied: Path, nothing_runs: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("visgrpo.tasks.clip.train.ClipTask.shown", ("accuracy", "knn.20"))
    main(["sweep", "--resume", "--output", str(copied)])
    captured = capsys.readouterr()
    assert "accuracy" in captured.out
    for text in (captured.out, captured.err, (copied / "table.md").read_text()):
        assert "knn" not in text
    for row in read_json(copied / "sweep.json")["rows"]:
        assert list(row["measures"]) == ["accuracy"]
    # A measure that was asked for stays, and is complained about.
    again = ["sweep", "--resume", "--output", str(copied), "--measure", "knn.20"]
    assert 'No run measured "knn.20".' in refused(capsys, again, notes=True)
    assert "| knn.20 |" in (copied / "table.md").read_text()


def test_a_variant_and_a_seed_are_added(
    copied: Path, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    more = {**VARIANTS, "exact": {"estimator": "exact"}}
    plan = write(tmp_path / "more.yaml", start, pictures, variants=more)
    main([*words(plan, copied), "--resume", "--seeds", "3"])
    lines = runs_said(capsys.readouterr().err)
    assert [line.partition(": ")[2] for line in lines if "finished before" not in line] == [
        "exact seed 0",
        "exact seed 1",
        "grpo seed 2",
        "supervised seed 2",
        "exact seed 2",
    ]


def test_runs_with_other_settings_are_not_mixed(
    copied: Path, start: Path, pictures: Path, tmp_path: Path, nothing_runs: None, capsys: Capture
) -> None:
    plan = write(tmp_path / "other.yaml", start, pictures, steps=3, beta=0.5)
    line = refused(capsys, [*words(plan, copied), "--resume"])
    folder = copied / "grpo" / "seed-0"
    assert f"{folder} was run with other settings (beta, steps)" in line


def test_a_folder_in_use_is_refused(copied: Path, nothing_runs: None, capsys: Capture) -> None:
    line = refused(capsys, words(copied / "sweep.yaml", copied))
    assert "already holds a run: --resume to go on with it" in line


def test_a_sweep_that_was_killed_before_its_file_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory(tmp_path).create("sweep", {"command_words": ["clip"]})
    line = refused(capsys, ["sweep", "clip", "--resume", "--output", tmp_path])
    assert "sweep.yaml is missing: give the file again with --config" in line


def test_a_folder_of_something_else_is_not_resumed(
    copied: Path, nothing_runs: None, capsys: Capture
) -> None:
    line = refused(capsys, ["sweep", "pretrain", "clip", "--resume", "--output", str(copied)])
    assert f"{copied} holds no sweep of pretrain clip; name another folder." in line
    run = copied / "grpo" / "seed-0"
    line = refused(capsys, ["sweep", "--resume", "--output", str(run)])
    assert f"{run} is a run of visgrpo clip: go on with visgrpo clip --resume" in line


def test_a_run_that_fails_is_named_and_the_others_stay(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    variants = {"fits": {}, "thirds": {"minibatches": 3}}
    plan = write(tmp_path / "plan.yaml", start, pictures, variants=variants)
    line = refused(capsys, words(plan, tmp_path / "sweep"), notes=True)
    assert "thirds seed 0: --batch-size 8 cannot be split evenly" in line
    assert line.endswith("What is done stays: go on with --resume.")
    assert runs_of(tmp_path / "sweep") == ["fits/seed-0"]


BAD = {
    "no command": ("sweep --config plan.yaml", "Name the command: visgrpo sweep clip"),
    "no file": ("sweep clip", "--config FILE is needed"),
    "a typo": ("sweep clp --config plan.yaml", 'no recipe "clp" to sweep. Did you mean "clip"?'),
    "nothing to train": ("sweep evaluate --config plan.yaml", 'no recipe "evaluate" to sweep.'),
    "half a command": ("sweep pretrain --config plan.yaml", 'Did you mean "pretrain clip"?'),
    "no such file": ("sweep clip --config nowhere.yaml", "nowhere.yaml cannot be read"),
    "an option": ("sweep clip --config plan.yaml --epochs 3", "Unknown option --epochs."),
    "no seeds": ("sweep clip --config plan.yaml --seeds 0", "--seeds must be above 0"),
    "one run": ("sweep clip --config plain.yaml --seeds 1", 'A sweep of one run is "visgrpo clip"'),
    "the last is wrong": ("sweep clip --config late.yaml", "late.yaml, beta=-1: --beta must not"),
    "nothing there": ("sweep clip --output no --resume", "no holds no run to resume"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_before_anything_runs(
    name: str,
    tmp_path: Path,
    nothing_runs: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text("sweep: {beta: [0, 1]}")
    (tmp_path / "late.yaml").write_text("sweep: {beta: [0, -1]}")
    (tmp_path / "plain.yaml").write_text("beta: 1")
    line, expected = BAD[name]
    assert expected in refused(capsys, line.split())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_several_processes_are_refused(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(capsys, words(plan, tmp_path / "sweep"))
    assert line == "visgrpo: visgrpo sweep runs in one process: start it without torchrun."


def test_every_command_that_trains_can_be_swept() -> None:
    training = {
        name
        for name, command in COMMANDS.items()
        if issubclass(resolve_name(str(command.config)), Loop)
    }
    assert set(TASKS) == training


def test_an_error_keeps_the_traceback_of_a_users_reward(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text("def broken(outputs, **columns):\n    return 1 / 0\n")
    variants = {"mine": {"reward": [f"{tmp_path}/mine.py:broken"]}}
    plan = write(tmp_path / "plan.yaml", start, pictures, variants=variants)
    with pytest.raises(SystemExit):
        main(words(plan, tmp_path / "sweep"))
    text = capsys.readouterr().err
    assert "visgrpo: mine seed 0: " in text
    assert "return 1 / 0" in text
