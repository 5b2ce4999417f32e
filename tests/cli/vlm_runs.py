"""Run `visgrpo vlm` on a few pictures, a small model and a few steps."""

from __future__ import annotations

from pathlib import Path

from visgrpo.cli import main
from visgrpo.models.save import save
from visgrpo.models.vision_language.small import SmallVisionLanguage, build_vision_language

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
_ALWAYS = {"--device": "cpu", "--eval-images": "6"}
_STEPS = {
    **{"--steps": "3", "--batch-size": "4", "--learning-rate": "1e-3"},
    **{"--log-every": "1", "--eval-every": "3"},
}
_POLICY = {**_STEPS, "--group-size": "3", "--max-new-tokens": "6"}
_ALL = {
    **{"--sft-steps": "3", "--sft-batch-size": "4", "--sft-learning-rate": "1e-3"},
    **_POLICY,
}
_OF_STAGE = {"sft": {**_STEPS, "--max-new-tokens": "6"}, "all": _ALL}


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
    usual = {**_ALWAYS, **_OF_STAGE.get(stage, _POLICY)}
    if model is not None:
        usual["--model"] = str(model)
    if "--token-budget" in given:
        del usual["--steps"]
    words = [word for pair in usual.items() if pair[0] not in given for word in pair]
    named = ["--stage", stage, "--data", str(data), "--output", str(output)]
    return ["vlm", *named, *words, "--no-report", *given]


def see(stage: str, model: Path | None, data: Path | str, output: Path, *options: object) -> Path:
    """Run a stage and return its run directory."""
    main(vlm_words(stage, model, data, output, *options))
    return output
