"""Rows that some stage of a model has learned from are taken as held out by no later one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import clip, read_json, represent, see, speak

from making import write_pictures
from visgrpo.cli import main
from visgrpo.data.read import read
from visgrpo.tasks.lineage import Learned, learned_from, lineage_of
from visgrpo.tasks.use import division_of
from visgrpo.tasks.use_options import EvaluateConfig

Capture = pytest.CaptureFixture[str]
PRETRAIN = (
    "--steps 1 --batch-size 8 --image-size 16 --patch-size 8 --width 16 --layers 1 --heads 2 "
    "--device cpu --no-report"
)


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("undivided"), {"train": 20})


def stages(model: Path) -> list[Learned]:
    return lineage_of(read_json(model / "visgrpo.json"))


def divisions(model: Path, *data: Path | str) -> list[tuple[object, ...]]:
    """How the rows of some data are divided when a model is evaluated on them."""
    configs = [EvaluateConfig(model=str(model), data=str(each)) for each in data]
    return [tuple(division_of(config).values()) for config in configs]


def test_a_relative_path_is_the_same_data_from_everywhere(
    start: Path,
    undivided: Path,
    pictures: Path,
    tmp_path: Path,
    no_page: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what the start was pre-trained on is remembered beside it."""
    monkeypatch.chdir(undivided.parent)
    options = ["--seed", "3", "--validation-fraction", "0.25", "--train-slice", ":50"]
    run = clip(start, undivided.name, tmp_path / "run", *options, "--train", "lora")
    for name in ("model", "adapter"):
        own = Learned(str(undivided.resolve()), 3, 0.25, ":50")
        assert stages(run / name) == [Learned(str(pictures.resolve()), 0, 0.1), own]
        for place in (undivided.parent, tmp_path):
            monkeypatch.chdir(place)
            assert divisions(run / name, undivided) == [(3, 0.25, ":50")]
        assert divisions(run / name, pictures, "digits") == [(0, 0.1, None), (0, None, None)]


def test_later_stages_divide_as_the_first(
    undivided: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    words = f"pretrain clip --data {undivided} --seed 5 --more-data digits@:40 {PRETRAIN}"
    main([*words.split(), "--output", str(tmp_path / "start")])
    start = tmp_path / "start" / "model"
    place = str(undivided.resolve())
    assert stages(start) == [Learned(place, 5, 0.1), Learned("digits", 5, 0.1, ":40")]
    capsys.readouterr()
    run = clip(start, undivided, tmp_path / "run", "--validation-fraction", "0.2", "--steps", "1")
    assert f"divided as when {start} learned from it: seed 5" in capsys.readouterr().err
    assert stages(run / "model") == stages(start)
    splits = read(str(undivided), seed=5, validation_fraction=0.1)
    data = read_json(run / "summary.json")["data"]
    assert (data["train"], data["test"]) == (len(splits.train), len(splits.test))
    main(["clip", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")])
    assert (
        read_json(tmp_path / "again" / "summary.json")["after"]
        == (read_json(run / "summary.json")["after"])
    )


def test_backbones(vit: Path, undivided: Path, tmp_path: Path, no_page: None) -> None:
    words = f"pretrain backbone --data digits --train-slice :64 --projection 4 {PRETRAIN}"
    main([*words.split(), "--family", "dinov2", "--output", str(tmp_path / "start")])
    run = represent(tmp_path / "start/model", undivided, tmp_path / "run", "--steps", "1")
    assert [each.data for each in stages(run / "model")] == ["digits", str(undivided.resolve())]
    assert stages(run / "model")[0] == Learned("digits", 0, 0.1, ":64")


def test_language(
    stages_of_language: tuple[Path, Path], short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    reward, policy = stages_of_language
    text = Learned(str(short_text.resolve()), 0, 0.1)
    pairs = str((reward.parent / "pairs" / "pairs.jsonl").resolve())
    assert stages(policy / "model") == [text]  # was divided by 0.2 of it
    assert [each.data for each in stages(reward / "model")] == [text.data, pairs]
    assert divisions(policy / "model", short_text) == [(0, 0.1, None)]


@pytest.fixture
def stages_of_language(stages: Path, short_text: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A reward model, and a policy that was to divide the text in another way."""
    options = ["--steps", 1, "--validation-fraction", "0.2"]
    policy = speak("grpo", stages / "sft", short_text, tmp_path / "policy", *options)
    return stages / "reward", policy


@pytest.fixture(scope="module")
def seeing(
    seer: Path, counts: Path, other_counts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """SFT on one table with seed 3, GRPO from it on another."""
    folder = tmp_path_factory.mktemp("lineage")
    sft = see("sft", seer, counts, folder / "sft", "--seed", 3)
    return sft, see("grpo", sft, other_counts, folder / "grpo", "--steps", 1)


def examples(capsys: Capture, *words: object) -> int:
    capsys.readouterr()
    main(["evaluate", *map(str, words), "--max-new-tokens", "4", "--json", "-"])
    return json.loads(capsys.readouterr().out)["model"]["examples"]


def test_seeing_models(
    seeing: tuple[Path, Path],
    counts: Path,
    other_counts: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sft, grpo = seeing
    own, other = stages(grpo / "model")
    assert own == Learned(str(counts.resolve()), 3, 0.05)
    assert other == Learned(str(other_counts.resolve()), 0, 0.05)
    assert learned_from(str(grpo), str(counts)) == own
    assert learned_from(str(sft), str(other_counts)) is learned_from(None, str(counts)) is None
    held_out = read(str(counts), "questions", seed=3, validation_fraction=0.05).test
    assert examples(capsys, grpo, "--data", counts) == len(held_out) < 60
    monkeypatch.chdir(counts.parent)
    assert examples(capsys, grpo, "--data", counts.name) == len(held_out)  # however it is written
    run = see("grpo", sft, counts, tmp_path / "run", "--steps", 1, "--seed", 8)
    assert f"divided as when {sft} learned from it: seed 3" in capsys.readouterr().err
    assert stages(run / "model") == [own]


def test_models_of_earlier_versions_know_their_last_data(start: Path, tmp_path: Path) -> None:
    assert lineage_of({}) == []
    old = {"data": "digits", "seed": 4, "validation_fraction": 0.3, "train_slice": ":9"}
    assert lineage_of(old) == [Learned("digits", 4, 0.3, ":9")]
    assert lineage_of({"data": "topics", "seed": 1}) == [Learned("topics", 1, 0.1)]
