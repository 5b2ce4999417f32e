"""Kept features: each image encoded once, under everything they depend on, never half of one."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from teams import One, together
from torch import Tensor, nn

from visgrpo.data import kept
from visgrpo.data.batches import InputFunction
from visgrpo.data.kept import default_folder, picture_names, weights_key
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_table
from visgrpo.data.table import LazySequence, Table
from visgrpo.errors import UserError
from visgrpo.measures import feature_cache
from visgrpo.measures.feature_cache import cached_features
from visgrpo.measures.over import Team

M, P, D = 700, 6, 4  # three batches of 256
INPUTS_M = torch.randn(M, P, generator=torch.Generator().manual_seed(0))
KEY = {"weights": "abc", "pool": "mean"}


def dataset(source: str = "source", rows: int = M) -> Table:
    """Rows whose images are never decoded; without a source nobody knows what they are made of."""

    def never(row: int) -> Image.Image:
        raise AssertionError("an image was decoded")

    def contents(row: int) -> list[bytes]:
        return [f"{source} {row}".encode()]

    images = LazySequence(never, range(rows), contents=contents)
    return image_table("rows", ("a", "b"), np.arange(rows) % 2, images)


def inputs(index: int, rng: np.random.Generator) -> Tensor:
    return INPUTS_M[index]


class Encoder:
    """A frozen layer that counts the rows it was asked for."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight_PD = torch.randn(P, D, generator=generator)
        self.rows = 0

    def __call__(self, inputs_NP: Tensor) -> Tensor:
        self.rows += len(inputs_NP)
        return (inputs_NP @ self.weight_PD).tanh()


def cached(
    folder: Path | None,
    encoder: Callable[[Tensor], Tensor] | None = None,
    data: Table | None = None,
    made: InputFunction = inputs,
    *,
    key: dict[str, str] = KEY,
    team: Team | None = None,
) -> Tensor:
    """The features of the data, by an encoder in one process unless told otherwise."""
    rows = dataset() if data is None else data
    return cached_features(encoder or Encoder(), rows, made, team or One(), key=key, folder=folder)


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


# ---- hits and misses ----------------------------------------------------------------------------


def test_a_hit_encodes_nothing_and_equals_an_uncached_call_bit_for_bit(tmp_path: Path) -> None:
    encoder, never = Encoder(), Encoder(seed=1)
    first = cached(tmp_path, encoder)
    assert encoder.rows == M
    second = cached(tmp_path, never)
    assert never.rows == 0
    uncached = torch.cat([Encoder()(part) for part in INPUTS_M.split(256)])
    assert torch.equal(first, uncached)
    assert torch.equal(second, uncached)
    assert (second.dtype, second.shape) == (torch.float32, (M, D))
    assert torch.allclose(second, Encoder()(INPUTS_M), atol=1e-6)
    assert files(tmp_path) == [".sqlite"]


def test_inputs_are_not_made_for_a_hit(tmp_path: Path) -> None:
    cached(tmp_path)

    def unreadable(index: int, rng: np.random.Generator) -> Tensor:
        raise AssertionError("an image was decoded")

    cached(tmp_path, made=unreadable)


def test_everything_in_the_key_and_the_data_each_miss(tmp_path: Path) -> None:
    layer = nn.Linear(P, D)
    preprocess = Preprocess(shortest_edge=32)
    key = {"weights": weights_key(layer), "preprocess": repr(preprocess), "pool": "mean"}

    def rows_encoded(key: dict[str, str], data: Table) -> int:
        encoder = Encoder()
        cached(tmp_path, encoder, data, key=key)
        return encoder.rows

    assert rows_encoded(key, dataset()) == M
    with torch.no_grad():
        layer.bias[2] += 1e-6
    assert rows_encoded({**key, "weights": weights_key(layer)}, dataset()) == M
    other = repr(Preprocess(shortest_edge=33))
    assert rows_encoded({**key, "preprocess": other}, dataset()) == M
    assert rows_encoded({**key, "pool": "cls"}, dataset()) == M
    assert rows_encoded({**key, "precision": "bf16"}, dataset()) == M
    assert rows_encoded(key, dataset("another source")) == M
    assert rows_encoded(key, dataset().subset(range(600))) == 0
    assert rows_encoded(key, dataset()) == 0
    assert len(files(tmp_path)) == 1


def test_rows_of_a_subset_are_its_own(tmp_path: Path) -> None:
    part = dataset().subset([5, 3])
    mine = lambda index, rng: INPUTS_M[[5, 3][index]]  # noqa: E731
    for _ in range(2):
        features = cached(tmp_path, data=part, made=mine)
        assert torch.allclose(features, Encoder()(INPUTS_M[[5, 3]]), atol=1e-6)


def test_dense_features_in_half_precision_are_kept_as_float32(tmp_path: Path) -> None:
    def dense(inputs_NP: Tensor) -> Tensor:
        return inputs_NP.reshape(-1, 2, 3, 1).bfloat16()

    for _ in range(2):
        features = cached(tmp_path, dense)
        assert features.dtype == torch.float32
        assert torch.equal(features, INPUTS_M.reshape(M, 2, 3, 1).bfloat16().float())


def test_splits_of_three_seeds_encode_each_image_once(tmp_path: Path) -> None:
    encoder, rng, whole = Encoder(), np.random.default_rng(0), dataset(rows=M)
    for _ in range(3):
        order = rng.permutation(M)
        for rows in (order[:500], order[500:600], order[600:]):
            made = lambda index, rng, rows=rows: INPUTS_M[rows[index]]  # noqa: E731
            features = cached(tmp_path, encoder, whole.subset(rows), made)
            assert torch.allclose(features, Encoder()(INPUTS_M[rows]), atol=1e-6)
    assert encoder.rows == M


def test_equal_images_are_encoded_once_wherever_they_lie(tmp_path: Path) -> None:
    """Pixels in memory: three different pictures in seven rows of two data sets."""
    pictures = [Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in (1, 2, 3)]
    encoder = Encoder()
    for rows in ([0, 1, 0, 2], [2, 2, 1]):
        labels = np.arange(len(rows)) % 2
        table = image_table("pixels", ("a", "b"), labels, [pictures[row] for row in rows])
        made = lambda index, rng, rows=rows: INPUTS_M[rows[index]]  # noqa: E731
        features = cached(tmp_path, encoder, table, made)
        assert torch.allclose(features, Encoder()(INPUTS_M[rows]), atol=1e-6)
    assert encoder.rows == 3


def test_a_file_is_known_by_place_size_and_time(tmp_path: Path) -> None:
    def names() -> list[bytes]:
        found = LazySequence(lambda row: None, range(2), contents=lambda row: [files_of[row]])
        return picture_names(found)  # type: ignore[arg-type]

    files_of = [tmp_path / "a", tmp_path / "b"]
    for file in files_of:
        file.write_bytes(b"picture")
        os.utime(file, ns=(0, 10**9))
    first = names()
    assert names() == first
    assert first[0] != first[1]
    os.utime(files_of[0], ns=(0, 2 * 10**9))
    files_of[1].write_bytes(b"another")
    assert not set(names()) & set(first)


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 200_000)
    of_key = kept.Kept(tmp_path, KEY)
    for number in range(60):
        of_key.write({bytes([number]): torch.full((1000,), float(number))})
    left = {name[0]: tensor for name, tensor in of_key.read([bytes([n]) for n in range(60)])}
    assert max(left) == 59
    assert 20 < len(left) < 60
    assert min(left) == 60 - len(left)
    assert all(bool((tensor == number).all()) for number, tensor in left.items())
    assert of_key.file.stat().st_size < 260_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_shapes_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    for shape in ((3,), (2, 0), (4, 1, 2)):
        tensor = torch.randn(shape).to(dtype)
        kept.Kept(tmp_path, KEY).write({b"name": tensor})
        ((name, found),) = kept.Kept(tmp_path, KEY).read([b"name", b"other"])
        assert name == b"name"
        assert (found.dtype, found.shape) == (dtype, tensor.shape)
        assert torch.equal(found, tensor)
    assert list(kept.Kept(tmp_path, {**KEY, "pool": "cls"}).read([b"name"])) == []


def test_writing_to_the_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    for _ in range(2):
        features = cached(tmp_path)
        assert features.abs().sum() > 0
        features.zero_()


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VISGRPO_CACHE", raising=False)
    assert default_folder() == Path.home() / ".cache" / "visgrpo" / "features"
    monkeypatch.setenv("VISGRPO_CACHE", str(tmp_path / "new"))
    cached(None)
    assert files(tmp_path / "new") == [".sqlite"]


# ---- the hash of the weights --------------------------------------------------------------------


def test_weights_key() -> None:
    def module(change: Callable[[nn.Module], object] = lambda layer: None) -> nn.Module:
        torch.manual_seed(0)
        layer = nn.BatchNorm1d(3)
        change(layer)
        return layer

    same = weights_key(module())
    assert weights_key(module()) == same
    others = {
        weights_key(module(lambda layer: layer.weight.data[1].add_(1e-7))),
        weights_key(module(lambda layer: layer.running_mean.add_(1))),
        weights_key(module(lambda layer: layer.double())),
        weights_key(module(lambda layer: layer.bfloat16())),
        weights_key(module(lambda layer: layer.register_buffer("more", torch.zeros(0)))),
    }
    assert len(others | {same}) == 6
    frozen = module()
    frozen.requires_grad_(False).eval()
    assert weights_key(frozen) == same


# ---- several processes and writers --------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_main_process_writes_and_all_read_the_same(tmp_path: Path, world_size: int) -> None:
    def member(team: Team) -> tuple[Tensor, int]:
        encoder = Encoder()
        return cached(tmp_path, encoder, team=team), encoder.rows

    for expected in (M, 0):
        features, rows = zip(*together(world_size, member), strict=True)
        assert all(torch.allclose(each, Encoder()(INPUTS_M), atol=1e-6) for each in features)
        assert sum(rows) in range(expected, expected + 6)
    assert files(tmp_path) == [".sqlite"]


def test_concurrent_runs_end_with_one_good_file(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def run(_: int) -> Tensor:
        encoder = Encoder()

        def function(inputs_NP: Tensor) -> Tensor:
            if encoder.rows == 0:
                start.wait(timeout=20)  # nobody has finished before all have begun
            return encoder(inputs_NP)

        return cached(tmp_path, function)

    uncached = torch.cat([Encoder()(part) for part in INPUTS_M.split(256)])
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(features, uncached) for features in pool.map(run, range(4)))
    assert files(tmp_path) == [".sqlite"]


def test_an_encoding_that_fails_leaves_whole_batches(tmp_path: Path) -> None:
    def stops(index: int, rng: np.random.Generator) -> Tensor:
        if index == 400:
            raise UserError("image 400 cannot be read")
        return INPUTS_M[index]

    with pytest.raises(UserError, match="image 400"):
        cached(tmp_path, made=stops)
    encoder = Encoder()
    assert torch.allclose(cached(tmp_path, encoder), Encoder()(INPUTS_M), atol=1e-6)
    assert encoder.rows == M - 256  # a whole batch was kept


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_an_encoding_that_is_killed_leaves_whole_batches(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
import test_feature_cache as here
def stops(index, rng):
    if index == 400:
        os.kill(os.getpid(), signal.SIGKILL)
    return here.INPUTS_M[index]
here.cached(Path(sys.argv[1]), made=stops)
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    encoder = Encoder()
    features = cached(tmp_path, encoder)
    assert encoder.rows == M - 256
    assert torch.allclose(features, Encoder()(INPUTS_M), atol=1e-6)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    """Two processes write over and over; one is killed in the middle."""
    script = """
import sys, torch
from pathlib import Path
from visgrpo.data.kept import Kept
for number in range(10**6):
    name = f"{sys.argv[2]} {number % 50}".encode()
    Kept(Path(sys.argv[1]), {}).write({name: torch.full((50_000,), float(number % 50))})
    print(number, flush=True)
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, who], stdout=subprocess.PIPE)
        for who in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
    for writer in writers:
        writer.kill()
        writer.communicate()
    names = [f"{who} {number}".encode() for who in "ab" for number in range(50)]
    found = dict(kept.Kept(tmp_path, {}).read(names))
    assert len(found) >= 2 * 19
    for name, tensor in found.items():
        assert bool((tensor == float(name.split()[1])).all())


# ---- damaged files, full disks ------------------------------------------------------------------


def flipped(file: Path) -> None:
    """One bit of a feature is another."""
    content = bytearray(file.read_bytes())
    where = content.index(Encoder()(INPUTS_M[:256])[7].numpy().tobytes())
    content[where + 5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-5000]), id="cut short"),
        pytest.param(lambda file: file.write_bytes(b"no database" * 1000), id="something else"),
        pytest.param(flipped, id="a bit"),
    ],
)
def test_a_damaged_file_is_named_and_mended_by_deleting(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    cached(tmp_path)
    (stored,) = tmp_path.iterdir()
    damage(stored)
    with pytest.raises(UserError, match=rf"{stored.name} cannot be used .*; delete the file"):
        cached(tmp_path)
    stored.unlink()
    again = cached(tmp_path)
    assert torch.allclose(again, Encoder()(INPUTS_M), atol=1e-6)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "cache"
    with pytest.raises(UserError, match=r"cannot be kept in .*file/cache .*--cache"):
        cached(folder)


def test_too_little_room_is_known_after_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage)
    encoder = Encoder()
    with pytest.raises(UserError, match=r"need 0\.0 GB and .* has 0\.0 GB left; .*--cache"):
        cached(tmp_path, encoder)
    assert encoder.rows == 256
    assert files(tmp_path) == []


def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own limit stands for the disk's."""
    cached(tmp_path, data=dataset(rows=10))
    connect = sqlite3.connect

    def full(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **settings)
        connection.execute("PRAGMA max_page_count = 5")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(kept.sqlite3, "connect", full)
        with pytest.raises(UserError, match=r"\(database or disk is full\); make room there"):
            cached(tmp_path)
    encoder = Encoder()
    cached(tmp_path, encoder)
    assert encoder.rows == M - 10


def test_features_that_change_shape_between_batches(tmp_path: Path) -> None:
    def growing(index: int, rng: np.random.Generator) -> Tensor:
        return INPUTS_M[index, : 3 + index // 256]

    with pytest.raises(UserError, match=r"features of shape \(4,\) follow .* shape \(3,\)"):
        cached(tmp_path, lambda x: x, made=growing)
