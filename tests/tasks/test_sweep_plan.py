"""From a sweep's file to its combinations."""

from __future__ import annotations

from pathlib import Path

import pytest

from visgrpo.errors import UserError
from visgrpo.options import Options
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.sweep_plan import Combination, SweepConfig, read_combinations, value_text


def read(folder: Path, text: str) -> tuple[Combination, ...]:
    file = folder / "plan.yaml"
    file.write_text(text)
    return read_combinations(file, ClipConfig, "clip")


def test_a_grid_combines_all_values_and_the_last_option_changes_fastest(tmp_path: Path) -> None:
    text = "data: shapes\nsweep:\n  learning_rate: [1e-3, 0.01]\n  beta: [0, 0.5]\n"
    found = read(tmp_path, text)
    assert [each.name for each in found] == [
        "learning-rate=1e-3_beta=0",
        "learning-rate=1e-3_beta=0.5",
        "learning-rate=0.01_beta=0",
        "learning-rate=0.01_beta=0.5",
    ]
    assert found[1].config == ClipConfig(data="shapes", learning_rate=1e-3, beta=0.5)
    assert found[1].variant is None
    assert found[1].swept == {"learning-rate": "1e-3", "beta": 0.5}


def test_variants_are_combined_with_the_grid(tmp_path: Path) -> None:
    text = """
        epochs: 2
        variants:
          plain: {}
          exact, soft: {estimator: exact, reward: [soft]}
        sweep: {augment: [[], [crop, flip]]}
        """
    found = read(tmp_path, text)
    assert [(each.name, each.variant) for each in found] == [
        ("plain_augment=none", "plain"),
        ("plain_augment=crop+flip", "plain"),
        ("exact-soft_augment=none", "exact, soft"),
        ("exact-soft_augment=crop+flip", "exact, soft"),
    ]
    assert found[0].config == ClipConfig(epochs=2.0)
    assert found[3].config == ClipConfig(
        epochs=2.0, estimator="exact", reward=("soft",), augment=("crop", "flip")
    )


def test_without_variants_and_grid_only_the_seeds_differ(tmp_path: Path) -> None:
    assert read(tmp_path, "epochs: 2\n") == (Combination("clip", None, {}, ClipConfig(epochs=2.0)),)


def test_the_settings_of_a_run_are_a_start(tmp_path: Path) -> None:
    text = "recipe: clip\nversions: {torch: '2'}\nlora: true\nsteps: null\nsweep: {beta: [0]}\n"
    assert read(tmp_path, text)[0].config == ClipConfig(train=("lora",), steps=None, beta=0.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.001, "0.001"), (True, "true"), (None, "none"), ("a", "a"), (["a", 2], "a+2")],
)
def test_values_as_text(value: object, text: str) -> None:
    assert value_text(value) == text


BAD = {
    "epochs: 2\nbtea: 1\nsweep: {beta: [0]}": 'yaml: unknown option "btea". Did you mean "beta"?',
    "sweep: {btea: [0, 1]}": 'yaml, btea=0: unknown option "btea". Did you mean "beta"?',
    "variants: {a: {btea: 1}}": 'yaml, a: unknown option "btea". Did you mean "beta"?',
    "sweep: {beta: []}": "beta under sweep has an empty list of values.",
    "sweep: {beta: 0.1}": "beta under sweep must be a list of values.",
    "sweep: {}": "sweep must hold lines of the form option: [value, value].",
    "sweep: [beta]": "sweep must hold lines of the form option: [value, value].",
    "variants: [a, b]": "variants must hold lines of the form name: {option: value}.",
    "variants: {a: }": "variant a must be a mapping of options to values; {} changes nothing.",
    "variants: {off: {}}": 'put the variant\'s name "False" into quotes.',
    "beta: 1\nsweep: {beta: [0]}": "beta is given twice, at the top and under sweep: remove one.",
    "batch-size: 8\nsweep: {batch_size: [4]}": "batch-size is given twice, at the top and under",
    "beta: 1\nvariants: {a: {beta: 0}}": "beta is given twice, at the top and in variant a:",
    "variants: {a: {beta: 0}}\nsweep: {beta: [0]}": "twice, under sweep and in variant a: remove",
    "seed: 1": "remove seed at the top: visgrpo sweep --seeds sets it.",
    "sweep: {seed: [1, 2]}": "remove seed under sweep: visgrpo sweep --seeds sets it.",
    "variants: {a: {output: b}}": "remove output in variant a: visgrpo sweep --output sets it.",
    "sweep: {beta: [0, 0]}": "two combinations are both called beta=0: remove one, or name them",
    "variants: {a b: {}, a-b: {}}": "two combinations are both called a-b: remove one",
    "variants: {..: {}}": '".." cannot name a folder of the sweep: choose another name',
    "variants: {table.md: {}}": '"table.md" cannot name a folder of the sweep',
    f"variants: {{{'a' * 121}: {{}}}}": "cannot name a folder of the sweep",
    "sweep: {beta: [0, -1]}": "yaml, beta=-1: --beta must not be negative, not -1.0.",
    "sweep: {beta: [0, much]}": 'yaml, beta=much: --beta takes a number, not "much". See visgrpo',
    "sweep: {lora: [false, true]}\ntrain: projections": "lora=true: --train lora adapts towers",
    "beta: [": "is not YAML",
    "- beta": "must hold lines of the form option: value.",
}


@pytest.mark.parametrize("text", BAD)
def test_mistakes_name_the_place(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith("--config ")
    assert BAD[text] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SweepConfig(config="f"), "Name the command: visgrpo sweep clip"),
        (SweepConfig(("clip",)), "--config FILE is needed"),
        (SweepConfig(("clip",), "f", seeds=0), "--seeds must be above 0"),
        (SweepConfig(("clip",), resume=True), "--resume needs --output"),
    ],
)
def test_words_that_cannot_work(config: Options, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        config.check()
