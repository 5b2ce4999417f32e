"""From words and files to a config."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

import pytest

from visgrpo.arguments import parse
from visgrpo.cli import COMMANDS
from visgrpo.errors import UserError
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.language.options import LanguageConfig
from visgrpo.tasks.options import CompareConfig
from visgrpo.tasks.use_options import EvaluateConfig
from visgrpo.terminal import forget_notes


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


@pytest.mark.parametrize("text", ["a: " + "[" * 100_000, "a: 2026-13-01", "a: 1: 2", "\x00"])
def test_a_file_that_is_no_yaml(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml is not YAML: ") as error:
        parse(ClipConfig, "clip", ["--config", write(tmp_path, text)])
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ("language --method grpo --model run", "language --stage grpo --init run"),
        ("language --train lora", "language --lora"),
        ("clip --train text lora", "clip --train text --lora"),
        ("vlm --method sft --shifts other", "vlm --stage sft --ood other"),
        ("predict m a.png --json -", "predict m a.png --json"),
    ],
)
def test_words_of_before_mean_the_same_and_are_noted_once(
    now: str, before: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_notes()  # those of the case before
    configs = []
    for line in (now, before):
        name, *words = line.split()
        command = COMMANDS[name]
        configs.append(parse(resolve_name(str(command.config)), name, words, command.positional))
    assert configs[0] == configs[1]
    notes = capsys.readouterr().err.splitlines()
    given = [word for word in before.split() if word.startswith("--")]
    assert 1 <= len(notes) <= len(given)
    assert all(note.startswith("note: --") for note in notes)


def test_a_run_of_before_has_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "recipe: language\nstage: grpo\ninit: model\nlora: true\n"
    write(tmp_path / "run", text)
    words = ["--resume", "--output", str(tmp_path / "run")]
    config = parse(LanguageConfig, "language", words)
    assert (config.method, config.model, config.train) == ("grpo", "model", ("lora",))
    assert capsys.readouterr().err == ""
    write(tmp_path / "plain", text.replace("lora: true", "lora: false"))
    words[-1] = str(tmp_path / "plain")
    assert parse(LanguageConfig, "language", words).train == ("all",)


def test_help_shows_the_words_of_now(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(LanguageConfig, "language", ["--help"])
    text = capsys.readouterr().out
    assert "--method WORD" in text
    assert not {"--stage", "--init", "--lora"} & set(text.split())
