"""Tiny runs of every job leave what they left before: lines, summaries, weights, printed words.

`VISGRPO_GOLDEN=exact` also compares every bit, for a change that must not change a number, on the
machine where the records were made (or made again there first). `python tests/golden/make.py`
makes the records again: their diff is what a change does to the jobs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import RUNS, Workshop

from record import differences

RECORDS = Path(__file__).with_name("records")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISGRPO_CACHE", str(folder / "cache"))
        yield Workshop(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_it_was(name: str, workshop: Workshop) -> None:
    kept = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(workshop.make(name)))
    told = differences(found, kept, exactly=os.environ.get("VISGRPO_GOLDEN") == "exact")
    assert not told, "\n".join(told[:20])


def test_every_record_has_its_run() -> None:
    assert sorted(file.stem for file in RECORDS.glob("*.json")) == sorted(RUNS)
