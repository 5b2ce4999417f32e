"""Run commands in this process, and read what they leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from visgrpo.cli import main

TIMES = {"seconds", "step_time"}
SMALL = ["--device", "cpu", "--batch-size", "8", "--learning-rate", "1e-3", "--log-every", "1"]


@contextlib.contextmanager
def blank_plots() -> Iterator[None]:
    """Leave out of every plot its rendering, which takes most of the time of a page."""

    def print_png(canvas: FigureCanvasAgg, file: Any) -> None:
        Image.new("RGB", (2, 2)).save(file, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", print_png)
        yield


def clip(start: Path, data: Path | str, output: Path, *options: str) -> Path:
    """`visgrpo clip` for four steps unless the options say otherwise; returns the run."""
    steps = [] if "--steps" in options or "--epochs" in options else ["--steps", "4"]
    paths = ["--model", str(start), "--data", str(data), "--output", str(output)]
    main(["clip", *paths, *SMALL, *steps, *options])
    return output


def clip_words(start: Path, data: Path | str, output: Path, *options: object) -> list[str]:
    """The words of a run of four steps of 8 images."""
    known = ["--model", start, "--data", data, "--output", output, "--device", "cpu"]
    return [str(word) for word in ["clip", *known, "--batch-size", 8, "--steps", 4, *options]]


def refused(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], *, notes: bool = False
) -> str:
    """Run a command that must be refused: exit code 2 and one line on stderr, which is returned.

    With notes, lines before that one are allowed.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines, "nothing on stderr"
    assert lines[-1].startswith("visgrpo: ")
    assert notes or len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[-1]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def read_lines(file: Path) -> list[dict[str, Any]]:
    # Not splitlines(), which also cuts at separators that JSON allows inside strings.
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times, which no two runs share."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(run / "metrics.jsonl")
    ]


def training_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in metric_lines(run) if "loss" in line]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def same_run(ours: Path, theirs: Path) -> bool:
    """Whether two runs have the same weights and the same metrics, to the bit."""
    return weights(ours) == weights(theirs) and metric_lines(ours) == metric_lines(theirs)
