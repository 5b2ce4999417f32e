"""Files: every format, parts, odd names, damage."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from event_files import (
    IMPRESSIONS,
    VOTES,
    WRITERS,
    damaged,
    rows_of,
    write_csv,
    write_json_lines,
    write_parquet,
)

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.sources import find_files, first_line


@pytest.mark.parametrize("write", [write_csv, write_json_lines, write_parquet])
def test_a_folder_or_a_glob_is_its_parts_in_order(tmp_path: Path, write: object) -> None:
    end = {write_csv: "csv", write_json_lines: "jsonl", write_parquet: "parquet"}[write]  # type: ignore[index]
    write(tmp_path / f"part-1.{end}", VOTES)  # type: ignore[operator]
    write(tmp_path / f"part-0.{end}", {**VOTES, "image": ["c", "d"]})  # type: ignore[operator]
    (tmp_path / "README.md").write_text("not a part")
    expected = [(1, "c", "x", 1.0), (2, "d", "y", 2.0), (3, "a", "x", 1.0), (4, "b", "y", 2.0)]
    assert rows_of(tmp_path) == expected
    assert rows_of(tmp_path / f"part-*.{end}") == expected


@pytest.mark.parametrize("name", ["a[1].csv", "what?.csv", "it's.csv", "a*.csv"])
def test_a_file_name_is_no_pattern_and_no_sql(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "a1.csv", {**VOTES, "votes": [8, 9]})
    write_csv(tmp_path / name, VOTES)
    assert [row[-1] for row in rows_of(tmp_path / name)] == [1, 2]


def test_a_folder_called_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    (tmp_path / "user=bob").mkdir()
    with open_events(str(write_csv(tmp_path / "user=bob" / "v.csv", VOTES))) as events:
        assert events.columns == {"image", "label", "votes"}


@pytest.mark.parametrize(
    "text",
    [
        "image;label;votes\na;x;1\nb;y;2\n",
        "\ufeffimage\tlabel\tvotes\na\tx\t1\nb\ty\t2\n",
        'image|label|votes\r\n"a"|x|1\r\nb|y|2\r\n',
    ],
)
def test_delimiters_and_a_byte_order_mark(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.csv").write_text(text, newline="", encoding="utf-8")
    assert rows_of(tmp_path / "v.csv") == [(1, "a", "x", 1.0), (2, "b", "y", 2.0)]


def test_gzip(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "v.csv.gz", "wt") as file:
        file.write("image,label,votes\na,x,1\n")
    assert rows_of(tmp_path / "v.csv.gz") == [(1, "a", "x", 1.0)]


def test_quotes_first_seen_far_below(tmp_path: Path) -> None:
    lines = ["a,x,1"] * 30_000 + ['"a, ""b""",#x,1']
    (tmp_path / "v.csv").write_text("\n".join(["image,label,votes", *lines]))
    assert rows_of(tmp_path / "v.csv")[-1] == (30_001, 'a, "b"', "#x", 1.0)


def test_a_json_array_and_a_late_key(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('[{"image": 7, "label": "x", "votes": 1}]')
    assert rows_of(tmp_path / "v.json") == [(1, "7", "x", 1.0)]
    line = '{"image": "a", "label": "x", "votes": 1}\n'
    (tmp_path / "v.jsonl").write_text(line * 30_000 + line.replace("}", ', "user": "ann"}'))
    with open_events(str(tmp_path / "v.jsonl")) as events:
        assert "user" in events.columns


def test_a_query_sees_the_files_with_types(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", IMPRESSIONS)
    query = """
        SELECT image, label, count(*) AS shown, count(*) FILTER (clicked) AS clicked
        FROM events WHERE propensity > 0.1 GROUP BY ALL ORDER BY ALL; -- a comment
    """.strip().removesuffix("; -- a comment")
    expected = [("<script>alert(1)</script>", "cat", 1.0, 1.0), ("a.png", "cat", 1.0, 1.0)]
    assert [row[1:] for row in rows_of(tmp_path / "log.csv", query + " -- why")][:2] == expected
    assert [row[1:] for row in rows_of(tmp_path / "log.csv", query + ";")][:2] == expected


@pytest.mark.parametrize("query", ["", "  ", ";", " \n; "])
def test_an_empty_query(tmp_path: Path, query: str) -> None:
    path = write_csv(tmp_path / "v.csv", {"image": ["a"], "label": ["x"], "votes": [1]})
    with pytest.raises(UserError, match=r"^--query is empty: give the SQL .* or leave it out\.$"):
        rows_of(path, query)


def test_a_query_only_reads(tmp_path: Path) -> None:
    write_csv(tmp_path / "v.csv", VOTES)
    with pytest.raises(UserError, match=r"v\.csv, query|v\.csv: Parser Error"):
        rows_of(tmp_path / "v.csv", f"COPY events TO '{tmp_path}/stolen.csv'")
    assert not (tmp_path / "stolen.csv").exists()


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.csv", b"image,label,votes\na,x,1\na,x,1,1\n", "Line: 3.*a,x,1,1.*Expected Number of"),
        ("v.csv", b'image,label,votes\n"a,x,1\n', "unterminated quote"),
        ("v.csv", b"image,label,votes\n\xff\xfe,x,1\n", "not utf-8"),
        ("v.csv", b"\xff\xfei\x00m\x00", "is not UTF-8 text: save it as UTF-8"),
        ("v.csv", b"", "is empty: its first line must name the columns"),
        ("v.csv", b"image,label,votes\n", r"v\.csv has no rows"),
        ("v.csv", b"image,label,votes,image\n", 'two columns are called "image": rename one'),
        ("v.csv.gz", b"image,label,votes\n", "cannot be read"),
        ("v.parquet", b"nothing of the kind", r"v\.parquet: .*[Pp]arquet"),
        ("v.jsonl", b'{"image": "a"\n', r"v\.jsonl: .*Malformed JSON"),
    ],
)
def test_damage(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        rows_of(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert "Possible" not in str(raised.value)


@pytest.mark.parametrize("name", [*WRITERS, "log.csv.gz", "log.jsonl.gz"])
def test_whatever_is_damaged_is_read_or_refused_in_a_line(tmp_path: Path, name: str) -> None:
    plain = name.removesuffix(".gz")
    whole = WRITERS[plain](tmp_path / plain, IMPRESSIONS).read_bytes()
    whole = gzip.compress(whole) if plain != name else whole
    said = []
    for number in range(12):
        (tmp_path / name).write_bytes(damaged(whole, seed=number))
        try:
            rows_of(tmp_path / name)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 2
    assert not [line for line in said if "\n" in line]


def test_line_ends_of_old_and_a_header_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_bytes(b"image,label,votes\ra,x,1\rb,y,2\r")
    assert rows_of(tmp_path / "old.csv") == [(1, "a", "x", 1.0), (2, "b", "y", 2.0)]
    (tmp_path / "huge.csv").write_bytes(b'"' + b"x" * 200_000 + b'",label\n')
    with pytest.raises(UserError, match=r'huge\.csv": its first line names no columns'):
        rows_of(tmp_path / "huge.csv")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a" * 300 + ".csv", "cannot be read: File name too long"),
        ("evnts.csv", r'not found\. Did you mean "events\.csv"\?'),
        ("nowhere/events.csv", "there is no folder"),
        ("*.parquet", "matches no file"),
        ("empty", r"holds no \.parquet, \.csv or \.jsonl file"),
        ("mixed", "files of several formats"),
        ("*.txt", r'notes\.txt" cannot be read\. Feedback is a \.csv'),
        ("notes.txt", "cannot be read"),
        ("headers", "has another header than"),
    ],
)
def test_missing_and_foreign_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "mixed", "headers"):
        Path(folder).mkdir()
    for path in (Path("events.csv"), Path("mixed/a.csv"), Path("headers/a.csv")):
        write_csv(path, VOTES)
    write_json_lines(Path("mixed/b.jsonl"), VOTES)
    write_csv(Path("headers/b.csv"), dict(reversed(VOTES.items())))
    Path("notes.txt").write_text("")
    with pytest.raises(UserError, match=message):
        rows_of(spec)


def test_find_files_expands_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files("~/v.csv" if write_csv(tmp_path / "v.csv", VOTES) else "") == [
        tmp_path / "v.csv"
    ]


def test_first_line_leaves_advice_out() -> None:
    told = "Error: line 3\nOriginal Line: x\nPossible fixes:\n* Enable null padding"
    assert first_line(told) == "Error: line 3; Original Line: x"
    assert first_line('Binder Error: no column "x"\n\nLINE 1: SELECT x') == (
        'Binder Error: no column "x"'
    )
    postgres = 'ERROR:  column "x" does not exist\nLINE 1: SELECT x\n   ^\n\nQuery was: SELECT x'
    assert first_line(postgres) == 'ERROR:  column "x" does not exist'
    assert first_line("no such column: x\nquery: SELECT x") == "no such column: x"
