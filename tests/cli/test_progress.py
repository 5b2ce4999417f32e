"""Bars on terminals of all widths, and lines where stderr is no terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from visgrpo import progress
from visgrpo.progress import Bar, tracked

Capture = pytest.CaptureFixture[str]
WIDTHS = (60, 80, 100, 140)
METRICS = {
    "accuracy": 0.5,
    "reward": 0.25,
    "kl": 0.125,
    "loss": 1.5,
    "eval/accuracy": 0.75,
    "eval/reward": 0.625,
}
SCRIPT = f"""
import time
from visgrpo.progress import Bar, tracked
with Bar("grpo", 140, training=True) as bar:
    bar.log(0, {METRICS})
    for step in range(1, 13):
        time.sleep(0.05)
        bar.to(step)
    for _ in tracked(range(3), "measuring a data set of a long name/validation"):
        time.sleep(0.4)
    print("a remark", flush=True)
"""


def screen(width: int, words: list[str], environment: dict[str, str]) -> list[str]:
    """Run words on a terminal of a width; return what it showed, line by line."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        words,
        stdin=other,
        stdout=other,
        stderr=other,
        env={**environment, "TERM": "xterm"},
        close_fds=True,
    )
    os.close(other)
    text = b"".join(_read(main)).decode()
    os.close(main)
    assert process.wait() == 0, text
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))


def _read(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # how Linux says that the other side is closed
            return
        if not part:
            return
        yield part


@pytest.mark.parametrize("width", WIDTHS)
def test_a_bar_fits_its_terminal(width: int, environment: dict[str, str]) -> None:
    lines = screen(width, [sys.executable, "-c", SCRIPT], environment)
    assert max(map(len, lines)) < width
    bars = [line for line in lines if line.startswith("grpo ")]
    for line in bars:  # the step, the bar, the time left, then whole metrics
        whole = r"(  (validation )?\w+ \d\.\d{3})*"
        assert re.fullmatch(rf"grpo \d+/140 ━+( [\d.]+ s left)?{whole}\s*", line), line
    assert "12/140" in bars[-1]
    assert " s left" in bars[-1]
    assert bars[-1].count("0.") >= {60: 1, 80: 2, 100: 3, 140: 4}[width]
    assert any(line.startswith("measuring") and "2/3" in line and "left" in line for line in lines)
    assert sum(line.strip() == "a remark" for line in lines) == 1


def test_what_is_short_has_no_bar(environment: dict[str, str]) -> None:
    script = "from visgrpo.progress import tracked\nlist(tracked(range(9), 'short'))"
    lines = screen(80, [sys.executable, "-c", script], environment)
    assert not any("short" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0004, "0.000"), (-0.0, "0.000"), (-0.0006, "-0.001"), (1.5, "1.500")]
)
def test_zero_has_no_sign(value: float, text: str, capsys: Capture) -> None:
    with Bar("train", 4, training=True) as bar:
        bar.log(4, {"loss": value, "not shown": 1.0})
    assert capsys.readouterr().err == f"train 4/4  loss {text}\n"


def test_piped_no_number_is_said_twice(capsys: Capture) -> None:
    with Bar("train", 4, training=True) as bar:
        bar.log(0, {"eval/accuracy": 0.5})
        bar.to(1)
        bar.log(2, {"accuracy": 0.25})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train 0/4  validation accuracy 0.500"
    assert second == "train 2/4  0.0 s left  accuracy 0.250"


def test_piped_what_takes_long_says_so_now_and_then(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))
    for _ in tracked(range(6), "measuring"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "measuring 3/6  32 s left",
        "measuring 5/6  11 s left",
    ]


def test_one_process_of_several_shows(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Bar("train", 4, training=True) as bar:
        bar.log(4, {"loss": 1.0})
    assert capsys.readouterr().err == ""
