"""How the source is built, in numbers: sizes, declarations, and the files that a thing passes.

    python benchmarks/house.py            # a table in Markdown; about a minute
    python benchmarks/house.py --static   # without the two walks, which train tiny models

A *walk* is counted on a call trace of one step: every file of the package with a function that

* is on the stack when the thing is used (the reward's file is imported, the reward called; an image
  file is opened), or
* takes or gives the thing, by itself or inside sequences, mappings and dataclasses of at most three
  levels. Of a reward: its words, the function, what it returned and every tensor computed from
  that. Of pixels: the name of their file or table, an image, an array of patches.

That is what somebody has to open who follows the thing from the command line to the loss, or to
the tower. Counted like this, commit a67ee32 had 23 and 46.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import io
import json
import os
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import visgrpo

SOURCE = Path(visgrpo.__file__).parent
REPOSITORY = SOURCE.parents[1]
LEVELS = 3  # of sequences, mappings and dataclasses in which a thing is still seen

Row = tuple[str, int | str]


def sizes() -> list[Row]:
    """Return lines and files of the source and of the tests."""
    source, tests = _python(SOURCE), _python(REPOSITORY / "tests")
    folders = Counter(file.parent for file in source)
    largest, count = max(folders.items(), key=lambda item: item[1])
    name = "visgrpo" if largest == SOURCE else str(largest.relative_to(SOURCE))
    return [
        ("source lines", sum(map(_lines, source))),
        ("source files", len(source)),
        (f"files of the largest folder ({name}/)", count),
        ("modules that one other alone imports", len(single_importers())),
        ("test lines", sum(map(_lines, tests))),
        ("test files", len(tests)),
    ]


def declarations() -> list[Row]:
    """Return how often options are declared, and how many names they have."""
    from visgrpo.cli import COMMANDS

    classes = {
        each
        for command in COMMANDS.values()
        for each in _loaded(command.config).__mro__
        if each.__module__.startswith("visgrpo.") and dataclasses.is_dataclass(each)
    }
    told = [name for each in classes for name in _declared_in(each)]
    return [("option declarations", len(told)), ("option names", len(set(told)))]


def single_importers() -> list[str]:
    """Return the modules that exactly one other module of the package imports."""
    modules = {_module(file): file for file in _python(SOURCE)}
    importers: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found = inner if inner in modules else node.module
                    if found in importers:
                        importers[found].add(name)
    return sorted(name for name, users in importers.items() if len(users) == 1)


def walks() -> list[Row]:
    """Return the files on the walk of a reward and on that of pixels."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return [
            ("files on a reward's walk", len(reward_walk())),
            ("files on the pixels' walk", len(pixels_walk())),
        ]


def reward_walk() -> list[str]:
    """Return the files that `visgrpo clip --reward rewards.py:f` passes to the loss."""
    import torch

    class Earned(torch.Tensor):
        """What the reward returned; whatever is computed from it is of this class, too."""

    Path("rewards.py").write_text(
        "import house\n\nhouse.used()\n\n\ndef f(outputs, label):\n"
        "    return house.earned((outputs == label[:, None]).float())\n"
    )
    run(
        "pretrain clip --data digits --image-size 16 --patch-size 8 --width 16 --layers 1 --heads 2"
        " --features 8 --train-slice :64 --steps 1 --output start"
    )

    def is_reward(value: Any) -> bool:
        if isinstance(value, str):
            return value == "rewards.py:f"
        is_function = isinstance(value, FunctionType) and value.__code__.co_name == "f"
        return isinstance(value, Earned) or is_function

    walk = Walk(is_reward)

    def earned(values: torch.Tensor) -> torch.Tensor:
        walk.used()
        return values.as_subclass(Earned)

    house = type(sys)("house")
    house.used, house.earned = walk.used, earned  # type: ignore[attr-defined]
    sys.modules["house"] = house
    with walk:
        run(
            "clip --model start/model --data digits --train-slice :64 --steps 1 --batch-size 8 "
            "--reward rewards.py:f --output run"
        )
    return walk.files()


def pixels_walk() -> list[str]:
    """Return the files that images pass in `visgrpo vlm --method grpo`, from file to tower."""
    import numpy as np
    import torch
    from PIL import Image

    rows = []
    for row in range(24):
        pixels_HW3 = np.random.default_rng(row).integers(255, size=(56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels_HW3).save(f"{row}.png")
        rows.append({"image": f"{row}.png", "question": "How many?", "answer": str(row % 3)})
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = (
        "vlm --data rows.jsonl --steps 1 --batch-size 4 --max-new-tokens 4 --eval-images 4 "
        "--style direct"
    )
    run(f"{shared} --method sft --preset tiny --output sft")
    vision = json.loads(Path("sft/model/config.json").read_text())["vision_config"]
    patch = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2

    def is_pixels(value: Any) -> bool:
        if isinstance(value, torch.Tensor | np.ndarray):
            return value.ndim > 1 and value.shape[-1] == patch
        if isinstance(value, str | Path):
            return str(value).endswith((".png", "rows.jsonl"))
        return isinstance(value, Image.Image)

    walk = Walk(is_pixels)
    real = Image.open

    def opened(*arguments: Any, **options: Any) -> Any:
        walk.used()
        return real(*arguments, **options)

    Image.open = opened
    try:
        with walk:
            run(f"{shared} --method grpo --model sft/model --group-size 2 --output grpo")
    finally:
        Image.open = real
    return walk.files()


class Walk:
    """Collects the files of functions through which a thing passes, while it is entered."""

    def __init__(self, is_thing: Callable[[Any], bool]) -> None:
        self.is_thing = is_thing
        self._files: set[str] = set()
        self._root = f"{SOURCE}{os.sep}"

    def used(self) -> None:
        """Note every file on the stack."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            self._note(frame.f_code)
            frame = frame.f_back

    def files(self) -> list[str]:
        """Return the files, relative to the package."""
        return sorted(file.removeprefix(self._root) for file in self._files)

    def __enter__(self) -> Walk:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, code: CodeType) -> None:
        if code.co_filename.startswith(self._root):
            self._files.add(code.co_filename)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or code.co_filename in self._files:
            return
        if not code.co_filename.startswith(self._root) or code.co_name == "<module>":
            return
        if event == "return":
            given = [argument]
        else:
            count = code.co_argcount + code.co_kwonlyargcount
            given = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        if any(self._holds(value, LEVELS) for value in given):
            self._note(code)

    def _holds(self, value: Any, levels: int) -> bool:
        if self.is_thing(value):
            return True
        if levels == 0:
            return False
        inner: Sequence[Any] = ()
        if isinstance(value, Mapping):
            inner = list(value.values())[:8]
        elif isinstance(value, list | tuple):
            inner = value[:8]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        return any(self._holds(each, levels - 1) for each in inner)


def run(words: str) -> None:
    """Run a command on the processor, quietly and without a page."""
    from visgrpo.cli import main

    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        main([*words.split(), "--device", "cpu", "--no-report"])


def table(rows: Sequence[Row]) -> str:
    """Return rows as Markdown."""
    return "\n".join(["| what | count |", "|---|---:|", *(f"| {n} | {c:,} |" for n, c in rows)])


def _python(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.py")) if "__pycache__" not in file.parts]


def _lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def _module(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _loaded(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _declared_in(options: type) -> list[str]:
    """Return the options that a class declares itself, not those it only says differently."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(options)))
    found = [node for node in tree.body[0].body if isinstance(node, ast.AnnAssign)]  # type: ignore[attr-defined]
    said = {ast.unparse(node.target): ast.unparse(node) for node in found}
    again = (" = like(", " = override(")
    return [
        name
        for name, text in said.items()
        if "ClassVar" not in text and not any(words in text for words in again)
    ]


def main() -> None:
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("--static", action="store_true", help="leave out the walks")
    found.add_argument("--names", action="store_true", help="name the files of the walks")
    options = found.parse_args()
    rows = [*sizes(), *declarations()]
    if options.names:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for name, walk in (("reward", reward_walk()), ("pixels", pixels_walk())):
                print(f"{name}: {len(walk)}", *walk, sep="\n  ")
        return
    print(table(rows if options.static else [*rows, *walks()]))


if __name__ == "__main__":
    main()
