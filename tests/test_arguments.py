"""From words and files to a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from visgrpo.arguments import parse
from visgrpo.errors import UserError
from visgrpo.tasks.configs import ClipConfig, CompareConfig
from visgrpo.tasks.use_configs import EvaluateConfig


def write(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return str(folder / "config.yaml")


@pytest.mark.parametrize("form", ["--output {}", "--output={}", "--output other --output={}"])
@pytest.mark.parametrize("first", [True, False])
def test_a_resumed_run_has_its_own_settings(form: str, first: bool, tmp_path: Path) -> None:
    write(tmp_path / "run", f"recipe: clip\nbeta: 0.5\noutput: {tmp_path}/elsewhere\n")
    words = form.format(tmp_path / "run").split()
    words = ["--resume", *words] if first else [*words, "--resume"]
    config = parse(ClipConfig, "clip", words)
    assert (config.beta, config.output, config.resume) == (0.5, str(tmp_path / "run"), True)


def test_a_resume_without_a_run_is_left_to_the_recipe(tmp_path: Path) -> None:
    config = parse(ClipConfig, "clip", ["--resume", "--output", str(tmp_path / "none")])
    assert config == ClipConfig(resume=True, output=str(tmp_path / "none"))


def test_no_words_are_the_defaults() -> None:
    assert parse(ClipConfig, "clip", []) == ClipConfig()


def test_lists_of_a_file(tmp_path: Path) -> None:
    text = "runs: [a, b]\nmetric:\n- reward\n- eval/accuracy\n"
    file = write(tmp_path, text)
    config = parse(CompareConfig, "compare", ["--config", file], ("runs",))
    assert config == CompareConfig(runs=("a", "b"), metric=("reward", "eval/accuracy"))
    file = write(tmp_path, "model: m\nalpha: [0, 0.5, 1]\n")
    config = parse(EvaluateConfig, "evaluate", ["--config", file], ("model",))
    assert config.alpha == (0.0, 0.5, 1.0)


def test_an_empty_list_of_a_file_is_empty(tmp_path: Path) -> None:
    file = write(tmp_path, "runs: [a]\nmetric: []\n")
    assert parse(CompareConfig, "compare", ["--config", file]).metric == ()


@pytest.mark.parametrize("flag", ["--metric=kl", "--metric kl"])
def test_a_list_of_flags_replaces_that_of_the_file(flag: str, tmp_path: Path) -> None:
    file = write(tmp_path, "runs: [a]\nmetric: [reward, loss]\n")
    words = ["--config", file, *flag.split()]
    assert parse(CompareConfig, "compare", words, ("runs",)).metric == ("kl",)
    words = ["c", "d", "--config", file]
    assert parse(CompareConfig, "compare", words, ("runs",)).runs == ("c", "d")


@pytest.mark.parametrize(
    "words",
    [
        "a b --metric reward --metric kl",
        "a b --metric reward kl",
        "a b --metric=reward --output page.html --metric=kl",
        "--metric reward --runs a b --metric kl",
        "--runs a --metric reward kl --runs b",
    ],
)
def test_a_list_is_given_at_once_or_piece_by_piece(words: str) -> None:
    config = parse(CompareConfig, "compare", words.split(), ("runs",))
    assert (config.runs, config.metric) == (("a", "b"), ("reward", "kl"))


def test_values_of_other_options_stay_where_they_are() -> None:
    words = "--probe knn --shifts blur --batch-size 3 --probe softmax-regression --shifts grey"
    config = parse(EvaluateConfig, "evaluate", ["m", *words.split()], ("model",))
    assert config.probe == ("knn", "softmax-regression")
    assert config.shifts == ("blur", "grey")
    assert (config.model, config.batch_size) == ("m", 3)


def test_a_run_is_resumed_by_its_own_command(tmp_path: Path) -> None:
    write(tmp_path / "run", "recipe: representation\npool: mean\n")
    with pytest.raises(UserError, match="go on with visgrpo representation --resume --output"):
        parse(ClipConfig, "clip", ["--resume", "--output", str(tmp_path / "run")])
