"""Wrong command lines, made from what every option declares, and files that are damaged."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kills import kill, left_by, watching
from trials import Bench, Count, Ended, Row, in_child, rows_of, run

# Words that no option of a type takes.
NONSENSE = {
    int: ("many", "1.5", "", "1e400", "0x1g", "--1"),
    float: ("many", "nan", "inf", "", "1,5"),
}

# What else a command must be told, so that it comes to the word that is wrong.
REST = {
    "evaluate": "m",
    "generate": "m p",
    "predict": "m i.png",
    "report": "r",
    "compare": "r q",
    "feedback replay": "--model m --log l.csv",
    "feedback collect": "--model m --data d",
    "sweep": "clip",
    "join": "--vision v --language l --output o",
}


def wrong_words() -> Iterator[list[str]]:
    """Every command with each of its options misspelt, without a value, with one it cannot have."""
    from visgrpo.arguments import takes
    from visgrpo.cli import _load, commands

    for name, command in commands().items():
        options = takes(_load(command.config))
        first = [*name.split(), *REST.get(name, "").split()]
        for option, taken in options.items():
            flag = f"--{option.replace('_', '-')}"
            for misspelt in (flag + "x", f"--x{flag[2:]}", flag.replace("-", "--", 2)):
                yield [*first, misspelt, "1"]
            if taken.of is bool:
                yield [*first, flag, "perhaps"]
                continue
            if taken.count == 1 and not (taken.declared.bare or taken.declared.was):
                yield [*first, flag]
            if isinstance(taken.of, tuple):
                yield [*first, flag, "no-such-word"]
            for word in NONSENSE.get(taken.of, ()) if isinstance(taken.of, type) else ():
                yield [*first, flag, word]
            within = taken.declared.within
            if within.startswith((">", "(0", "[0")):
                yield [*first, flag, "-1"]


def wrong_lines(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Say wrong words, each for a few seconds at most; what is refused names the option."""

    def late(*_: object) -> None:
        raise TimeoutError("was not refused")

    def say() -> list[tuple[str, str]]:
        signal.signal(signal.SIGALRM, late)
        lines = list(wrong_words())
        random.Random(seed).shuffle(lines)
        with contextlib.chdir(bench.folder):
            return [judged(words) for words in lines[: round(len(lines) * min(scale, 1))]]

    count = Count("a wrong command line")
    for end, wrong in in_child(say, bench.folder / "lines.json"):
        count.add(end, wrong)
    return rows_of(count)


def judged(words: list[str]) -> tuple[str, str]:
    """Say words; return how it ended, and what was wrong with that."""
    from visgrpo.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    signal.alarm(5)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            code = 1
            traceback.print_exc()
    signal.alarm(0)
    told = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
    named = any(word and word in told[-1] for word in words[-2:]) if told else False
    if code == 2 and len(told) == 1 and told[0].startswith("visgrpo: ") and named:
        return "refused in a line", ""
    return "otherwise", f"{words}: code {code}, {err.getvalue()[-300:]!r}"


# Damaged files: what is done to bytes, and to JSON.

Damage = tuple[str, Path, bytes | None]  # what was done, to which file; None: it is gone

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "noise": lambda data: random.Random(0).randbytes(256),
    "zeros": lambda data: bytes(len(data)),
    "a byte order mark and Latin-1": lambda data: b"\xef\xbb\xbf" + data + b"\xe4\xff",
}
TEXTS = {
    "null": "null",
    "a list": "[]",
    "a number": "1e400",
    "a word": '"word"',
    "nested without end": "[" * 100_000,
    "keys of another kind": '{"1": {"2": null}}',
}
TEXT_FILES = {".json", ".jsonl", ".yaml", ".txt", ".jinja"}


@dataclass(frozen=True)
class Reader:
    """A command that reads a folder back; {folder} is the damaged copy."""

    words: str
    of: str  # the folder, below the bench's


READERS = {
    "clip, resumed": Reader("clip --resume --output {folder}", "half/clip-sampled"),
    "language, resumed": Reader("language --resume --output {folder}", "half/language-grpo"),
    "clip": Reader("evaluate {folder} --data pictures --device cpu --json -", "clip-sampled/model"),
    "backbone": Reader(
        "evaluate {folder} --data pictures --device cpu --json -", "representation-full/model"
    ),
    "segmentation": Reader(
        "evaluate {folder} --data masks --device cpu --json -", "segmentation/model"
    ),
    "language": Reader(
        "evaluate {folder} --data short.txt --device cpu --json -", "language-grpo/model"
    ),
    "vlm": Reader(
        "evaluate {folder} --data counts/counts.jsonl --device cpu --max-new-tokens 6 --json -",
        "vlm-grpo/model",
    ),
    "adapter": Reader(
        "evaluate {folder} --data pictures --device cpu --json -", "clip-exact-lora/adapter"
    ),
    "reward model": Reader(
        "language --data short.txt --validation-fraction 0.1 --device cpu --method best-of-n "
        "--model language-sft/model --max-new-tokens 8 --prompt-tokens 8 --eval-prompts 2 "
        "--samples 2 --reward model:{folder} --output {folder}-out --no-report",
        "language-reward/model",
    ),
    "report": Reader("report {folder}", "clip-sampled"),
    "compare": Reader("compare {folder} clip-supervised --output {folder}.html", "clip-sampled"),
}
# What of these other runs do not start from.
READ = ("{clip-exact-lora}", "{clip-supervised}", "{language-reward}", "{segmentation}")


def damages(folder: Path) -> Iterator[Damage]:
    """What may have happened to each file of a folder."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = file.relative_to(folder)
        if file.suffix in (".png", ".html", ".md"):
            continue
        data = file.read_bytes()
        yield "gone", inside, None
        for how, change in BYTES.items():
            yield how, inside, change(data)
        if file.suffix in TEXT_FILES:
            for how, text in TEXTS.items():
                yield how, inside, text.encode()
        if file.suffix == ".jsonl":
            yield "a line of another kind", inside, data + b"null\n[1]\n"
        if file.suffix == ".json":
            yield from _keys(inside, json.loads(data))


def _keys(inside: Path, values: Any) -> Iterator[Damage]:
    """A JSON object with one key's value of a kind that it cannot be."""
    for key in values if isinstance(values, dict) else ():
        for odd in ([], {"x": None}, "\x1b[31m"):
            changed = json.dumps({**values, key: odd}).encode()
            yield f"{key} is {json.dumps(odd)}", inside, changed


def damage(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Damage one file of a folder at a time and read the folder back."""
    rng = random.Random(seed)
    counts = []
    for name, reader in READERS.items():
        if bench.only and name not in bench.only:
            continue
        count = Count(f"damaged, then read: {name}")
        original = bench.folder / reader.of
        if not original.exists():
            half_done(bench, reader.of)
        plain, whole = read(bench, reader, original, None)
        assert plain.code == 0, (name, plain.err)
        listed = list(damages(original))
        for change in rng.sample(listed, min(len(listed), round(60 * scale))):
            ended, left = read(bench, reader, original, change)
            count.add(*outcome(ended, plain, left == whole, f"{change[1]} {change[0]}"))
        count.tell(name)
        counts.append(count)
    return rows_of(*counts)


def half_done(bench: Bench, place: str) -> None:
    """A run of a golden run's words, stopped after its third step, with two checkpoints."""
    name = place.split("/")[1]
    given = [*bench.words(name, place), "--save-every", "1", "--keep", "last"]
    target = bench.folder / place / "checkpoints" / "step-000003"
    run(given, bench.folder, watching(target, lambda number: kill()))


def read(bench: Bench, reader: Reader, original: Path, change: Damage | None) -> tuple[Ended, Any]:
    """Let a command read a copy of a folder, one file changed; return what came of it, too."""
    copy = bench.folder / "damaged" / original.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(original, copy)
    if change is not None:
        _, inside, data = change
        (copy / inside).unlink() if data is None else (copy / inside).write_bytes(data)
    words = reader.words.replace("{folder}", f"damaged/{original.name}").split()
    ended = run(words, bench.folder)
    if "--resume" in words and ended.code == 0:
        return ended, left_by(bench, copy)
    if "--json" in words and "{" in ended.out:
        return ended, json.loads(ended.out[ended.out.index("{") :]).get("model")
    return ended, None


def outcome(ended: Ended, plain: Ended, same: bool, what: str) -> tuple[str, str]:
    """How a command ended that read something damaged, and what was wrong with that."""
    if ended.broke:
        return "with a traceback", f"{what}: code {ended.code} {ended.err[-500:]}"
    if "\x1b[31m" in ended.out + ended.err:
        return "with an escape on the terminal", what
    if ended.told:
        return "refused in a line", ""
    if ended.code:
        return f"with code {ended.code}", f"{what}: {ended.err[-300:]}"
    if same:
        return "to the same end", ""
    told = set(ended.err.splitlines()) - set(plain.err.splitlines())
    if any(line.startswith(("warning: ", "note: ")) for line in told):
        return "said, and went on", ""
    return "silently otherwise", f"{what}: {ended.err[-300:]}"
