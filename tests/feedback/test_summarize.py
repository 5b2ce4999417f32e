"""`visgrpo feedback summarize` from a table to text, JSON and a page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from visgrpo.errors import UserError
from visgrpo.feedback.options import SummarizeConfig
from visgrpo.feedback.summary import summarize

LOG = """image,label,clicked,time
cat/1.png,red,1,100
cat/1.png,[bold]blue,0,90
dog/1.png,red,1,110
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def test_it_prints_what_is_there_and_what_is_not(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summarize(SummarizeConfig(events=str(log)))
    printed = capsys.readouterr().out
    assert found["coverage"]["share"] == 0.75
    for text in (
        "log.csv",
        "66.7 %",
        "[bold]blue",
        "note: the clock of log.csv goes backwards once, first at row 2",
        "missing: propensity, so learning from the log off-policy and replay are not possible",
    ):
        assert text in printed


def test_json_is_the_only_thing_printed(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    found = summarize(SummarizeConfig(events=str(log), json="-", output=str(page)))
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(found))
    assert printed["details"]["clicked"] == 2
    assert page.exists()


def test_coverage_of_a_folder_of_images(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for label in ("red", "blue"):
        for n in range(10):
            file = tmp_path / "photos" / label / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4 + n, 4), label).save(file)
    log.write_text(
        "image,label,clicked\nred/1.png,red,1\nphotos/blue/2.png,Red,0\nlost.png,red,1\n"
    )
    found = summarize(SummarizeConfig(events=str(log), data=str(tmp_path / "photos")))
    assert (found["coverage"]["images"], found["coverage"]["pairs"]) == (20, 2)
    assert found["coverage"]["share"] == 2 / 40
    assert 'not in the data: "lost.png" (1)' in capsys.readouterr().out


def test_coverage_of_photos(log: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "photos"
    for name in ("a.png", "b.png", "2024/c.png", "2024/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    log.write_text("image,label,clicked\na.png,red,1\n2024/c.png,blue,0\nlost.png,green,1\n")
    coverage = summarize(SummarizeConfig(events=str(log), data=str(folder)))["coverage"]
    # Four photos, and the three labels in the table.
    assert (coverage["images"], coverage["labels"], coverage["pairs"]) == (4, 3, 2)
    assert (coverage["share"], coverage["unmatched_rows"]) == (2 / 12, 1)
    log.write_text("image,preferred,rejected\na.png,red,blue\n2024/d.png,blue,grey\n")
    coverage = summarize(SummarizeConfig(events=str(log), data=str(folder)))["coverage"]
    assert (coverage["labels"], coverage["pairs"], coverage["share"]) == (3, 4, 4 / 12)


def test_escapes_in_labels_are_shown_and_not_obeyed(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number in range(20):
        file = tmp_path / "photos" / ("red" if number % 2 else "blue") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + number, 4)).save(file)
    log.write_text("image,label,clicked\n\x1b[31mlost.png,red,1\n1.png,red,1\n")
    summarize(SummarizeConfig(events=str(log), data=str(tmp_path / "photos")))
    assert r'not in the data: "\x1b[31mlost.png" (1)' in capsys.readouterr().out
    log.rename(hostile := tmp_path / "\x1b[31mlog.csv")
    hostile.write_text("image,label,clicked\n1.png,\x1b]0;owned\x07,1\n1.png,red,0\n")
    summarize(SummarizeConfig(events=str(hostile)))
    printed = capsys.readouterr().out
    assert r"\x1b[31mlog.csv" in printed
    assert r"\x1b]0;owned\x07" in printed
    assert "\x1b" not in printed


def test_a_query_and_duplicates(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(LOG + "dog/1.png,red,1,110\n")
    with pytest.raises(UserError, match="row 4 repeats row 3"):
        summarize(SummarizeConfig(events=str(log)))
    found = summarize(SummarizeConfig(events=str(log), drop_duplicates=True))
    assert (found["rows"], found["notes"][0]) == (3, "1 row of log.csv dropped as duplicates")
    query = "SELECT image, label, clicked FROM events WHERE label = 'red'"
    assert summarize(SummarizeConfig(events=str(log), query=query))["rows"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a table of feedback: visgrpo feedback summarize"),
        ({"events": "x.csv", "id_column": "file"}, "--id-column is about --data"),
        ({"events": "nowhere.csv"}, "not found"),
    ],
)
def test_mistakes(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        summarize(SummarizeConfig(**options))  # type: ignore[arg-type]


def test_it_needs_no_torch(log: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from visgrpo.feedback.options import SummarizeConfig;"
        "assert not {'duckdb', 'matplotlib', 'numpy'} & set(sys.modules);"
        "from visgrpo.feedback.summary import summarize;"
        f"summarize(SummarizeConfig(events={str(log)!r}, output={str(tmp_path / 'p.html')!r}));"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
