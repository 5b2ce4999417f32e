"""Two processes: the numbers of one, and what becomes of the other when one is killed."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from kills import STORIES, chosen, words_of
from trials import Bench, Count, Ended, Row, in_child, rows_of, run, start, wait

CLOSE = 1e-5
ENDS_IN = 20.0  # seconds within which the other process ends
# What must be the same: not what counts tokens a second, and samples.jsonl is of one process.
Numbers = dict[str, float]


def together(
    bench: Bench, words: list[str], doomed: tuple[float, int] | None = None
) -> list[Ended]:
    """Run a command on two processes; `doomed` is when to kill which of them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begun = time.monotonic()
    said = [bench.folder / f"rank-{rank}" for rank in range(2)]
    ids = [start(words, bench.folder, said[rank], _becomes(rank, port)) for rank in range(2)]
    limit = 120.0
    if doomed is not None:
        time.sleep(doomed[0])
        os.kill(ids[doomed[1]], signal.SIGKILL)
        limit = doomed[0] + ENDS_IN
    return [wait(ids[rank], words, said[rank], begun, limit) for rank in range(2)]


def _becomes(rank: int, port: int) -> Callable[[], None]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}

    def become() -> None:
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    return become


def two_are_one(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Train every recipe on one process and on two; compare weights and every logged number."""
    count = Count(f"two processes against one: within {CLOSE:g}")
    for name in [name for name in chosen(bench, scale) if name not in STORIES]:
        one, two = f"one/{name}", f"two/{name}"
        for each in (one, two):
            shutil.rmtree(bench.folder / each, ignore_errors=True)
        alone = run(words_of(bench, name, one), bench.folder)
        ends = together(bench, words_of(bench, name, two))
        told = [end for end in ends if end.told]
        broke = [end.err[-400:] for end in (alone, *ends) if end.broke]
        if broke:
            count.add("with a traceback", f"{name}: {broke[0]}")
        elif told:
            count.add("refused in a line", "" if len(told) == 1 or _once(ends) else name)
        else:
            runs = (bench.folder / one, bench.folder / two)
            apart = in_child(functools.partial(farthest, *runs), bench.scratch)
            close = apart[1] <= CLOSE
            count.add("the same" if close else "otherwise", "" if close else f"{name}: {apart}")
    return rows_of(count)


def _once(ends: list[Ended]) -> bool:
    """Whether a mistake is said by one of the processes alone."""
    return sum("visgrpo: " in end.err for end in ends) == 1


def farthest(one: Path, two: Path) -> tuple[str, float]:
    """What differs the most between two runs, by the size of what it is, and by how much."""
    from safetensors.torch import load_file

    from record import TIMES

    apart: dict[str, float] = {}
    for file in (one / "model").glob("*.safetensors"):
        ours, theirs = load_file(two / "model" / file.name), load_file(file)
        # A softmax takes no notice of what it adds to keys: their gradient is 0 but for rounding,
        # from which Adam makes steps of full size.
        theirs = {name: w for name, w in theirs.items() if not name.endswith("k_proj.bias")}
        square = sum(float(w.double().square().sum()) for w in theirs.values())
        moved = sum(float((ours[n] - w).double().square().sum()) for n, w in theirs.items())
        apart[file.name] = (moved / square) ** 0.5
    lines = [_lines(run) for run in (two, one)]
    for ours, theirs in zip(*lines, strict=True):
        for key, value in theirs.items():
            if isinstance(value, float) and not TIMES.search(key):
                apart[f"{key} at step {theirs['step']}"] = abs(ours[key] - value) / max(
                    1.0, abs(value)
                )
    worst = max(apart, key=lambda key: apart[key])
    return worst, apart[worst]


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]


def one_of_two(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Kill one of two processes at a random time: the other ends at once, and says how to go on."""
    rng = random.Random(seed)
    count = Count("one of two processes killed")
    names = ["clip-sampled", "representation-full", "language-grpo", "vlm-grpo"]
    for turn in range(max(1, round(16 * scale))):
        name, rank = names[turn % len(names)], turn % 2
        output = f"pair-{turn}/{name}"
        shutil.rmtree(bench.folder / output, ignore_errors=True)
        words = words_of(bench, name, output)
        ends = together(bench, words, (rng.uniform(0.3, 3), rank))
        other = ends[1 - rank]
        again = run([*bench.command(words), "--resume", "--output", output], bench.folder)
        if again.code == 2:
            again = run(words, bench.folder)
        where = f"{name}, process {rank}: {other.err[-400:]}"
        if other.code == -100:
            count.add(f"the other waited for {ENDS_IN:g} s", where)
        elif other.broke:
            count.add("the other with a traceback", where)
        elif again.code:
            count.add("stuck", f"{name}: {again.err[-300:]}")
        else:
            count.add("ended and gone on with" if other.code else "was done already")
    return rows_of(count)
