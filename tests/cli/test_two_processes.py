"""Two processes with half a batch each are one process with the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from running import SMALL

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


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
