"""Two processes with half a batch each are one process with the whole of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import SMALL, clip, read_lines, training_lines
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = {
    "group scope": "",
    "minibatches, batch scope, old policy, text side": (
        "--method reinforce --train full --minibatches 2 --inner-passes 2 --refresh-every 2"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_numbers_of_one(
    way: str,
    start: Path,
    pictures: Path,
    tmp_path: Path,
    environment: dict[str, str],
    on_two_processes: Callable[[list[str]], str],
) -> None:
    options = ["--keep", "last", "--no-report", *WAYS[way].split()]
    one, two = tmp_path / "one", tmp_path / "two"
    clip(start, pictures, one, *options)
    words = _words(start, pictures, two, *options)
    if way == "group scope":  # started as users start it
        done = _torchrun(words, environment)
        assert done.returncode == 0, done.stderr[-3000:]
        printed = done.stdout
    else:
        printed = on_two_processes(words)
    assert printed.count("held-out") == 1  # one process prints
    ours, theirs = training_lines(two), training_lines(one)
    assert [line["step"] for line in ours] == [1, 2, 3, 4]
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, abs=2e-5, rel=1e-4)
    steps = [line["step"] for line in read_lines(two / "metrics.jsonl")]
    assert steps == [line["step"] for line in read_lines(one / "metrics.jsonl")]  # written once
    _assert_close(two, one)


def _words(start: Path, data: Path, output: Path, *options: str) -> list[str]:
    paths = ["--model", str(start), "--data", str(data), "--output", str(output)]
    return ["clip", *paths, *SMALL, "--steps", "4", *options]


def _torchrun(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, "-m", "visgrpo", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def _assert_close(two: Path, one: Path) -> None:
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (two, one))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("k_proj.bias"):
            continue  # attention ignores it: its gradient is rounding noise, which Adam scales up
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_mistake_in_one_process_ends_both(
    start: Path, pictures: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Neither may wait for the other for ever."""
    reward = tmp_path / "mine.py"
    reward.write_text(
        "calls = []\n"
        "def fussy(outputs, label):\n"
        "    import os\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3 and os.environ['RANK'] == '1':\n"
        "        raise ValueError('cannot judge this')\n"
        "    return (outputs == label[:, None]).float()\n"
    )
    words = _words(start, pictures, tmp_path / "run", "--reward", f"{reward}:fussy")
    done = _torchrun(words, environment)
    assert done.returncode != 0
    assert "cannot judge this" in done.stderr
