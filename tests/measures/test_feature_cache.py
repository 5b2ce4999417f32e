"""Cached features: encoded once, keyed by everything they depend on, never half a file."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from teams import One, together
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures import feature_cache
from visgrpo.measures.feature_cache import cached_features, default_folder, weights_key
from visgrpo.measures.over import Team

M, P, D = 700, 6, 4  # three batches of 256
INPUTS_M = torch.randn(M, P, generator=torch.Generator().manual_seed(0))
KEY = {"weights": "abc", "pool": "mean"}


def dataset(identity: str = "source", rows: int = M) -> Table:
    labels = np.arange(rows) % 2
    return image_table("rows", ("a", "b"), labels, [None] * rows, identity=identity)  # type: ignore[list-item]


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
    uncached = cached(tmp_path, data=dataset(""))
    assert torch.equal(first, uncached)
    assert torch.equal(second, uncached)
    assert (second.dtype, second.shape) == (torch.float32, (M, D))
    assert torch.allclose(second, Encoder()(INPUTS_M), atol=1e-6)
    assert files(tmp_path) == [".json", ".npy"]


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
    assert rows_encoded(key, dataset().subset(range(600))) == 600
    assert rows_encoded(key, dataset()) == 0
    assert len(files(tmp_path)) == 2 * 7


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


def test_unknown_data_is_never_written(tmp_path: Path) -> None:
    for _ in range(2):
        encoder = Encoder()
        cached(tmp_path, encoder, dataset(""))
        assert encoder.rows == M
    assert files(tmp_path) == []


def test_writing_to_the_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    for _ in range(2):
        features = cached(tmp_path)
        assert features.abs().sum() > 0
        features.zero_()


def test_what_it_is_can_be_read_beside_it(tmp_path: Path) -> None:
    cached(tmp_path)
    (said,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (stored,) = tmp_path.glob("*.npy")
    size = stored.stat().st_size
    expected = {"key": {**KEY, "data": "source"}, "shape": [M, D], "dtype": "float32"}
    assert said == {**expected, "bytes": size}
    assert np.load(stored).shape == (M, D)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VISGRPO_CACHE", raising=False)
    assert default_folder() == Path.home() / ".cache" / "visgrpo" / "features"
    monkeypatch.setenv("VISGRPO_CACHE", str(tmp_path / "new"))
    cached(None)
    assert files(tmp_path / "new") == [".json", ".npy"]


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
    assert files(tmp_path) == [".json", ".npy"]


def test_concurrent_runs_end_with_one_good_file(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def run(_: int) -> Tensor:
        encoder = Encoder()

        def function(inputs_NP: Tensor) -> Tensor:
            if encoder.rows == 0:
                start.wait(timeout=20)  # nobody has finished before all have begun
            return encoder(inputs_NP)

        return cached(tmp_path, function)

    uncached = cached(None, data=dataset(""))
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(features, uncached) for features in pool.map(run, range(4)))
    assert files(tmp_path) == [".json", ".npy"]


def test_an_encoding_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stops(index: int, rng: np.random.Generator) -> Tensor:
        if index == 400:
            raise UserError("image 400 cannot be read")
        return INPUTS_M[index]

    with pytest.raises(UserError, match="image 400"):
        cached(tmp_path, made=stops)
    assert files(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_an_encoding_that_is_killed_leaves_nothing_that_is_read(tmp_path: Path) -> None:
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
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert files(tmp_path) == [".part"]
    encoder = Encoder()
    features = cached(tmp_path, encoder)
    assert encoder.rows == M
    assert torch.allclose(features, Encoder()(INPUTS_M), atol=1e-6)


# ---- damaged files, full disks ------------------------------------------------------------------


def fewer_rows(stored: Path, said: Path) -> None:
    np.save(stored, np.zeros((M - 1, D), np.float32))
    content = json.loads(said.read_text())
    content |= {"shape": [M - 1, D], "bytes": stored.stat().st_size}
    said.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file, _: file.write_bytes(file.read_bytes()[:-100]), id="cut short"),
        pytest.param(lambda file, _: file.write_bytes(b""), id="emptied"),
        pytest.param(lambda file, _: file.write_bytes(file.read_bytes() + b"more"), id="longer"),
        pytest.param(lambda file, _: np.save(file, np.zeros((M, D + 1), "f4")), id="other shape"),
        pytest.param(lambda file, _: np.save(file, np.zeros((M, D), "f2")), id="other type"),
        pytest.param(fewer_rows, id="fewer rows"),
        pytest.param(
            lambda _, said: said.write_text(said.read_text().replace("abc", "abd")), id="other key"
        ),
        pytest.param(lambda _, said: said.unlink(), id="without description"),
        pytest.param(lambda _, said: said.write_text("{"), id="no JSON"),
        pytest.param(lambda _, said: said.write_text("[" * 100_000), id="nested without end"),
    ],
)
def test_damaged_files_are_named_and_mended_by_deleting(
    tmp_path: Path, damage: Callable[[Path, Path], object]
) -> None:
    cached(tmp_path)
    (stored,), (said,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    damage(stored, said)
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
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_cache.os, "fsync", full)
    with pytest.raises(UserError, match=r"\(No space left on device\); make room there"):
        cached(tmp_path)
    assert files(tmp_path) == []


def test_features_that_change_shape_between_batches(tmp_path: Path) -> None:
    def growing(index: int, rng: np.random.Generator) -> Tensor:
        return INPUTS_M[index, : 3 + index // 256]

    for identity in ("source", ""):
        with pytest.raises(UserError, match=r"features of shape \(4,\) follow .* shape \(3,\)"):
            cached(tmp_path, lambda x: x, dataset(identity), growing)
