"""The page's server under attack: every request is answered as it should be, and others too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import attacks
import pytest
from attacks import ATTACKS, LASTING, Attack
from serving import Served, plain_images, serving

from visgrpo.collecting import server


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("attacked") / "f.db", plain_images(3)) as running:
        yield running
        with closing(sqlite3.connect(running.store)) as connection:
            assert connection.execute("SELECT count(*) FROM judgements").fetchall() == [(0,)]
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name[:60])
def test_it_is_answered_and_so_is_everybody_else(
    attacked: Served, attack: Attack, capfd: pytest.CaptureFixture[str]
) -> None:
    assert attacks.outcome(attacked.port, attack).wrong == ""
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", LASTING)
def test_nobody_can_keep_the_server_busy(
    attacked: Served, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    assert LASTING[name](attacked.port, 10.0)
    assert attacks.is_well(attacked.port)
    assert capfd.readouterr().err == ""


def test_there_are_many() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names) > 100
