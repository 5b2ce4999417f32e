"""Run `visgrpo language` on a short text, a small model and a few steps."""

from __future__ import annotations

from pathlib import Path

from running import metric_lines, weights

from visgrpo.cli import main

_ALWAYS = {"--device": "cpu", "--validation-fraction": "0.1"}
_STEPS = {
    **{"--steps": "4", "--batch-size": "4", "--learning-rate": "1e-3"},
    **{"--log-every": "1", "--eval-every": "4"},
}
_PAIRS = {"--max-new-tokens": "8", "--prompt-tokens": "8"}
_DRAWING = {**_PAIRS, "--eval-prompts": "4"}
_MODEL = {"--preset": "tiny", "--context": "48"}
_POLICY = {**_DRAWING, **_STEPS, "--group-size": "4", "--reward": "gold"}
_OF_STAGE = {
    "sft": {**_STEPS, **_MODEL},
    "preferences": {**_PAIRS, "--pairs": "40"},
    "reward": _STEPS,
    "best-of-n": {**_DRAWING, "--samples": "4", "--reward": "gold"},
    "all": {
        **{**_DRAWING, "--preset": "tiny", "--context": "16", "--eval-prompts": "2"},
        **{"--pairs": "40", "--samples": "4", "--group-size": "4"},
    },
}


def language_words(
    stage: str, init: Path | None, data: Path | str, output: Path, *options: object
) -> list[str]:
    """The words of a stage that takes four steps of four inputs, unless the options say otherwise.

    Without a page: drawing its plots takes longer than the run.
    """
    given = [str(option) for option in options]
    usual = {**_ALWAYS, **_OF_STAGE.get(stage, _POLICY)}
    if stage == "ppo":
        usual["--critic-warmup"] = "1"
    if init is not None:
        usual = {name: value for name, value in usual.items() if name not in _MODEL}
        usual["--init"] = str(init)
    if Path(data).suffix == ".jsonl" and "--text-column" not in given:  # has prompts of its own
        usual.pop("--prompt-tokens", None)
    if "--token-budget" in given:
        del usual["--steps"]
    words = [word for pair in usual.items() if pair[0] not in given for word in pair]
    named = ["--stage", stage, "--data", str(data), "--output", str(output)]
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
