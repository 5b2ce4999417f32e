"""Whatever is printed goes through `visgrpo.terminal`, and steers no terminal."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import visgrpo
from visgrpo.cli import main
from visgrpo.terminal import json_text, say, show, show_json, show_table

Capture = pytest.CaptureFixture[str]
SOURCE = Path(visgrpo.__file__).parent
EVIL = "\x1b]0;owned\x07sk\x9b2Jy\u202e[red]"
SHOWN = r"\x1b]0;owned\x07sk\x9b2Jy\u202e[red]"
PRINTING = ("terminal.py",)


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.stem)
def test_nothing_else_prints(file: Path) -> None:
    if str(file.relative_to(SOURCE)) in PRINTING:
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "Console", "sys.stdout.write"), (
                node.lineno
            )
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("rich.console", "rich.table")


def test_text_tables_and_json(capsys: Capture) -> None:
    show(f"first\n{EVIL}\tand")
    say(EVIL)
    show_table([EVIL], [[EVIL], ["a\nb"]], title=EVIL)
    show_table([], [["a", "b\nc"]], lines=True)
    captured = capsys.readouterr()
    for text in captured:
        assert not set(text) & set("\x1b\x07\x9b\u202e\t")
    assert captured.out.startswith(f"first\n{SHOWN} ")
    assert captured.out.count(SHOWN) == 4
    assert "[red]" in captured.out  # is no markup
    assert captured.err == f"{SHOWN}\n"
    assert r"│ a\nb" in captured.out
    value = {EVIL: ["two\nlines", "\udcff\x7f", "Größe 猫"]}
    show_json(value)
    text = capsys.readouterr().out
    assert not set(text) & set("\x1b\x07\x9b\x7f\u202e")
    assert "Größe 猫" in text
    assert json.loads(text) == value == json.loads(json_text(value).encode())


def test_names_of_classes(start: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    for folder in data.glob("*/sky"):
        folder.rename(folder.with_name(EVIL))
    image = data / "test" / EVIL / "000.png"
    capsys.readouterr()
    for more in ([], ["--json", "-"]):
        main(["evaluate", str(start), "--data", str(data), "--device", "cpu", *more])
        main(["predict", str(start), str(image), "--classes", EVIL, "leaf", *more])
        captured = capsys.readouterr()
        for text in captured:
            assert not set(text) & set("\x1b\x07\x9b\u202e")
        assert (SHOWN in captured.out) == (not more)
    with pytest.raises(SystemExit):
        main(["clip", "--data", EVIL])
    assert SHOWN in capsys.readouterr().err


def test_a_narrow_table_cuts_nothing_off(capsys: Capture) -> None:
    show_table(["run", "accuracy"], [["clicked-labels", "0.500"]], width=20)
    text = capsys.readouterr().out
    assert "…" not in text
    columns = [line.split("│" if "│" in line else "┃")[1:3] for line in text.splitlines()]
    names = "".join(cells[0].strip() for cells in columns if len(cells) == 2)
    assert names == "runclicked-labels"
