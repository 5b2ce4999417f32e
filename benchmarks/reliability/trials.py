"""Commands as forked children of one process that has loaded the libraries, and tiny runs for them.

The parent computes nothing: threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "golden"), str(ROOT / "src")]

from runs import RUNS, Workshop, blank_plots  # noqa: E402

LIMIT = 600.0  # seconds that a child may take
Row = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal; what it said; what it took."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int

    @property
    def told(self) -> bool:
        """Whether a mistake was said as one should be: exit code 2, one last line, no traceback."""
        lines = self.err.strip().splitlines()
        return self.code == 2 and bool(lines) and lines[-1].startswith("visgrpo: ")

    @property
    def broke(self) -> bool:
        """Whether there was a traceback, a hang, or a death that nobody asked for."""
        return "Traceback" in self.err or "Traceback" in self.out or self.code not in (0, 2, 130)


@dataclass
class Count:
    """Trials of one kind: how many ended how, and the first that went wrong."""

    what: str
    ends: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, end: str, wrong: str = "") -> None:
        self.ends[end] = self.ends.get(end, 0) + 1
        if wrong:
            self.wrong.append(wrong)
            print(f"  {self.what}: {wrong}", file=sys.stderr)

    def tell(self, after: str) -> None:
        """Say how far it is."""
        print(f"  after {after}: {self.what}: {self.ends}", file=sys.stderr)

    @property
    def row(self) -> Row:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        trials, wrong = sum(self.ends.values()), len(self.wrong)
        return {"what": self.what, "trials": trials, "wrong": wrong, "how they ended": ends}


def load_libraries() -> None:
    """Import what commands import, once for all children."""
    import peft  # noqa: F401
    import torch
    import transformers
    from transformers import CLIPModel  # noqa: F401

    from visgrpo.cli import COMMANDS, commands
    from visgrpo.tasks.task import TASKS, task_named

    for name in TASKS:
        task_named(name)
    assert len(commands()) >= len(COMMANDS)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def start(
    words: Sequence[str], folder: Path, said: Path, before: Callable[[], None] = lambda: None
) -> int:
    """Fork a command in a folder; it writes to said.out and said.err. Returns the child's id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be(words, folder, said, before)
    return child


def _be(words: Sequence[str], folder: Path, said: Path, before: Callable[[], None]) -> NoReturn:
    from visgrpo.cli import main

    os.setpgid(0, 0)
    for number, ending in ((1, ".out"), (2, ".err")):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(said.with_suffix(ending), flags), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        os.chdir(folder)
        before()
        with blank_plots():
            main(list(words))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, words: Sequence[str], said: Path, begun: float, limit: float) -> Ended:
    """Wait for a child, which is killed after its limit; code -100 says so."""
    late = False
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - begun > limit:
            late = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    code = -100 if late else os.waitstatus_to_exitcode(status)
    out, err = (said.with_suffix(e).read_text(errors="replace") for e in (".out", ".err"))
    seconds = time.monotonic() - begun
    return Ended(tuple(words), code, out, err, seconds, used.ru_maxrss * 1024)


def run(
    words: Sequence[str],
    folder: Path,
    before: Callable[[], None] = lambda: None,
    *,
    send: tuple[float, int] | None = None,
    limit: float = LIMIT,
) -> Ended:
    """Run a command to its end; `send` is a signal and the seconds after which it is sent."""
    said = folder / "said"
    begun = time.monotonic()
    child = start(words, folder, said, before)
    if send is not None:
        time.sleep(send[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, send[1])
    return wait(child, words, said, begun, limit)


def in_child(work: Callable[[], Any], file: Path) -> Any:
    """Return what a function returns, as JSON, called in a child that may use threads."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                file.write_text(json.dumps(work()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("a child that prepares the trials has failed")
    return json.loads(file.read_text())


class Bench(Workshop):
    """Golden runs as words: data and the runs that others start from are made in a child.

    Attributes:
        only: the recipes, or kinds of what is damaged, that are tried; all where none is named.
    """

    only: Sequence[str] = ()

    @property
    def scratch(self) -> Path:
        return self.folder / "found.json"

    def prepare(self, texts: Iterable[str]) -> None:
        """Make all that the words of some runs need, if they were not made before."""

        def make() -> dict[str, str]:
            maker = Workshop(self.folder)
            for text in texts:
                with contextlib.chdir(self.folder):
                    maker.filled(text)
            return {name: str(path) for name, path in maker._made.items()}

        file = self.folder / "made.json"
        made = json.loads(file.read_text()) if file.exists() else in_child(make, file)
        self._made |= {name: Path(path) for name, path in made.items()}

    def words(self, name: str, output: str, *more: str) -> list[str]:
        """The words of a golden run that writes a page, too."""
        return [*self.filled(RUNS[name].words), *more, "--output", output]


def rows_of(*counts: Count) -> list[Row]:
    return [count.row for count in counts]
