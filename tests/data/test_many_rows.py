"""Rows cost few bytes: names, labels and equal pictures are arrays, and no picture is kept."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visgrpo.data.read import read
from visgrpo.data.split import same_content
from visgrpo.data.strings import Strings
from visgrpo.data.table import Content, LazySequence

FEW, MANY = 200, 2200


def folder_of(rows: int, place: Path) -> Path:
    Image.new("RGB", (4, 4)).save(place.with_suffix(".png"))
    picture = place.with_suffix(".png").read_bytes()
    for name in ("cats", "dogs"):
        (place / name).mkdir(parents=True)
    for row in range(rows):
        file = place / ("cats", "dogs")[row % 2] / f"photograph_{row:05d}.png"
        file.write_bytes(picture + bytes(row % 97) + row.to_bytes(4, "big"))
    return place


def parquet_of(rows: int, place: Path) -> Path:
    Image.new("RGB", (4, 4)).save(place.with_suffix(".png"))
    picture = place.with_suffix(".png").read_bytes()
    images = [
        {"bytes": picture + bytes(5000) + row.to_bytes(4, "big"), "path": f"photograph_{row}.png"}
        for row in range(rows)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [("cats", "dogs")[row % 2] for row in range(rows)]
    file = place.with_suffix(".parquet")
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels}), file)
    return file


def kept_by(data: Sequence[Path], rows: Sequence[int]) -> list[int]:
    """How many bytes tables keep, once a first one has brought what any takes."""
    read(str(data[0]))
    kept = []
    for path, count in zip(data, rows, strict=True):
        gc.collect()
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        splits = read(str(path))
        gc.collect()
        kept.append(tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before)
        tracemalloc.stop()
        assert sum(map(len, (splits.train, splits.validation, splits.test))) == count
    return kept


@pytest.mark.parametrize("made", [folder_of, parquet_of])
def test_a_row_costs_at_most_two_hundred_bytes(made: object, tmp_path: Path) -> None:
    """Of memory that is kept, counted in a process that has nothing else to free."""
    data = [made(rows, tmp_path / str(rows)) for rows in (FEW, MANY)]  # type: ignore[operator]
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        few, many = fresh.submit(kept_by, data, (FEW, MANY)).result()
    assert (many - few) / (MANY - FEW) <= 200


def test_texts_come_back_as_they_were() -> None:
    names = ["cat.png", "", "caf\udce9.png", "Ω/дом.png"]
    texts = Strings.of(iter(names))
    assert texts == names
    assert texts[-1] == names[-1]
    assert texts[1:3] == names[1:3]
    assert Strings.joined([texts, texts.take(np.array([3, 0]))]) == [*names, names[3], names[0]]
    assert Strings(pa.chunked_array([["a", None], ["a"]])).unique() == ["a", None]


def together(contents: Sequence[Sequence[Content]]) -> list[int]:
    """What `same_content` returns, by looking at every pair of rows until nothing changes."""
    first = list(range(len(contents)))
    for _ in contents:
        for one, other in itertools.product(range(len(contents)), repeat=2):
            if set(contents[one]) & set(contents[other]):
                first[one] = first[other] = min(first[one], first[other])
    return first


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_share_pictures_are_those_of_every_pair(seed: int, tmp_path: Path) -> None:
    """Bytes that end alike, in nulls too; several pictures a row, or none; files that miss."""
    rng = np.random.default_rng(seed)
    pool: list[Content] = [bytes([kind]) * 3 + bytes(end) for kind in range(4) for end in (0, 5)]
    pool += [bytes([kind]) + bytes(5000) for kind in range(3)]
    pool += [tmp_path / "missing.png", tmp_path / "another.png"]
    contents = [[pool[k] for k in rng.integers(len(pool), size=rng.integers(3))] for _ in range(9)]
    rows = LazySequence(contents.__getitem__, range(len(contents)))
    assert same_content(rows).tolist() == together(contents)


def test_a_file_is_its_bytes(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    rows: list[list[Content]] = [[tmp_path / "a"], [tmp_path / "b"], [tmp_path / "c"], [b"two"]]
    assert same_content(rows).tolist() == [0, 1, 0, 1]
