"""A run's folder belongs to one process at a time, and to nobody after its death."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from visgrpo.errors import UserError
from visgrpo.locks import FolderLock
from visgrpo.tasks.run import open_session
from visgrpo.training.options import Loop

HOLD = """
import sys, time
from pathlib import Path
from visgrpo.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A folder that another process holds."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_refused_while_another_process_holds_it(tmp_path: Path) -> None:
    """Its death, even by kill -9, sets the folder free."""
    run = tmp_path / "run"
    with held(run) as process:
        with pytest.raises(UserError, match=f"is in use by process {process.pid}: wait"):
            FolderLock(run)
        assert run.exists()
    FolderLock(run).release()


@pytest.mark.parametrize("resume", [False, True])
def test_neither_a_new_run_nor_a_resumed_one_enters(tmp_path: Path, resume: bool) -> None:
    """The second learns who is there, before it looks at what is in the folder."""
    run = tmp_path / "run"
    with held(run):
        (run / "config.yaml").write_text("recipe: clip\n")
        with pytest.raises(UserError, match="is in use by process"):
            open_session(Loop(output=str(run), resume=resume), "unused")
    assert (run / "config.yaml").exists()


def test_what_was_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with FolderLock(tmp_path / "c"):
        (tmp_path / "c" / "file").touch()
    assert (tmp_path / "c" / "file").exists()


def test_of_several_processes_of_a_run_one_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with held(tmp_path / "run"):
        FolderLock(tmp_path / "run").release()
