"""Runs that were killed or stopped go on as if nothing had happened."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import SMALL, clip, refused, same_run, training_lines

from visgrpo.cli import main
from visgrpo.errors import Interrupted
from visgrpo.training.options import Loop
from visgrpo.training.run_directory import RunDirectory

EIGHT = ["--steps", "8", "--save-every", "2", "--eval-every", "2", "--keep", "last"]


def _words(start: Path, data: Path, output: Path, options: str) -> list[str]:
    paths = ["--model", str(start), "--data", str(data), "--output", str(output)]
    return ["clip", *paths, *SMALL, *EIGHT, *options.split()]


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(
    start: Path, pictures: Path, tmp_path: Path, no_page: None, environment: dict[str, str]
) -> None:
    run = tmp_path / "stopped"
    options = "--steps 90 --save-every 40 --eval-every 30 --keep last"
    words = [sys.executable, "-m", "visgrpo", *_words(start, pictures, run, options)]
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not _has_step(run, 3):
            assert time.monotonic() < deadline, "the run does not start"
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in messages
    assert "\x1b" not in messages  # plain lines when piped
    last = messages.splitlines()[-1]
    stopped_after = training_lines(run)[-1]["step"]
    assert last.startswith(f"visgrpo: stopped after step {stopped_after}, which is saved")
    command = shlex.split(last.partition("Go on with: ")[2])
    assert command == ["visgrpo", "clip", "--output", str(run), "--resume"]
    main(command[1:])
    clip(start, pictures, tmp_path / "whole", *EIGHT, *options.split())
    assert same_run(run, tmp_path / "whole")


@pytest.mark.slow
def test_a_terminal_that_goes_away_stops_a_run_that_can_go_on(
    start: Path, pictures: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Whatever is printed from then on goes nowhere, and stops no checkpoint from being written."""
    run = tmp_path / "run"
    words = _words(start, pictures, run, "--steps 500 --save-every 400 --eval-every 400")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execve(sys.executable, [sys.executable, "-m", "visgrpo", *words], environment)
    deadline = time.monotonic() + 120
    while not _has_step(run, 3):
        assert time.monotonic() < deadline, "the run does not start"
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 4096)
    os.close(terminal)  # the system sends SIGHUP
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    last = training_lines(run)[-1]["step"]
    assert 3 <= last < 400
    assert (run / "checkpoints" / f"step-{last:06d}" / "state.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_training_ends_a_command_in_a_line(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, plain)
    monkeypatch.setattr("visgrpo.commands.info.info", lambda config: signal.raise_signal(number))
    with pytest.raises(SystemExit) as stopped:
        main(["info"])
    assert signal.signal(number, before) == plain
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "visgrpo: stopped at once.\n"


def _has_step(run: Path, step: int) -> bool:
    file = run / "metrics.jsonl"
    return file.exists() and f'"step": {step},' in file.read_text()


def test_ctrl_c_in_the_baseline_says_how_the_whole_run_goes_on(
    start: Path,
    pictures: Path,
    tmp_path: Path,
    no_page: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from visgrpo.training.trainer import Trainer

    update = Trainer._update

    def interrupted(self: Trainer, *arguments: object) -> object:
        if self._step == 1:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        with pytest.raises(SystemExit) as caught:
            clip(start, pictures, tmp_path / "run", "--baseline")
    assert caught.value.code == 130
    command = shlex.split(capsys.readouterr().err.splitlines()[-1].partition("Go on with: ")[2])
    main(command[1:])
    assert (tmp_path / "run" / "summary.json").exists()
    clip(start, pictures, tmp_path / "whole", "--baseline")
    assert same_run(tmp_path / "run", tmp_path / "whole")
    assert same_run(tmp_path / "run" / "baseline", tmp_path / "whole" / "baseline")


def test_a_stopped_demo_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has ended is not trained again, and what was stopped goes on; seeds are not mixed."""
    folder, asked = tmp_path / "demo", []
    outcome = dict.fromkeys(("accuracy", "ece", "nll"), 0.5)
    measured = {"before": outcome, "after": outcome, "data": {"test": 9}}
    stopped = True

    def train(config: Loop) -> dict[str, Any]:
        run = RunDirectory(str(config.output))
        asked.append((run.path.name, config.resume))
        run.create("clip", {})
        if run.path.name == "grpo" and stopped:
            raise Interrupted(3, run.path)
        run.write_summary(measured)
        return measured

    monkeypatch.setattr("visgrpo.tasks.demo.train", train)
    monkeypatch.setattr("visgrpo.tasks.demo.ask_people", lambda model, folder, seed: None)
    monkeypatch.setattr("visgrpo.tasks.demo.compare_runs", lambda runs, keys, page: page)
    (folder / ".config.yaml.tmp").parent.mkdir()
    (folder / ".config.yaml.tmp").write_text("recipe: de")  # a kill left it
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--output", str(folder)])
    assert caught.value.code == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert shlex.split(line.partition("Go on with: visgrpo ")[2]) == [
        *("demo", "--output", str(folder))
    ]
    assert "holds a demo with --seed 0" in refused(
        capsys, ["demo", "--output", folder, "--seed", 1]
    )
    stopped = False
    for _ in range(2):  # the second time nothing is left to do
        main(["demo", "--output", str(folder)])
        assert "Compare the runs" in capsys.readouterr().out
    started = [("start", False), ("grpo", False)]
    rest = [("clicked-labels", False), ("true-labels", False)]
    assert asked == [*started, ("grpo", True), *rest]


@pytest.fixture(scope="module")
def finished(start: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visgrpo.tasks.run.write_report", lambda path: path)
        return clip(start, pictures, folder, "--keep", "last")


def _copy(run: Path, place: Path) -> Path:
    """A copy of a run whose settings name their new place, as if it had been made there."""
    shutil.copytree(run, place)
    config = place / "config.yaml"
    config.write_text(config.read_text().replace(f"output: {run}\n", f"output: {place}\n"))
    return place


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    finished: Path, tmp_path: Path, no_page: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _copy(finished, tmp_path / "run")
    file = run / "checkpoints" / "step-000004" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    main(["clip", "--resume", "--output", str(run)])
    messages = capsys.readouterr().err
    assert "warning: Checkpoint" in messages
    assert "step-000004 is damaged: model.safetensors is missing or has changed" in messages
    assert "going on from step-000003 instead" in messages
    assert same_run(run, finished)


def test_a_damaged_best_is_found_first_and_can_be_left_behind(
    finished: Path, tmp_path: Path, no_page: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _copy(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-000004")
    (run / "checkpoints" / "best" / "state.json").unlink()
    again = ["clip", "--resume", "--output", str(run)]
    line = refused(capsys, [*again, "--keep", "best"])
    assert line.endswith("--keep last goes on without it.")
    main([*again, "--keep", "last"])
    assert same_run(run, finished)


def test_resume_without_a_run(
    tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, ["clip", "--resume", "--output", tmp_path / "none"])
    assert "holds no run to resume" in line
    assert "--resume needs --output" in refused(capsys, ["clip", "--resume"])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_needs_pickle_is_refused(
    finished: Path, tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _copy(finished, tmp_path / "run")
    (run / "checkpoints" / "step-000009.pt").write_bytes(b"\x80\x04")
    line = refused(capsys, ["clip", "--resume", "--output", run])
    assert "step-000009.pt needs pickle, which could run code" in line


def test_no_whole_checkpoint(
    finished: Path, tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _copy(finished, tmp_path / "run")
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "state.json").unlink()
    assert "is whole" in refused(capsys, ["clip", "--resume", "--output", run])
