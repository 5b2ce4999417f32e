"""A disk that is full, a run of many steps, and data that are large."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kills import STORIES, chosen, goes_on, watching, whole, words_of
from trials import ROOT, Bench, Count, Row, in_child, rows_of, run, start, wait

MB = 2**20
LONG = 3600.0  # seconds that a soak or large data may take


def bad_disk(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Fill a run's disk, a tmpfs, at a file event, or make it read-only; go on once it is well."""
    rng, place = random.Random(seed), bench.folder / "disk"
    place.mkdir(exist_ok=True)
    counts = {act: Count(f"a disk that is {what}") for act, what in HURTS.items()}
    if not mount(place, "-t", "tmpfs", "tmpfs"):
        counts[fill].add("skipped: not the rights to mount a tmpfs")
        return rows_of(counts[fill])
    subprocess.run(["umount", place], check=True)
    for name in chosen(bench, scale):
        _, total, _ = whole(bench, name)
        few = scale / 2 if name in STORIES else scale
        for act, count in counts.items():
            for number in rng.sample(range(1, total + 1), min(total, max(1, round(2 * few)))):
                mount(place, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
                try:
                    count.add(*hurt(bench, name, place, act, number))
                finally:
                    subprocess.run(["umount", place], check=True)
        for count in counts.values():
            count.tell(name)
    return rows_of(*counts.values())


def hurt(
    bench: Bench, name: str, place: Path, act: Callable[[Path], bool], number: int
) -> tuple[str, str]:
    """Run on a disk that something happens to at a file event, or at the next where it cannot."""
    output, done = f"disk/{name}", []

    def seen_by(seen: int) -> None:
        if seen >= number and not done and act(place):
            done.append(seen)

    ended = run(words_of(bench, name, output), bench.folder, watching(place / name, seen_by))
    mount(place, "-o", "remount,rw")
    (place / "ballast").unlink(missing_ok=True)
    what = f"{name}, event {number}: code {ended.code} {ended.err[-400:]}"
    if ended.broke:
        return "with a traceback", what
    if ended.code == 0:
        return "there was room again", ""
    said = ended.err.splitlines()[-1]
    if not ended.told or f"disk/{name}" not in said or "written" not in said:
        return "otherwise", what
    if act is fill and " left" not in said:
        return "without a word on space", what
    end, wrong = goes_on(bench, name, output)
    return f"said in a line, then {end}", wrong


def fill(place: Path) -> bool:
    """Leave no page free."""
    handle = os.open(bytes(place / "ballast"), os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(handle, bytes(MB))
    except OSError:
        return True
    finally:
        os.close(handle)


def close(place: Path) -> bool:
    """Let nobody write; not while a file is open for that."""
    return mount(place, "-o", "remount,ro")


HURTS = {fill: "full from a file event on", close: "read-only from a file event on"}


def mount(place: Path, *words: str) -> bool:
    given = ["mount", *words, str(place)]
    return subprocess.run(given, capture_output=True, check=False).returncode == 0


def soak(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Train for 3,000 steps, saving and measuring: memory after a fifth and at the end."""
    steps = round(3000 * scale)
    words = (
        f"clip --model pretrain-clip/model --data pictures --device cpu --batch-size 8 "
        f"--steps {steps} --log-every 20 --save-every 100 --eval-every 100 --no-report "
        "--augment crop flip --output soaked"
    ).split()
    said, begun = bench.folder / "said", time.monotonic()
    child, seen = start(words, bench.folder, said), list[int]()
    while not (bench.folder / "soaked" / "summary.json").exists():
        time.sleep(0.2)
        try:
            fields = Path(f"/proc/{child}/statm").read_text().split()
        except OSError:
            break
        seen.append(int(fields[1]) * os.sysconf("SC_PAGE_SIZE"))
        if time.monotonic() - begun > LONG:
            break
    ended = wait(child, words, said, begun, LONG)
    early = seen[len(seen) // 5 : len(seen) * 2 // 5]
    late = seen[len(seen) * 4 // 5 :]
    first, last = (sum(part) / max(len(part), 1) / MB for part in (early, late))
    count = Count(f"{steps:,} steps of clip in {ended.seconds:.0f} s")
    grown = f"{first:.0f} MiB early, {last:.0f} MiB late"
    flat = ended.code == 0 and last - first < 16
    count.add(grown, "" if flat else f"{grown} {ended.err[-300:]}")
    return rows_of(count)


def scale_up(bench: Bench, scale: float, seed: int) -> list[Row]:
    """200,000 images in a folder and in Parquet, and a log of a gigabyte: time and peak memory."""
    images, size = round(200_000 * scale), int(1e9 * scale)
    base = run(["--version"], bench.folder).peak_bytes
    log = in_child(lambda: write_all(bench.folder, images, size), bench.scratch)["log"]
    train = "clip --model pretrain-clip/model --device cpu --batch-size 64 --steps 2 --no-report"
    counts = []
    for what, words in {
        f"{images:,} images in a folder": f"{train} --data many --output from-folder",
        f"{images:,} images in Parquet": f"{train} --data many-tables --output from-tables",
        f"a log of {log / 1e9:.2f} GB": "feedback summarize many.csv",
    }.items():
        ended = run(words.split(), bench.folder, limit=LONG)
        count = Count(f"{what}: {ended.seconds:.0f} s")
        peak = f"peak {ended.peak_bytes / MB:.0f} MiB ({base / MB:.0f} of them libraries)"
        count.add(peak, "" if ended.code == 0 else f"{what}: {ended.err[-500:]}")
        counts.append(count)
    for made in ("many", "many-tables"):
        shutil.rmtree(bench.folder / made)
    return rows_of(*counts)


def write_all(folder: Path, images: int, size: int) -> dict[str, Any]:
    """Write images, each other than the others, as files and as a table, and a log of events."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from feedback_events import make

    rng = np.random.default_rng(0)
    names, parts = ("apple", "leaf", "sky"), {"test": 900, "val": 900, "train": images}
    for part in parts:
        for name in names:
            (folder / "many" / part / name).mkdir(parents=True)
    table = folder / "many-tables"
    table.mkdir()
    for part, count in parts.items():
        encoded = write_images(folder / "many" / part, names, count, rng)
        rows = {"image": encoded, "label": [names[row % 3] for row in range(count)]}
        pq.write_table(pa.table(rows), table / f"{part.replace('val', 'validation')}.parquet")
    log = folder / "many.csv"
    make(log, max(1000, size // 60))
    return {"log": log.stat().st_size}


def write_images(folder: Path, names: Sequence[str], count: int, rng: Any) -> list[bytes]:
    """Write images of noise, a class after the other, and return their bytes."""
    import numpy as np
    from PIL import Image

    encoded = []
    for row in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
        (folder / names[row % 3] / f"{row}.png").write_bytes(data)
        encoded.append(data)
    return encoded
