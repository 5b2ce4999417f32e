"""Files that are read back are checked, and those that are written are whole."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import TypedDict

from visgrpo import files
from visgrpo.errors import UserError
from visgrpo.models.parts import read_info


class Inner(TypedDict):
    name: str


class Shape(TypedDict, total=False):
    steps: int
    seconds: float
    inner: Inner | None
    rows: list[dict[str, float | None]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("null", "valid dictionary"),
        ("[1]", "valid dictionary"),
        ('{"steps": 1', "Expecting ','"),
        ('{"steps": true}', "steps: input should be a valid integer"),
        ('{"seconds": NaN}', "NaN is not JSON"),
        ('{"seconds": 1e999}', "1e999 is too large"),
        ('{"inner": {}}', r"inner\.name: field required"),
        ('{"rows": [{"n": 1}, {"n": "x"}]}', r"rows\.1\.n: input should be a valid number"),
        ("[" * 200_000, "nested without end"),
        (b"\xff\xfe\xff", "invalid|surrogate|decode"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        UserError, match=rf"summary\.json is damaged \(.*{reason}.*Restore"
    ) as error:
        files.read_json(path, Shape)
    assert "\n" not in str(error.value)


def test_what_is_there_besides_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"steps": 1, "seconds": 2, "more": [null], "inner": null}')
    found = {"steps": 1, "seconds": 2, "more": [None], "inner": None}
    assert files.read_json(path, Shape) == found


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="Is a directory"):
        files.read_yaml(tmp_path)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "&a [*a, *b]", "!!python/object:os.system {}"]
)
def test_damaged_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is not readable YAML"):
        files.read_yaml(path)


def full_disk(number: int) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"the disk has .* MB left, and 5 bytes are needed\. Make room"),
        (errno.EDQUOT, "the disk has"),
        (errno.EACCES, "cannot be written: Permission denied"),
        (errno.EROFS, "cannot be written: Read-only file system"),
    ],
)
def test_what_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "summary.json"
    files.write_whole(path, "before")
    monkeypatch.setattr(os, "fsync", full_disk(number))
    with pytest.raises(UserError, match=message):
        files.write_whole(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]  # half a file would fill the disk further


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match=r"cannot be written: .*/loop is a link that leads nowhere"):
        files.write_whole(loop / "summary.json", "")


@pytest.mark.parametrize("error", ["(os error 28)", "(os error 30)", "of another kind"])
def test_what_libraries_say_of_the_disk(tmp_path: Path, error: str) -> None:
    """Those in Rust raise errors of their own, which name the system's by its number."""
    expected = {"28": "the disk has .* left, and 4.0 MB are needed", "30": "Read-only file system"}
    said = next((text for number, text in expected.items() if number in error), None)
    with pytest.raises(UserError if said else RuntimeError, match=said or error):  # noqa: SIM117
        with files.writing(tmp_path / "model", 4_000_000):
            raise RuntimeError(f"I/O error {error}")


@pytest.mark.parametrize("learned", [{"x": None}, ["shapes"], [{"data": "shapes"}], None])
def test_what_a_model_learned_from_has_its_shape(tmp_path: Path, learned: Any) -> None:
    (tmp_path / "visgrpo.json").write_text(json.dumps({"learned": learned}))
    with pytest.raises(UserError, match=r"visgrpo\.json is damaged \(learned"):
        read_info(str(tmp_path))
