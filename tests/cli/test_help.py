"""Help answers at once, says every option, and is plain when piped."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

from visgrpo.cli import COMMANDS, main
from visgrpo.options import options_of
from visgrpo.tasks.clip.options import ClipConfig

HEAVY = ("torch", "transformers", "accelerate", "datasets", "matplotlib", "sklearn", "peft")


def _seconds(words: list[str], environment: dict[str, str]) -> float:
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "visgrpo", *words], env=environment, capture_output=True, check=True
    )
    after = os.times()  # of the processor: what else runs on the machine does not count
    return sum(after[2:4]) - sum(before[2:4])


def test_help_answers_within_half_a_second(environment: dict[str, str]) -> None:
    assert statistics.median(_seconds(["--help"], environment) for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [["--help"], ["clip", "--help"], ["clip", "--bta", "1"]])
def test_help_and_typos_load_nothing_heavy(words: list[str], environment: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from visgrpo.cli import main\n"
        f"try:\n    main({words})\n"
        "except SystemExit:\n    pass\n"
        f"heavy = sorted(set({HEAVY}) & set(sys.modules))\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.about in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code in (0, None)
    text = capsys.readouterr().out
    assert f"visgrpo {name}" in text
    assert "\x1b" not in text


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["clip", "--help"])
    text = capsys.readouterr().out
    for field in options_of(ClipConfig):
        assert f"--{field.name.replace('_', '-')}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("visgrpo 0.")
