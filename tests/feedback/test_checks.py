"""Every mistake that a row can have: named by its row and value, with the mend."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import Events, open_events

START = 1.7e9


def opened(tmp_path: Path, text: str, *, drop_duplicates: bool = False) -> Events:
    """Write lines of CSV, "/" between them, and open them."""
    (tmp_path / "log.csv").write_text(text.replace("/", "\n") + "\n")
    return open_events(str(tmp_path / "log.csv"), drop_duplicates=drop_duplicates)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # wrong types
        ("image,label,clicked/a,x,1/a,x,maybe", 'row 2: clicked is "maybe", it must be a whole'),
        ("image,label,grade/a,x,good/b,x,bad", r'row 1: grade is "good".*number.*\(2 rows'),
        ("image,label,clicked,time/a,x,1,noon", 'time is "noon".*such as 2026-01-31 12:00:00'),
        ("image,preferred,rejected,tie/a,x,y,2", 'tie is "2", it must be true or false'),
        ("image,preferred,rejected,tie/a,x,y,so", 'tie is "so", it must be true or false'),
        ("image,label,votes/a,x,1.5", "votes is 1.5. It must be a whole number"),
        # missing
        ("image,label,clicked/a,x,1/,x,1", "row 2: image is missing. Every row needs one"),
        ("image,label,votes/a,,1", "label is missing"),
        ("image,label,votes/a,x,", "votes is missing"),
        ("image,preferred,rejected/a,x,", "rejected is missing"),
        ("image,label,clicked,propensity/a,x,1,", "propensity is missing. Give one in every row"),
        ("image,label,clicked,time/a,x,1,", "time is missing"),
        ("image,label,clicked,shown/a,x,1,", "shown is missing"),
        # out of range
        ("image,label,clicked,shown/a,x,3,2", "clicked is 3 but shown is 2. A row that counts"),
        ("image,label,clicked/a,x,2", "clicked is 2 but shown is 1"),
        ("image,label,clicked,shown/a,x,-1,2", "clicked is -1. It cannot be negative"),
        ("image,label,clicked,shown/a,x,0,-1", "shown is -1. It cannot be negative"),
        ("image,label,votes/a,x,-1", "votes is -1"),
        ("image,label,clicked,dwell/a,x,1,-0.5", "dwell is -0.5"),
        ("image,label,clicked,dwell/a,x,1,inf", "dwell is inf. It must be a finite"),
        ("image,label,clicked,position/a,x,1,0", "position is 0. Positions are counted from 1"),
        ("image,label,clicked,propensity/a,x,1,0", "propensity is 0. It is the probability"),
        ("image,label,clicked,propensity/a,x,1,1.01", "propensity is 1.01"),
        ("image,label,clicked,propensity/a,x,1,nan", "propensity is nan. It must be a finite"),
        ("image,label,grade/a,x,nan", "grade is nan"),
        ("image,label,grade/a,x,-inf", "grade is -inf"),
        ("image,preferred,rejected/a,x,x", 'row 1: "x" is preferred to itself'),
        ("image,label,clicked,time/a,x,1,1700000000000", "lies in the future.*not milliseconds"),
        ("image,label,clicked,time/a,x,1,9999-01-01", "lies in the future"),
        # several rows
        ("image,label,votes/a,x,-1/a,x,1/a,y,-2/b,x,-3/c,x,-4", r"\(4 rows: 1, 3, 4, …\.\)"),
        ("image,label,votes/a,x,-1/a,x,-1", r"\(2 rows: 1, 2\.\)"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        opened(tmp_path, text)
    assert str(raised.value).startswith("log.csv, row ")


@pytest.mark.parametrize(
    "text",
    [
        "image,label,clicked,dwell,position,user/a,x,0,,,",  # what need not be recorded
        "image,label,clicked,propensity/a,x,true,1/a,y,FALSE,1e-9",
        "image,label,clicked,shown/a,x,0,0/a,x,2,2.0",
        "image,label,grade/a,x,-3.5",
        "image,preferred,rejected,tie/a,x,y,/a,y,x,true",
        "image,label,clicked,time/a,x,1,AN_HOUR_FAST",
    ],
)
def test_rows_that_are_right(tmp_path: Path, text: str) -> None:
    with opened(tmp_path, text.replace("AN_HOUR_FAST", str(time.time() + 3600))) as events:
        assert events.rows == text.count("/")
        assert events.notes == ()


# ---- duplicates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "image,label,clicked,time/a,x,1,5/b,x,1,5/a,x,1,5/a,x,1,5",
        "image,label,votes,user/a,x,1,u/b,x,1,u/a,x,1,u/a,x,1,u",
        "image,preferred,rejected,user/a,x,y,u/a,y,x,u/a,x,y,u/a,x,y,u",
        "image,label,grade,user/a,x,1,u/a,x,2,u/a,x,1,u/a,x,1,u",
    ],
)
def test_duplicates(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"row 3 repeats row 1 .*\(2 rows in all.*--drop-dup"):
        opened(tmp_path, text)
    with opened(tmp_path, text, drop_duplicates=True) as events:
        assert events.notes == ("2 rows of log.csv dropped as duplicates",)
        assert events.rows == 2
        kept = events.connection.execute("SELECT row FROM events ORDER BY row").fetchall()
        assert kept == [(1,), (2,)]


def test_one_duplicate_is_named_once(tmp_path: Path) -> None:
    text = "image,label,clicked,time/a,x,1,5/a,x,1,5"
    with pytest.raises(UserError) as raised:
        opened(tmp_path, text)
    assert str(raised.value) == (
        "log.csv, row 2 repeats row 1 in every column. Log every event once, or drop duplicates "
        "with --drop-duplicates."
    )
    with opened(tmp_path, text, drop_duplicates=True) as events:
        assert events.notes == ("1 row of log.csv dropped as duplicates",)


@pytest.mark.parametrize(
    "text",
    [
        "image,label,clicked/a,x,1/a,x,1",
        "image,label,clicked,user/a,x,1,u/a,x,1,u",
        "image,label,votes/a,x,1/a,x,1",
        "image,label,votes,user/a,x,1,/a,x,1,",
        "image,label,clicked,time,position/a,x,1,5,1/a,x,1,5,2",
    ],
)
def test_equal_rows_that_may_be_two_events(tmp_path: Path, text: str) -> None:
    for drop in (False, True):
        with opened(tmp_path, text, drop_duplicates=drop) as events:
            assert (events.rows, events.notes) == (2, ())


# ---- the clock ----------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards_is_noted(tmp_path: Path) -> None:
    rows = "/".join(f"a,x,1,{START + second}" for second in (0, 2, 1, 3, 4, 0.5))
    with opened(tmp_path, f"image,label,clicked,time/{rows}") as events:
        (note,) = events.notes
    expected = "the clock of log.csv goes backwards 2 times, first at row 3: rows are not in order"
    assert note == expected


def test_a_clock_in_a_long_log(tmp_path: Path) -> None:
    count = 200_000  # many row groups, on several threads
    with open_events(_numbered(tmp_path, count, "n")) as events:
        assert events.notes == ()
    late = "CASE WHEN n = 150000 THEN 0.5 ELSE n END"
    with open_events(_numbered(tmp_path, count, late)) as events:
        (note,) = events.notes
        assert "backwards once, first at row 150001:" in note


def _numbered(tmp_path: Path, count: int, seconds: str) -> str:
    import duckdb

    path = tmp_path / "numbered.parquet"
    duckdb.execute(
        f"COPY (SELECT 'a' AS image, 'x' AS label, 0 AS clicked, {seconds} AS time "
        f"FROM range({count}) AS r(n)) TO '{path}'"
    )
    return str(path)
