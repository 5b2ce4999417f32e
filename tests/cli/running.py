"""Run commands in this process on small models and a few steps, and read what they leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from visgrpo.cli import main
from visgrpo.models.save import save
from visgrpo.models.small import SmallBackbone, build_small_backbone
from visgrpo.models.small_vision import SmallVisionLanguage, build_vision_language

TIMES = {"seconds", "step_time"}
Words = Callable[..., list[str]]  # of a job, its output and its options
PRETRAINED = {
    "clip": "--layers 2 --heads 2 --features 16 --vocabulary 300 --width 32",
    "backbone": "--family dinov2 --layers 1 --heads 2 --projection 8 --width 16",
}
SMALL = ["--device", "cpu", "--batch-size", "8", "--learning-rate", "1e-3", "--log-every", "1"]


@contextlib.contextmanager
def blank_plots() -> Iterator[None]:
    """Leave out of every plot its rendering, which takes most of the time of a page."""

    def print_png(canvas: FigureCanvasAgg, file: Any) -> None:
        Image.new("RGB", (2, 2)).save(file, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", print_png)
        yield


def clip(start: Path, data: Path | str, output: Path, *options: str) -> Path:
    """`visgrpo clip` for four steps unless the options say otherwise; returns the run."""
    steps = [] if "--steps" in options or "--epochs" in options else ["--steps", "4"]
    paths = ["--model", str(start), "--data", str(data), "--output", str(output)]
    main(["clip", *paths, *SMALL, *steps, *options])
    return output


def clip_words(start: Path, data: Path | str, output: Path, *options: object) -> list[str]:
    """The words of a run of four steps of 8 images."""
    known = ["--model", start, "--data", data, "--output", output, "--device", "cpu"]
    return [str(word) for word in ["clip", *known, "--batch-size", 8, "--steps", 4, *options]]


def refused(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], *, notes: bool = False
) -> str:
    """Run a command that must be refused: exit code 2 and one line on stderr, which is returned.

    With notes, lines before that one are allowed.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines, "nothing on stderr"
    assert lines[-1].startswith("visgrpo: ")
    assert notes or len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[-1]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def read_lines(file: Path) -> list[dict[str, Any]]:
    # Not splitlines(), which also cuts at separators that JSON allows inside strings.
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times, which no two runs share."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(run / "metrics.jsonl")
    ]


def training_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in metric_lines(run) if "loss" in line]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def same_run(ours: Path, theirs: Path) -> bool:
    """Whether two runs have the same weights and the same metrics, to the bit."""
    return weights(ours) == weights(theirs) and metric_lines(ours) == metric_lines(theirs)


# Backbones


Job = Literal["representation", "segmentation"]
VIT = SmallBackbone("dinov2", image_size=16, patch_size=4, width=16, layers=2, heads=2)
RESNET = SmallBackbone("resnet", image_size=16, patch_size=8, width=16, layers=1)
PROBES = ["--probe", "none"]  # the slowest part of so small a run


def save_small_backbone(folder: Path, sizes: SmallBackbone, seed: int = 0) -> Path:
    """Write a random backbone without a head; return the folder."""
    parts = build_small_backbone(sizes, seed)
    save(parts.model, parts, folder)
    return folder


def words(job: Job, model: Path, data: Path | str, output: Path, *options: str) -> list[str]:
    """The words of a run of four steps of 8 images unless the options say otherwise."""
    steps = [] if "--steps" in options or "--epochs" in options else ["--steps", "4"]
    paths = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return [job, *paths, *SMALL, "--hidden", "8", *steps, *options]


def tune(job: Job, model: Path, data: Path | str, output: Path, *options: str) -> Path:
    """Run the job and return its run directory."""
    main(words(job, model, data, output, *options))
    return output


def represent(model: Path, data: Path | str, output: Path, *options: str) -> Path:
    """`visgrpo representation` without probes unless the options name some."""
    probes = [] if "--probe" in options else PROBES
    return tune("representation", model, data, output, *options, *probes)


def segment(model: Path, data: Path | str, output: Path, *options: str) -> Path:
    """`visgrpo segmentation`."""
    return tune("segmentation", model, data, output, *options)


def head(run: Path) -> bytes:
    return (run / "model" / "head.safetensors").read_bytes()


def same_tuned_run(ours: Path, theirs: Path) -> bool:
    """Whether two runs have the same backbone, head and metrics, to the bit."""
    return (
        head(ours) == head(theirs)
        and weights(ours) == weights(theirs)
        and metric_lines(ours) == metric_lines(theirs)
    )


# Language models


_LANGUAGE = {"--device": "cpu", "--validation-fraction": "0.1"}
_LANGUAGE_STEPS = {
    **{"--steps": "4", "--batch-size": "4", "--learning-rate": "1e-3"},
    **{"--log-every": "1", "--eval-every": "4"},
}
_PAIRS = {"--max-new-tokens": "8", "--prompt-tokens": "8"}
_DRAWING = {**_PAIRS, "--eval-prompts": "4"}
_MODEL = {"--preset": "tiny", "--context": "48"}
_LANGUAGE_POLICY = {**_DRAWING, **_LANGUAGE_STEPS, "--group-size": "4", "--reward": "gold"}
_LANGUAGE_STAGES = {
    "sft": {**_LANGUAGE_STEPS, **_MODEL},
    "preferences": {**_PAIRS, "--pairs": "40"},
    "reward": _LANGUAGE_STEPS,
    "best-of-n": {**_DRAWING, "--samples": "4", "--reward": "gold"},
    "all": {
        **{**_DRAWING, "--preset": "tiny", "--context": "16", "--eval-prompts": "2"},
        **{"--pairs": "40", "--samples": "4", "--group-size": "4", "--sft-steps": "40"},
    },
}


def language_words(
    stage: str, init: Path | None, data: Path | str, output: Path, *options: object
) -> list[str]:
    """The words of a stage that takes four steps of four inputs, unless the options say otherwise.

    Without a page: drawing its plots takes longer than the run.
    """
    given = [str(option) for option in options]
    usual = {**_LANGUAGE, **_LANGUAGE_STAGES.get(stage, _LANGUAGE_POLICY)}
    if stage == "ppo":
        usual["--critic-warmup"] = "1"
    if init is not None:
        usual = {name: value for name, value in usual.items() if name not in _MODEL}
        usual["--model"] = str(init)
    if Path(data).suffix == ".jsonl" and "--text-column" not in given:  # has prompts of its own
        usual.pop("--prompt-tokens", None)
    if "--token-budget" in given:
        del usual["--steps"]
    words = [word for pair in usual.items() if pair[0] not in given for word in pair]
    named = ["--method", stage, "--data", str(data), "--output", str(output)]
    return ["language", *named, *words, "--no-report", *given]


def speak(stage: str, init: Path | None, data: Path | str, output: Path, *options: object) -> Path:
    """Run a stage and return its run directory."""
    main(language_words(stage, init, data, output, *options))
    return output


def same_language_run(ours: Path, theirs: Path) -> bool:
    """Whether two runs have the same weights and metrics, to the bit, but for the speed."""
    return weights(ours) == weights(theirs) and speechless(ours) == speechless(theirs)


def speechless(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl without what a clock says."""
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in metric_lines(run)
    ]


# Vision-language models


_SIZES = SmallVisionLanguage(
    layers=2,
    width=16,
    heads=2,
    vision_layers=1,
    vision_width=16,
    vision_heads=2,
    max_pixels=56 * 56,
    context=128,
)
_WORDS = "How many squares are there in the image? <think>0 1</think><answer>1</answer>"
_VLM = {"--device": "cpu", "--eval-images": "6"}
_VLM_STEPS = {
    **{"--steps": "3", "--batch-size": "4", "--learning-rate": "1e-3"},
    **{"--log-every": "1", "--eval-every": "3"},
}
_VLM_POLICY = {**_VLM_STEPS, "--group-size": "3", "--max-new-tokens": "6"}
_ALL = {
    **{"--sft-steps": "3", "--sft-batch-size": "4", "--sft-learning-rate": "1e-3"},
    **_VLM_POLICY,
}
_VLM_STAGES = {"sft": {**_VLM_STEPS, "--max-new-tokens": "6"}, "all": _ALL}


def save_seer(folder: Path, sizes: SmallVisionLanguage = _SIZES) -> Path:
    """Save a random vision-language model that takes images of 56 × 56 pixels."""
    parts = build_vision_language([_WORDS] * 4, sizes, seed=0)
    folder.mkdir(parents=True)
    save(parts.model, parts, folder, "# a card\n", {})
    return folder


def vlm_words(
    stage: str, model: Path | None, data: Path | str, output: Path, *options: object
) -> list[str]:
    """The words of a stage that takes three steps of four rows, unless the options say otherwise.

    Without a page: drawing its plots takes longer than the run.
    """
    given = [str(option) for option in options]
    usual = {**_VLM, **_VLM_STAGES.get(stage, _VLM_POLICY)}
    if model is not None:
        usual["--model"] = str(model)
    if "--token-budget" in given:
        del usual["--steps"]
    words = [word for pair in usual.items() if pair[0] not in given for word in pair]
    named = ["--method", stage, "--data", str(data), "--output", str(output)]
    return ["vlm", *named, *words, "--no-report", *given]


def see(stage: str, model: Path | None, data: Path | str, output: Path, *options: object) -> Path:
    """Run a stage and return its run directory."""
    main(vlm_words(stage, model, data, output, *options))
    return output
