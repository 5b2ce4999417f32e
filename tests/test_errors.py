"""What reaches the terminal of names and labels that may be anyone's."""

from __future__ import annotations

import pytest

from visgrpo.cli import main
from visgrpo.errors import printable
from visgrpo.tasks.run import print_notes
from visgrpo.training.processes import Processes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),  # ANSI, OSC
        ("\x9b2J\x7f", r"\x9b2J\x7f"),  # the one-byte form of the same
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("cat\u202egnp.exe\u2066\u2028", r"cat\u202egnp.exe\u2066\u2028"),
        ("\udcff.png", r"\udcff.png"),  # a file name that is not UTF-8
        (
            "Größe, 猫\u3000猫, 👩\u200d🔬, \\x1b, 1\xa0%",
            "Größe, 猫\u3000猫, 👩\u200d🔬, \\x1b, 1\xa0%",
        ),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_mistakes_and_notes_are_printed_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["\x1b[2Jclip"])
    print_notes(["\x1b[2J was left out"], Processes("cpu"))
    said = capsys.readouterr().err
    assert r'visgrpo: Unknown command "\x1b[2Jclip"' in said
    assert r"note: \x1b[2J was left out" in said
    assert "\x1b" not in said
