"""Two processes with half a batch each are one process with the whole of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from running import SMALL

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
    return port


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


@pytest.mark.slow
def test_a_mistake_of_the_user_is_said_once(
    pictures: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Of the words, before the processes meet, and of the model, after that."""
    for model, options, said in (
        (tmp_path, ("--beta", "-1"), "--beta must not be negative"),
        (tmp_path, (), f'"{tmp_path}" holds no model'),
    ):
        done = _torchrun(_words(model, pictures, tmp_path / "run", *options), environment)
        assert done.stderr.count(said) == 1, done.stderr
        assert done.stderr.count("visgrpo: ") == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_the_other_says_how_to_go_on(
    rank: int,
    start: Path,
    pictures: Path,
    tmp_path: Path,
    environment: dict[str, str],
    free_port: int,
) -> None:
    run = tmp_path / "run"
    words = _words(start, pictures, run, "--steps", "400", "--no-report")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "visgrpo", *words],
            env={**environment, **place, "RANK": str(each), "LOCAL_RANK": str(each)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for each in range(2)
    ]
    log = run / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 4):
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.05)
    os.kill(both[rank].pid, signal.SIGKILL)
    _, said = both[1 - rank].communicate(timeout=60)
    both[rank].communicate()
    assert both[1 - rank].returncode == 130
    assert said.splitlines()[-1] == (
        "visgrpo: another process of this run has ended. "
        f"Go on with: visgrpo clip --output {run} --resume"
    )
    assert "Traceback" not in said
