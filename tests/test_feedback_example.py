"""docs/feedback.md: its example makes readable tables, its Python runs, its options exist."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import visgrpo as vg
from visgrpo.cli import COMMANDS
from visgrpo.feedback.worth.cells import log_cells

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "feedback.md"
IMAGES, EVENTS, PEOPLE = 1293 + 360, 30, 12


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the guide calls shop."""
    folder = tmp_path_factory.mktemp("guide") / "shop"
    script = ROOT / "examples" / "simulate_feedback.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(folder)])
        runpy.run_path(str(script), run_name="__main__")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("clicks", "impressions", IMAGES * EVENTS),
        ("votes", "votes", IMAGES * PEOPLE),
        ("preferences", "preferences", IMAGES * EVENTS),
        ("grades", "grades", IMAGES * EVENTS),
    ],
)
def test_the_example_makes_a_table_of_every_kind(
    shop: Path, name: str, kind: str, rows: int
) -> None:
    with vg.open_events(str(shop / f"{name}.parquet")) as events:
        assert (events.kind, events.rows, events.notes) == (kind, rows, ())


def test_its_propensities_are_those_that_labels_were_drawn_with(shop: Path) -> None:
    """Of a policy that shows all labels alike the ratios to them then average 1."""
    images = vg.read_split(str(shop / "digits"), "train")
    with vg.open_events(str(shop / "clicks.parquet")) as events:
        keys = vg.image_keys(images.columns, len(images))
        cells = log_cells(vg.match(events, keys, images.classes))
    uniform_MK = np.full((len(images), 10), 0.1)
    overlap, remarks = vg.check_support(cells, uniform_MK, least_share=0.01)
    assert overlap.mean_ratio.value == pytest.approx(1, abs=4 * overlap.mean_ratio.error)
    assert overlap.mean_ratio.error < 0.01
    assert overlap.images == len(images)
    assert not remarks


def test_photos_are_the_images_that_tables_name(shop: Path) -> None:
    with vg.open_events(str(shop / "votes.parquet")) as events:
        named = events.connection.execute("SELECT DISTINCT image FROM events").fetchall()
    assert {name for (name,) in named} == {file.name for file in (shop / "photos").iterdir()}


def test_the_guide_s_python_runs(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    monkeypatch.chdir(shop.parent)
    exec(compile(code, str(GUIDE), "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def guide_commands() -> list[list[str]]:
    """The words after "visgrpo" in the guide's commands, without brackets."""
    text = re.sub(r"\\\n +", " ", GUIDE.read_text())
    lines = re.findall(r"^    visgrpo (?!:)(.+)$", text, re.MULTILINE)
    return [shlex.split(line.replace("[", "").replace("]", "")) for line in lines]


def test_every_option_in_the_guide_s_commands_exists() -> None:
    commands = guide_commands()
    assert len(commands) > 10
    for words in commands:
        name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
        module, _, config = str(COMMANDS[name].config).partition(":")
        options = {option.name for option in fields(getattr(import_module(module), config))}
        given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert given <= options, f"{name}: {given - options}"


def test_every_link_of_the_guide_to_a_file_is_there() -> None:
    for target in re.findall(r"\]\((?!https://)([^)#]+)\)", GUIDE.read_text()):
        assert (GUIDE.parent / target).exists(), target
