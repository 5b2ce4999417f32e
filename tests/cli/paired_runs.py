"""Run commands on two processes each, as torchrun does: `python paired_runs.py`.

Not a test: every pair is forked from this one process, which has loaded the libraries once. Lines
of standard input say {"words": […], "folder": "…"}; what the pair prints goes to stdout.txt and
stderr.txt of the folder, and its exit code, once both have ended, to standard output.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import peft  # noqa: F401
import torch
from transformers import CLIPModel  # noqa: F401

import visgrpo.tasks.backbone.representation
import visgrpo.tasks.backbone.segmentation
import visgrpo.tasks.clip.train
import visgrpo.tasks.language.train
import visgrpo.tasks.vlm.train  # noqa: F401
from visgrpo.cli import main


def run(words: list[str], folder: Path) -> int:
    """Run a command on two processes; where one fails the other is killed, or it would wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [fork(rank, port, words, folder) for rank in range(2)]
    worst = 0
    while running:
        process, status = os.wait()
        running.remove(process)
        if status and not worst:
            worst = os.waitstatus_to_exitcode(status)
            for other in running:
                os.kill(other, signal.SIGKILL)
    return worst


def fork(rank: int, port: int, words: list[str], folder: Path) -> int:
    """Start the process of a rank and return its id."""
    process = os.fork()
    if process == 0:
        become(rank, port, words, folder)
    return process


def become(rank: int, port: int, words: list[str], folder: Path) -> NoReturn:
    """Be the process of a rank, for three minutes at most."""
    signal.alarm(180)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    code = 1
    try:
        main(words)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        print(run(request["words"], Path(request["folder"])), flush=True)
