"""The golden runs: words of commands, each tiny, and the data they read.

``{name}`` stands for a data set of DATA or for the folder of another run, which is made first.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from making import CLASSES, write_counts, write_masks, write_pictures, write_table, write_text
from record import Record, record_of
from visgrpo.cli import main

_LOOP = "--device cpu --learning-rate 1e-3 --log-every 1 --batch-size"
_CLIP = f"clip --model {{pretrain-clip}}/model --data {{pictures}} {_LOOP} 8 --steps 4"
_STALE = f"{_CLIP} --minibatches 2 --inner-passes 2 --refresh-every 3 --save-every 2 --keep last"
_BACKBONE = f"--model {{pretrain-backbone}}/model {_LOOP} 8 --steps 4 --hidden 8"
_TEXT = f"language --data {{text}} --validation-fraction 0.1 {_LOOP} 4 --steps 4 --eval-every 2"
_PROMPTS = "--max-new-tokens 8 --prompt-tokens 8"
_SPEAK = f"--model {{language-sft}}/model {_PROMPTS} --eval-prompts 4"
_GROUPS = "--group-size 4 --reward gold"
_SEE = f"vlm --data {{counts}} {_LOOP} 4 --steps 3 --eval-every 3 --eval-images 6"
_SAMPLE = "--max-new-tokens 6"


@dataclass(frozen=True)
class Run:
    """Words of a command; with ``killed``, it is stopped within that update and resumed.

    What is printed by a command that leaves no run is kept instead.
    """

    words: str
    killed: int | None = None
    printed: bool = False


RUNS: Mapping[str, Run] = {
    "pretrain-clip": Run(
        f"pretrain clip --data {{pictures}} {_LOOP} 16 --steps 6 --image-size 16 --patch-size 8 "
        "--width 32 --layers 2 --heads 2 --features 16 --vocabulary 300 --keep last"
    ),
    "pretrain-backbone": Run(
        f"pretrain backbone --data {{pictures}} {_LOOP} 16 --steps 4 --eval-every 2 "
        "--family dinov2 --image-size 16 --patch-size 8 --width 16 --layers 2 --heads 2 "
        "--projection 8"
    ),
    "clip-sampled": Run(f"{_CLIP} --augment crop flip --reward hard top-k:2 --group-size 4"),
    "clip-exact-lora": Run(
        f"{_CLIP} --estimator exact --train lora --lora-rank 2 "
        "--entropy-weight 0.01 --reward {reward}:odd --minibatches 2 --method dapo"
    ),
    "clip-supervised": Run(f"{_CLIP} --method supervised --train full --retention {{others}}"),
    "clip-baseline": Run(f"{_CLIP} --baseline --method reinforce --supervised-weight 0.5"),
    "clip-votes": Run(f"{_CLIP} --feedback {{votes}} --reward votes --unknown predict"),
    "clip-log": Run(
        f"{_CLIP} --feedback {{log}} --reward clicks --off-policy self-normalized --estimator exact"
    ),
    "clip-killed": Run(_STALE, killed=5),
    "representation-frozen": Run(
        f"representation --data {{pictures}} {_BACKBONE} --shifts grey --cache {{cache}}"
    ),
    "representation-full": Run(
        f"representation --data {{pictures}} {_BACKBONE} --train full --class-subset 2 "
        "--augment flip --probe none"
    ),
    "representation-lora": Run(
        f"representation --data {{pictures}} {_BACKBONE} --train lora --lora-rank 2 --baseline "
        "--probe knn --estimator sampled --group-size 4"
    ),
    "segmentation": Run(f"segmentation --data {{masks}} {_BACKBONE} --train last-blocks"),
    "segmentation-frozen": Run(
        f"segmentation --data {{masks}} {_BACKBONE} --decide-at pixel --estimator exact"
    ),
    "language-sft": Run(f"{_TEXT} --method sft --preset tiny --context 48"),
    "language-preferences": Run(
        "language --data {text} --validation-fraction 0.1 --device cpu --method preferences "
        f"--model {{language-sft}}/model {_PROMPTS} --pairs 24"
    ),
    "language-reward": Run(
        f"language --data {{language-preferences}}/pairs.jsonl --model {{language-sft}}/model "
        f"--validation-fraction 0.1 {_LOOP} 4 --steps 4 --method reward"
    ),
    "language-grpo": Run(f"{_TEXT} --method grpo {_SPEAK} {_GROUPS} --minibatches 2"),
    "language-grpo-lora": Run(
        f"{_TEXT} --method grpo {_SPEAK} --group-size 4 --train lora --lora-rank 2 --kl-in reward "
        "--reward model:{language-reward}"
    ),
    "language-ppo": Run(f"{_TEXT} --method ppo {_SPEAK} {_GROUPS} --critic-warmup 1"),
    "language-ppo-killed": Run(
        f"{_TEXT} --method ppo {_SPEAK} {_GROUPS} --critic head --critic-warmup 1 "
        "--kl-target 0.05 --keep last",
        killed=3,
    ),
    "language-best-of-n": Run(
        "language --data {text} --validation-fraction 0.1 --device cpu --method best-of-n "
        f"{_SPEAK} --samples 4 --reward gold"
    ),
    "vlm-sft": Run(f"{_SEE} --method sft --preset tiny {_SAMPLE}"),
    "vlm-grpo": Run(
        f"{_SEE} --method grpo --model {{vlm-sft}}/model {_SAMPLE} --group-size 3 --minibatches 2 "
        "--reward format {reward}:vowels"
    ),
    "vlm-grpo-lora": Run(
        f"{_SEE} --method grpo --model {{vlm-sft}}/model {_SAMPLE} --group-size 3 --train lora "
        "--reward {reward}:vowels --lora-rank 2 --refresh-every 2"
    ),
    "evaluate-clip": Run(
        "evaluate {clip-sampled}/model --data {pictures} --device cpu --json -", printed=True
    ),
    "evaluate-backbone": Run(
        "evaluate {representation-full}/model --data {pictures} --probe knn --device cpu --json -",
        printed=True,
    ),
    "evaluate-segmentation": Run(
        "evaluate {segmentation}/model --data {masks} --device cpu --json -", printed=True
    ),
    "evaluate-language": Run(
        "evaluate {language-grpo}/model --data {text} --device cpu --json -", printed=True
    ),
    "evaluate-vlm": Run(
        "evaluate {vlm-grpo}/model --data {counts} --device cpu --max-new-tokens 6 --json -",
        printed=True,
    ),
    "predict-clip": Run("predict {clip-sampled}/model {picture} --device cpu", printed=True),
    "predict-vlm": Run(
        "predict {vlm-grpo}/model {square} --ask How_many? --device cpu --max-new-tokens 6",
        printed=True,
    ),
}


def _votes(folder: Path) -> Path:
    rows = [
        (f"{split}/{name}/{number:03d}.png", asked, (number + 2 * k + user) % 3, f"user{user}")
        for split, count in (("train", 16), ("val", 6))
        for name in CLASSES
        for number in range(0, count, 2)
        for k, asked in enumerate(CLASSES)
        for user in range(2)
    ]
    return write_table(folder / "votes.csv", "image label votes user", rows)


def _log(folder: Path) -> Path:
    rows = [
        (
            f"{split}/{name}/{number:03d}.png",
            CLASSES[(number + turn) % 3],
            int((number + turn) % 3 == k),
            0.3333,
        )
        for split, count in (("train", 16), ("val", 6))
        for k, name in enumerate(CLASSES)
        for number in range(count)
        for turn in range(3)
    ]
    return write_table(folder / "log.csv", "image label clicked propensity", rows)


def _reward(folder: Path) -> Path:
    file = folder / "rewards.py"
    file.write_text(
        '"""A reward of the user\'s own."""\n\n\n'
        "def odd(outputs, label):\n"
        "    return (outputs == label[:, None]) + 0.25 * (outputs % 2)\n\n\n"
        "def vowels(completions, **_):\n"
        "    told = [c if isinstance(c, str) else c[0]['content'] for c in completions]\n"
        "    return [sum(letter in 'aeiou' for letter in text) / 4 for text in told]\n"
    )
    return file


DATA: Mapping[str, Callable[[Path], Path]] = {
    "pictures": lambda folder: write_pictures(folder / "pictures"),
    "others": lambda folder: write_pictures(folder / "others", {"train": 2, "test": 3}),
    "masks": lambda folder: write_masks(folder / "masks"),
    "counts": lambda folder: write_counts(folder / "counts"),
    "text": lambda folder: write_text(folder / "short.txt"),
    "votes": _votes,
    "log": _log,
    "reward": _reward,
    "cache": lambda folder: folder / "cache",
}
# Files of data sets, by the data set.
FILES = {"picture": ("pictures", "test/leaf/000.png"), "square": ("counts", "3.png")}


class Killed(BaseException):
    """Thrown within an update; nothing of ours expects it."""


@contextlib.contextmanager
def killed_at(update: int) -> Iterator[None]:
    """Stop the run as its optimiser begins this update, counted from 1."""
    seen = 0

    def stop(optimizer: Optimizer, *_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == update:
            raise Killed

    handle = register_optimizer_step_pre_hook(stop)
    try:
        yield
    except Killed:
        return
    finally:
        handle.remove()
    raise AssertionError(f"the run ended before update {update}")


@contextlib.contextmanager
def blank_plots() -> Iterator[None]:
    """Leave out of every plot its rendering, which takes most of the time of a page."""
    real = FigureCanvasAgg.print_png

    def print_png(canvas: FigureCanvasAgg, file: Path) -> None:
        Image.new("RGB", (2, 2)).save(file, "PNG")

    FigureCanvasAgg.print_png = print_png
    try:
        yield
    finally:
        FigureCanvasAgg.print_png = real


@dataclass
class Workshop:
    """Makes data and runs in a folder, each once, and names them relative to it."""

    folder: Path
    _printed: dict[str, str] = field(default_factory=dict)
    _made: dict[str, Path] = field(default_factory=dict)

    def make(self, name: str) -> Record:
        """Return the record of a run of RUNS."""
        self._run(name)
        return record_of(self.folder / name, self._printed[name])

    def _run(self, name: str) -> Path:
        """Return the relative folder of a run of RUNS, made if it is not there."""
        if name in self._made:
            return self._made[name]
        run = RUNS[name]
        words = self.filled(run.words)
        output = Path(name)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.chdir(self.folder), blank_plots():
            if run.printed:
                main(words)
            elif run.killed is None:
                main([*words, "--output", str(output), "--no-report"])
            else:
                with killed_at(run.killed):
                    main([*words, "--output", str(output), "--no-report"])
                main([*self.command(words), "--resume", "--output", str(output)])
        self._printed[name] = out.getvalue()
        self._made[name] = output
        return output

    def command(self, words: list[str]) -> list[str]:
        return words[: next(i for i, word in enumerate(words) if word.startswith("--"))]

    def filled(self, words: str) -> list[str]:
        return [self._fill(word) for word in words.split()]

    def _fill(self, word: str) -> str:
        if "{" not in word:
            return word
        before, _, rest = word.partition("{")
        name, _, after = rest.partition("}")
        return f"{before}{self._place(name)}{after}"

    def _place(self, name: str) -> Path:
        if name in RUNS:
            return self._run(name)
        if name in FILES:
            whole, inside = FILES[name]
            place = self._place(whole)
            return place / inside if place.suffix == "" else place.parent / inside
        if name not in self._made:
            self._made[name] = DATA[name](self.folder).relative_to(self.folder)
        return self._made[name]
