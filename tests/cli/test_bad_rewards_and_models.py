"""Rewards, models and folders that cannot be used: one line, exit code 2, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import (
    Job,
    Words,
    clip_words,
    language_words,
    metric_lines,
    read_lines,
    refused,
    represent,
    segment,
    speak,
    words,
)

from visgrpo.cli import main
from visgrpo.training.processes import Processes

Capture = pytest.CaptureFixture[str]

# Rewards of the user's own

OF_LABELS = """
def shape(outputs):
    return outputs[:, :1].float()

def nan(outputs):
    return outputs * float("nan")

def raising(outputs):
    return {}["a key of mine"]
"""
OF_TEXT = [
    ("return [1.0]", "returned 1 rewards for 16 completions: return one for each"),
    ("return None", "must return a list with a number for each completion, not NoneType"),
    ("raise ValueError('no idea')", "raised ValueError: no idea"),
    ("return [float('nan')] * len(completions)", "returned nan, not a finite number"),
    ("return ['good'] * len(completions)", "must return numbers, not str"),
]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("shape", 'Reward "shape" returned shape (18, 1); the outputs have shape (18, 3)'),
        ("nan", 'Reward "nan" returned nan in row 0'),
    ],
)
def test_rewards_of_labels(
    function: str, said: str, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text(OF_LABELS)
    reward = f"{tmp_path / 'mine.py'}:{function}"
    given = clip_words(start, pictures, tmp_path / "run", "--reward", reward)
    assert said in refused(capsys, given, notes=True)


def test_a_reward_that_raises_shows_the_users_own_traceback(
    start: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OF_LABELS)
    given = clip_words(start, pictures, tmp_path / "run", "--reward", f"{file}:raising")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    said = next(i for i, line in enumerate(lines) if line.startswith("visgrpo: "))
    assert lines[said] == "visgrpo: Reward \"raising\" raised KeyError: 'a key of mine'"
    assert lines[said + 1] == "Traceback (most recent call last):"
    text = "\n".join(lines[said + 1 :])
    assert 'mine.py", line 9, in raising' in text
    assert "visgrpo/" not in text  # of the user's frames alone
    file.write_text(OF_LABELS.replace('{}["a key of mine"]', "outputs.float()"))
    assert not (tmp_path / "run").exists()
    main(given)  # once mended, the same words work
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) > 4


@pytest.mark.parametrize(("body", "said"), OF_TEXT)
def test_rewards_of_text(
    body: str, said: str, stages: Path, short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text(f"def mine(completions, **rest):\n    {body}\n")
    options = ("--reward", f"{tmp_path / 'mine.py'}:mine")
    given = language_words("grpo", stages / "sft", short_text, tmp_path / "run", *options)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert caught.value.code == 2
    messages = capsys.readouterr().err
    assert said in next(line for line in messages.splitlines() if line.startswith("visgrpo: "))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("job", "function", "said"),
    [
        (
            "language grpo",
            "def mine(completions, answer):\n    return completions\n",
            '"mine" needs "answer", which is not a column',
        ),
        (
            "vlm grpo",
            "def mine(completions, **columns):\n    return [None] * len(completions)\n",
            "returned None for prompt",
        ),
    ],
)
def test_rewards_that_do_not_fit_the_data(
    job: str, function: str, said: str, words_of: Words, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text(function)
    given = words_of(job, tmp_path / "run", f"--reward {tmp_path / 'mine.py'}:mine")
    assert said in refused(capsys, given, notes=True)
    assert not (tmp_path / "run").exists()


def test_rewards_that_are_all_equal_stop_the_run(
    stages: Path, short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text("def mine(completions):\n    return [1] * len(completions)\n")
    run, start = tmp_path / "run", stages / "sft"
    options = ["--reward", f"{tmp_path / 'mine.py'}:mine", "--silent-steps", 3, "--steps", 9]
    line = refused(capsys, language_words("grpo", start, short_text, run, *options), notes=True)
    assert "For 3 steps the outputs of every group earned the same" in line
    assert metric_lines(run)[-1]["step"] == 3
    assert (run / "checkpoints" / "step-000003").exists()
    assert not (run / "summary.json").exists()
    patient = [*options[:2], "--silent-steps", 0, "--steps", 9]
    speak("grpo", start, short_text, tmp_path / "patient", *patient)
    assert "warning: up to step 1" in capsys.readouterr().err


# Models that a job cannot start from


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=16, image_size=16, patch_size=8)
    ViTModel(config).save_pretrained(folder)


def _text_tower(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    CLIPTextModel(CLIPTextConfig(**sizes, **ids, intermediate_size=16)).save_pretrained(folder)


def _no_end(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": None}))


def _card_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "README.md").write_text("Nothing here.")


MODELS: list[tuple[str, Callable[[Path], object], str]] = [
    ("clip", shutil.rmtree, "does not exist"),
    ("clip", _pickled, "pytorch_model.bin is damaged, or holds more than weights"),
    ("clip", _cut, "{model}"),
    ("clip", _vit, "is a vit model; this job needs one of: clip, siglip"),
    ("clip", lambda folder: (folder / "config.json").write_text("{"), "{model}"),
    ("representation", shutil.rmtree, "does not exist"),
    ("representation", lambda at: (at / "model.safetensors").unlink(), "model.safetensors"),
    ("representation", _cut, "{model}"),
    ("representation", _text_tower, "is a clip_text_model model; this job needs one of:"),
    ("representation", lambda at: (at / "preprocessor_config.json").unlink(), "{model}"),
    ("language grpo", shutil.rmtree, "does not exist"),
    ("language grpo", _no_end, "has no end token, so no completion could end"),
    ("language grpo", _cut, "{model}"),
    ("language grpo", _card_alone, "{model}"),
]
USES = {
    "clip": ["evaluate {model} --data digits"],
    "language": ["generate {model} Hello"],
    "representation": [],
}


@pytest.mark.parametrize(("job", "spoil", "said"), MODELS)
def test_models(
    job: str,
    spoil: Callable[[Path], object],
    said: str,
    start: Path,
    vit: Path,
    stages: Path,
    words_of: Words,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    model, name = tmp_path / "model", job.split()[0]
    whole = {"clip": start, "representation": vit, "language": stages / "sft" / "model"}[name]
    shutil.copytree(whole, model)
    spoil(model)
    given = words_of(job, tmp_path / "run")
    given[given.index("--model") + 1] = str(model)
    uses = [] if spoil is _vit else USES[name]  # as a backbone it can be measured
    for line in (given, *(use.format(model=model).split() for use in uses)):
        assert said.format(model=model) in refused(capsys, line)
    assert not (tmp_path / "run").exists()


def test_models_of_another_use(
    stages: Path, short_text: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A reward model writes no text, a language model judges none; the Hub is not reached."""
    run = tmp_path / "run"
    judge = stages / "reward" / "model"
    for given in (language_words("grpo", judge, short_text, run), ["generate", judge, "Hello"]):
        # transformers may say first that it has no use for the head of a reward model.
        line = refused(capsys, given, notes=True)
        assert "is a reward model, which scores text and writes none" in line
    writer = shutil.copytree(stages / "sft" / "model", tmp_path / "alone" / "model")
    given = language_words("grpo", writer, short_text, run, "--reward", f"model:{writer}")
    line = refused(capsys, given, notes=True)
    assert f'"{writer}" is no reward model' in line
    assert "--method reward" in line
    given = language_words("reward", writer, short_text, run)
    assert "learns from preference pairs: name a table" in refused(capsys, given, notes=True)
    given = language_words("sft", writer, short_text, run, "--context", 100)
    assert "--context 100: the model sees 48 tokens at once" in refused(capsys, given, notes=True)
    line = refused(capsys, clip_words(Path("nobody/no-such-model"), pictures, run))
    assert 'Cannot load model "nobody/no-such-model"' in line
    assert not run.exists()


def test_heads(
    vit: Path, pictures: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    """Another task's head is replaced, a damaged one refused."""
    model = segment(vit, masks, tmp_path / "masks", "--steps", "1") / "model"
    capsys.readouterr()
    represent(model, pictures, tmp_path / "run", "--steps", "1")
    assert f"note: the head of {model} has another task" in capsys.readouterr().err
    given = words("representation", model, pictures, tmp_path / "kl", "--beta", "1")
    assert "--beta: KL to a start whose head is random" in refused(capsys, given, notes=True)
    file = model / "head.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    line = refused(capsys, words("segmentation", model, masks, tmp_path / "more"))
    assert f"{file} is damaged" in line
    assert not (tmp_path / "kl").exists()
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("job", ["representation", "segmentation"])
def test_a_model_that_diverges(job: Job, words_of: Words, tmp_path: Path, capsys: Capture) -> None:
    given = words_of(job, tmp_path / "run", "--learning-rate 1e30")
    line = refused(capsys, given, notes=True)
    assert "NaN or infinity in the logits" in line
    assert "lower learning rate" in line


@pytest.mark.parametrize(
    ("job", "options", "said"),
    [
        ("representation", "--feature-uniformity 1", "it runs in one process"),
        (
            "representation resnet",
            "--train full",
            "--train full: this resnet normalises by the statistics of a",
        ),
        (
            "representation resnet",
            "--train last-blocks",
            "run it in one process, or take --train frozen",
        ),
    ],
)
def test_what_runs_in_one_process(
    job: str,
    options: str,
    said: str,
    words_of: Words,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Processes, "world_size", 2)
    assert said in refused(capsys, words_of(job, tmp_path / "run", options))
    assert not (tmp_path / "run").exists()


# Folders


def test_an_output_folder_in_use(
    start: Path, pictures: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    file = tmp_path / "run" / "notes.txt"
    file.parent.mkdir()
    file.write_text("mine")
    line = refused(capsys, clip_words(start, pictures, file.parent))
    assert "is not empty: name another folder" in line
    assert "is not empty" in refused(capsys, ["demo", "--output", file.parent])
    assert "is a file" in refused(capsys, clip_words(start, pictures, file))
    assert "is a file" in refused(capsys, clip_words(start, pictures, file / "run"))
    assert file.read_text() == "mine"


def test_a_run_of_another_command(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    run = represent(vit, pictures, tmp_path / "run", "--steps", "1")
    line = refused(capsys, ["segmentation", "--resume", "--output", run])
    assert "is a run of visgrpo representation: go on with" in line
