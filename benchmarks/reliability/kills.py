"""Runs that are killed or told to stop, and go on: at file events of their folder, and at any time.

A file event is one that Python tells its audit hooks: a file opened for writing, a folder made, a
name changed or removed. The kill comes before it. A run that went on must leave the files, bits and
numbers of one that nobody stopped.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trials import RUNS, Bench, Count, Row, in_child, rows_of, run

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree")
_TINY = "--device cpu --log-every 1 --learning-rate 1e-3"
# Whole stories and a sweep beside the golden runs; {plan} is written by `written_plan`.
STORIES = {
    "language-all": (
        "language --data {text} --validation-fraction 0.1 --device cpu --method all "
        "--max-new-tokens 8 --prompt-tokens 8 --eval-prompts 2 --preset tiny --context 16 "
        "--pairs 40 --samples 4 --group-size 4 --sft-steps 40"
    ),
    "vlm-all": (
        "vlm --data {counts} --device cpu --method all --preset tiny --steps 3 --batch-size 4 "
        "--sft-steps 3 --sft-batch-size 4 --max-new-tokens 6 --group-size 3 --eval-images 6"
    ),
    "sweep": ("sweep clip --config plan.yaml --seeds 2"),
}
PLAN = """model: pretrain-clip/model
data: pictures
device: cpu
batch_size: 8
steps: 2
variants: {plain: {}, kl: {beta: 0.1}}
"""
PAGES = ("clip-sampled", "language-best-of-n", "vlm-grpo")  # of others, drawing takes longest
NAMES = (*(name for name, each in RUNS.items() if not each.printed), *STORIES)


def words_of(bench: Bench, name: str, output: str) -> list[str]:
    """The words of a run that is saved after every step."""
    # A record leaves out where a run lies, by its whole path.
    output = str(bench.folder / output)
    if name in STORIES:
        return [*bench.filled(STORIES[name]), "--output", output]
    given = bench.words(name, output)
    saves = "--steps" in given and "--save-every" not in given
    page = [] if name in PAGES else ["--no-report"]
    return [*given, *page, *(["--save-every", "1"] if saves else [])]


def watching(place: Path, seen_by: Callable[[int], None]) -> Callable[[], None]:
    """What a child does first: number the file events below a place, telling of each."""

    def watch() -> None:
        seen = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open":
                if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR):
                    return
            elif event not in CHANGES:
                return
            if isinstance(args[0], (str, Path)) and Path(args[0]).absolute().is_relative_to(place):
                seen += 1
                seen_by(seen)

        sys.addaudithook(hook)

    return watch


def whole(bench: Bench, name: str) -> tuple[Path, int, float]:
    """A run that nobody stops: its folder, its file events, and its seconds."""
    file, output = bench.folder / "events", f"whole/{name}"
    shutil.rmtree(bench.folder / output, ignore_errors=True)
    file.write_text("0")
    place = bench.folder / output

    def tell(number: int) -> None:
        handle = os.open(str(file).encode(), os.O_WRONLY)  # bytes: no event of the run
        os.pwrite(handle, b"%d" % number, 0)
        os.close(handle)

    ended = run(words_of(bench, name, output), bench.folder, watching(place, tell))
    if ended.code:
        raise SystemExit(f"{name} does not run: {ended.err[-500:]}")
    return place, int(file.read_text()), ended.seconds


def left_by(bench: Bench, run_folder: Path) -> dict[str, Any]:
    """The files of a run, but for checkpoints, and hashes of what is in them."""
    from record import record_of

    def read() -> dict[str, Any]:
        if not (run_folder / "summary.json").exists():
            return {"files": sorted(str(p.relative_to(run_folder)) for p in run_folder.rglob("*"))}
        record = record_of(run_folder, "")
        return {"files": record["files"], "exact": record["exact"]}

    found: dict[str, Any] = in_child(read, bench.folder / "left.json")
    return found


def goes_on(bench: Bench, name: str, output: str) -> tuple[str, str]:
    """Do what a user would: resume, or start again where that is refused; say how it ended."""
    given = words_of(bench, name, output)
    resumed = ["--resume", "--output", str(bench.folder / output)]
    ended = run([*bench.command(given), *resumed], bench.folder)
    if ended.code == 2:
        ended = run(given, bench.folder)
    where = f"{name} in {output}: "
    if ended.broke:
        return "with a traceback", where + ended.err[-600:]
    if ended.code:
        return "stuck", where + ended.err[-300:]
    ours, theirs = (left_by(bench, bench.folder / each) for each in (output, f"whole/{name}"))
    if ours == theirs:
        return "as if never stopped", ""
    changed = [
        key
        for key in {**ours.get("exact", {}), **theirs.get("exact", {})}
        if ours.get("exact", {}).get(key) != theirs.get("exact", {}).get(key)
    ]
    files = sorted(set(ours["files"]) ^ set(theirs["files"]))
    return "otherwise", f"{where}not the same: {changed} {files}"


def kills(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Kill every recipe at file events of its folder and at random times."""
    rng = random.Random(seed)
    events, times = Count("kill -9 at a file event"), Count("kill -9 at a random time")
    for name in chosen(bench, scale):
        _, total, seconds = whole(bench, name)
        few = scale / 2 if name in STORIES else scale  # they take as long as ten others
        for number in rng.sample(range(1, total + 1), min(total, max(1, round(4 * few)))):
            output = f"killed-{number}/{name}"
            act = watching(bench.folder / output, lambda seen, n=number: seen == n and kill())
            ended = run(words_of(bench, name, output), bench.folder, act)
            assert ended.code == -signal.SIGKILL, (name, number, total, ended)
            events.add(*goes_on(bench, name, output))
            shutil.rmtree(bench.folder / f"killed-{number}")
        for turn in range(max(1, round(2 * few))):
            output = f"late-{turn}/{name}"
            after = (rng.uniform(0, seconds), signal.SIGKILL)
            run(words_of(bench, name, output), bench.folder, send=after)
            times.add(*goes_on(bench, name, output))
            shutil.rmtree(bench.folder / f"late-{turn}")
        events.tell(name)
        times.tell(name)
    return rows_of(events, times)


def signals(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Ask every recipe to stop by one of the signals, at a random time; few, by each of them."""
    rng = random.Random(seed)
    counts, seconds = [], dict[str, float]()
    for turn, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
        count = Count(f"{number.name} at a random time")
        names = chosen(bench, scale)
        for name in names[turn::3] if scale >= 1 else names:
            if name not in seconds:
                seconds[name] = whole(bench, name)[2]
            output = f"{number.name}/{name}"
            shutil.rmtree(bench.folder / output, ignore_errors=True)
            after = (rng.uniform(0.2, 1) * seconds[name], number)
            ended = run(words_of(bench, name, output), bench.folder, send=after)
            if ended.broke:
                count.add("with a traceback", f"{name} {number.name}: {ended.err[-600:]}")
            elif ended.code not in (0, 130):
                count.add(f"with code {ended.code}", f"{name} {number.name}: {ended.err[-300:]}")
            else:
                count.add(*goes_on(bench, name, output))
        counts.append(count)
    return rows_of(*counts)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def chosen(bench: Bench, scale: float) -> Sequence[str]:
    """The recipes that are asked for, or all, or a few of every kind for a short form."""
    few = NAMES if scale >= 1 else ("clip-sampled", "language-best-of-n")
    return [name for name in NAMES if name in bench.only] or few
