"""Two processes with half a batch each are one process with the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import SMALL, clip, read_lines, training_lines
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TWO_CLIP = [*TORCHRUN, "--nproc-per-node", "2", "-m", "visgrpo", "clip"]
WAYS = {
    "group scope": "--keep last",
    "minibatches, batch scope, old policy, text side": (
        "--method reinforce --train full --minibatches 2 --inner-passes 2 --refresh-every 2 "
        "--keep last"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_numbers_of_one(
    way: str,
    start: Path,
    pictures: Path,
    tmp_path: Path,
    no_page: None,
    environment: dict[str, str],
) -> None:
    options = WAYS[way].split()
    one = clip(start, pictures, tmp_path / "one", *options)
    two = _on_two_processes(start, pictures, tmp_path / "two", options, environment)
    ours, theirs = training_lines(two), training_lines(one)
    assert [line["step"] for line in ours] == [1, 2, 3, 4]
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, abs=2e-5, rel=1e-4)
    steps = [line["step"] for line in read_lines(two / "metrics.jsonl")]
    assert steps == [line["step"] for line in read_lines(one / "metrics.jsonl")]  # written once
    _assert_close(two, one)


def _on_two_processes(
    start: Path, data: Path, output: Path, options: list[str], environment: dict[str, str]
) -> Path:
    paths = ["--model", str(start), "--data", str(data), "--output", str(output)]
    done = subprocess.run(
        [
            *TWO_CLIP,
            *paths,
            *SMALL,
            "--steps",
            "4",
            *options,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("held-out") == 1  # one process prints
    return output


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
    paths = ["--model", str(start), "--data", str(pictures), "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [
            *TWO_CLIP,
            *paths,
            *SMALL,
            "--reward",
            f"{reward}:fussy",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "cannot judge this" in done.stderr
