"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from visgrpo.arguments import parse
from visgrpo.tasks.language.options import LanguageConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "visgrpo"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_exists(page: str) -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", (ROOT / page).read_text())
    assert len(named) > 5
    gone = [
        name
        for name in named
        if not any((base / name).exists() for base in (SOURCE, ROOT))
        and not list(SOURCE.rglob(name.rstrip("/")))
    ]
    assert not gone


def test_the_commands_for_large_models_are_understood() -> None:
    """They name models of the Hub and GPUs, and are not run."""
    text = (ROOT / "docs" / "scale.md").read_text().replace("\\\n", " ")
    found = re.findall(r"(?:-m |    )visgrpo language (.+)", text)
    assert len(found) == 5
    for words in found:
        parse(LanguageConfig, "language", words.split(), ()).check()


def test_every_room_is_on_the_architecture_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    text = text[text.index("## Rooms") : text.index("## A task")]
    rooms = {path.name for path in SOURCE.iterdir() if path.name[0] not in "_."}
    rooms = {name if name.endswith(".py") else f"{name}/" for name in rooms if name != "py.typed"}
    listed = set(re.findall(r"^      ([a-z]+(?:/|\.py)) ", text, re.MULTILINE))
    assert listed == rooms
