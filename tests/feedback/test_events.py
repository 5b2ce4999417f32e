"""The staged table: types, memory, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_files import IMPRESSIONS, write_csv, write_parquet

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.schemas import (
    IMAGE_NAMES,
    SCHEMAS,
    canonical_columns,
    find_schema,
    kinds_of,
)
from visgrpo.locks import FolderLock


def column(events_path: Path, name: str) -> list[object]:
    with open_events(str(events_path)) as events:
        rows = events.connection.execute(f'SELECT "{name}" FROM events ORDER BY row').fetchall()
    return [row[0] for row in rows]


def test_what_is_known_of_a_table(tmp_path: Path) -> None:
    with open_events(str(write_csv(tmp_path / "log.csv", IMPRESSIONS))) as events:
        assert (events.name, events.kind, events.rows) == ("log.csv", "impressions", 5)
        assert events.columns == set(IMPRESSIONS)
        rows = events.connection.execute("SELECT row, shown FROM events ORDER BY row").fetchall()
    assert rows == [(n, 1.0) for n in range(1, 6)]  # shown was not given


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({"id": [7], "path": ["a.png"], "judgement": [3], "time": [5.0]}, None),
        ({"price": [1]}, "of log.csv 1 column is not used: price"),
        ({"Propensty": [0.5], "x": [1]},
         'of log.csv 2 columns are not used: Propensty, x; is "Propensty" the propensity?'),
    ],
)  # fmt: skip
def test_columns_that_nobody_asks_for_are_noted(
    tmp_path: Path, more: dict[str, list[object]], note: str | None
) -> None:
    log = write_csv(tmp_path / "log.csv", {"image": ["a"], "label": ["x"], "clicked": [1], **more})
    with open_events(str(log)) as events:
        assert events.notes == (() if note is None else (note,))


def test_a_disk_that_is_full_later_is_one_line(tmp_path: Path) -> None:
    log = str(write_csv(tmp_path / "log.csv", IMPRESSIONS))
    with (
        pytest.raises(UserError, match=r"^log\.csv: .*No space.* Set TMPDIR"),
        open_events(log),
    ):
        raise duckdb.IOException('IO Error: Could not write file "x.tmp": No space left on device')


def test_no_room_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Set TMPDIR to one with room"):
        open_events(str(write_csv(tmp_path / "log.csv", IMPRESSIONS)))


def test_times_are_seconds_in_utc(tmp_path: Path) -> None:
    texts = ["1700000000.5", "2023-11-14T22:13:20.5Z", "2023-11-14 22:13:20.5",
             "2023-11-15 00:13:20.5+02:00"]  # fmt: skip
    columns = {"image": ["a"] * 4, "label": list("wxyz"), "clicked": [0] * 4, "time": texts}
    assert column(write_csv(tmp_path / "log.csv", columns), "time") == [1700000000.5] * 4
    moment = datetime(2023, 11, 14, 22, 13, 20, 500_000)
    for typed in (pa.array([moment]), pa.array([moment.replace(tzinfo=UTC)])):
        table = pa.table({"image": ["a"], "label": ["x"], "clicked": [0], "time": typed})
        pq.write_table(table, tmp_path / "log.parquet")
        assert column(tmp_path / "log.parquet", "time") == [1700000000.5]


def test_typed_numbers_and_ids(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image_id": pa.array([7], pa.int64()),
            "label": pa.array(["x"]).dictionary_encode(),
            "votes": pa.array([3], pa.uint8()),
        }
    )
    pq.write_table(table, tmp_path / "votes.parquet")
    with open_events(str(tmp_path / "votes.parquet")) as events:
        assert events.connection.execute("FROM events").fetchall() == [(1, "7", "x", 3.0)]


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    clicks = [True] * 4 + ([True] if ends == "well" else [7])
    path = write_csv(tmp_path / "log.csv", {**IMPRESSIONS, "clicked": clicks})
    if ends == "well":
        with open_events(str(path)):
            assert list(scratch.iterdir())
    else:
        with pytest.raises(UserError, match="clicked is 7"):
            open_events(str(path))
    assert not list(scratch.iterdir())


def test_what_killed_processes_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = str(write_csv(tmp_path / "log.csv", IMPRESSIONS))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("left", "new", "used")
    folders = {name: tmp_path / f"visgrpo-feedback-{name}" for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "events.duckdb").write_bytes(bytes(99))
        if name != "new":
            os.utime(folder, (0, 0))
    other = tmp_path / "visgrpo-feedback-link"
    other.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with FolderLock(folders["used"]), open_events(log):
        assert not folders["left"].exists()
    kept = {each.name for each in tmp_path.glob("visgrpo-feedback-*")}
    assert kept == {"visgrpo-feedback-new", "visgrpo-feedback-used", "visgrpo-feedback-link"}


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "it's; --.parquet", IMPRESSIONS)
    with open_events(str(path)) as events:
        found = events.connection.execute("SELECT image, label FROM events ORDER BY row")
        rows = found.fetchall()
    assert rows[2] == ("<script>alert(1)</script>", "cat")
    assert rows[4] == ("a.png", "'; DROP TABLE events; --")


def test_parts_of_a_query_are_not_confused(tmp_path: Path) -> None:
    """DuckDB 2.0.0 answers (1,), (2,), (1,), (2,) with an optimizer that is switched off here."""
    with open_events(str(write_csv(tmp_path / "log.csv", IMPRESSIONS))) as events:
        events.connection.execute(
            """
            CREATE TABLE pairs AS FROM (VALUES ('x', 'y'), ('y', 'z')) AS t(p, r);
            CREATE TABLE names AS FROM (VALUES ('x', 0), ('y', 1), ('z', 2)) AS t(name, k);
            CREATE VIEW joined AS SELECT l.k AS pk, r.k AS rk FROM pairs
                JOIN names AS l ON l.name = pairs.p JOIN names AS r ON r.name = pairs.r
            """
        )
        found = events.connection.execute("SELECT pk FROM joined UNION ALL SELECT rk FROM joined")
        assert sorted(found.fetchall()) == [(0,), (1,), (1,), (2,)]


def test_no_extension_is_fetched(tmp_path: Path) -> None:
    with open_events(str(write_csv(tmp_path / "log.csv", IMPRESSIONS))) as events:
        for setting in ("autoinstall_known_extensions", "autoload_known_extensions"):
            asked = f"SELECT current_setting('{setting}')"
            assert events.connection.execute(asked).fetchall() == [(False,)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """With a limit of 80 MB; with the usual one the same log takes more than the test allows."""
    path = tmp_path / "large.parquet"
    duckdb.execute(
        f"""
        COPY (SELECT 'photos/' || n || '.png' AS image, 'x' AS label, n % 2 AS clicked, n AS time,
              repeat('u', 200) || n AS user FROM range(300000) AS r(n)) TO '{path}'
        """
    )
    # ru_maxrss would begin with what this process has.
    script = f"""
import json, sys
from visgrpo.feedback.source import events
events.MEMORY_LIMIT = "80MB"
with events.open_events({str(path)!r}) as table:
    (peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(json.dumps([table.rows, int(peak.split()[1]) * 1024, "torch" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, peak, torch = json.loads(done.stdout)
    assert rows == 300_000
    assert peak < 200e6
    assert not torch


@pytest.mark.parametrize("kind", SCHEMAS)
def test_required_columns_are_enough(kind: str) -> None:
    required = SCHEMAS[kind].required  # type: ignore[index]
    assert find_schema("log", required).kind == kind
    assert kinds_of(required) == [kind]


def test_capitals_and_other_columns_do_not_matter() -> None:
    assert canonical_columns(["Image_ID", "LABEL", "Clicked", "browser"]) == {
        "image": "Image_ID",
        "label": "LABEL",
        "clicked": "Clicked",
    }


@pytest.mark.parametrize("place", range(len(IMAGE_NAMES)))
def test_the_first_name_of_the_image_counts(place: int) -> None:
    names = [*reversed(IMAGE_NAMES[place:]), "label", "votes"]
    assert canonical_columns(names)["image"] == IMAGE_NAMES[place]


def test_kind_chooses_where_columns_suit_several() -> None:
    columns = ["image", "label", "votes", "grade"]
    assert find_schema("log", columns, "grades").kind == "grades"
    with pytest.raises(UserError, match=r"log could be votes or grades: leave the columns of one"):
        find_schema("log", columns)


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        (["image", "lable", "votes"], None, 'no column "label", which votes need. Did you mean "l'),
        (["label", "clicked"], None, 'no column "image", which impressions need. Choose from'),
        (["image", "preferred"], None, 'no column "rejected", which preferences need'),
        (["a", "b"], None, r"no table of feedback: its columns are a, b\. .*grades: image, label"),
        ([], None, "its columns are none"),
        (list("abcdefghijklmno"), None, "k, l, …"),
        (["image", "label", "votes"], "impressions", "holds votes, not impressions, which need"),
        (["image", "label"], "impressions", 'no column "clicked", which impressions need'),
    ],
)
def test_columns_that_do_not_do(columns: list[str], kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_schema("log", columns, kind)  # type: ignore[arg-type]
