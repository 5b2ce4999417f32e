"""Mistakes with `visgrpo language` and `generate`: one line, exit code 2, no run left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import language_words, metric_lines, refused, speak

from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]
LANGUAGE = ["language", "--output", "run", "--device", "cpu"]

# Words that cannot work, whatever the files hold: nothing is loaded


WORDS = {
    "stage": ("--method grop", 'Did you mean "grpo"?'),
    "no stage": ("--method bogus", "Choose from: all, sft, preferences, reward, grpo, dr-grpo, "),
    "all stages": ("--method bogus", "reinforce, rejection, ppo, best-of-n. See"),
    "preset": ("--preset tny", 'Did you mean "tiny"?'),
    "no start": ("--method ppo", "--method ppo needs --model, the model to start from"),
    "start of everything": ("--model sft", "--model does not go with --method all"),
    "steps of everything": ("--steps 4", "--steps does not go with --method all; it is for sft"),
    "critic of grpo": (
        "--method grpo --model m --gamma 0.9",
        "--gamma does not go with --method grpo",
    ),
    "groups in sft": ("--method sft --group-size 4", "--group-size does not go with --method sft"),
    "reward of a reward": (
        "--method reward --model m --reward gold",
        "does not go with --method rew",
    ),
    "prompts of sft": (
        "--method sft --prompt-tokens 8",
        "--prompt-tokens does not go with --method",
    ),
    "judge of sft": ("--method sft --no-gold", "--no-gold does not go with --method sft"),
    "judge of everything": ("--no-gold", "--no-gold does not go with --method all; it is for grpo"),
    "judge of pairs": ("--method preferences --model m --no-gold", "--no-gold does not go with"),
    "context of grpo": ("--method grpo --model m --context 9", "it is for sft, all."),
    "trackers of best-of-n": (
        "--method best-of-n --model m --report-to mlflow",
        "--report-to does not go with --method best-of-n",
    ),
    "pairs of ppo": ("--method ppo --model m --pairs 9", "--pairs does not go with --method ppo"),
    "new model": (
        "--method sft --model m --preset tiny",
        "--preset is for new models: m has its own",
    ),
    "characters of qwen2": (
        "--architecture qwen2",
        "--architecture qwen2 goes with --tokenizer bpe",
    ),
    "budget twice": ("--method grpo --model m --steps 3 --token-budget 9", "say the same thing"),
    "nothing to steer": ("--kl-target 3 --beta 0", "--kl-target steers --beta"),
    "rank": ("--method sft --lora-rank 4", "--lora-rank is for --train lora"),
    "alpha": ("--method grpo --model m --lora-alpha 4", "--lora-alpha is for --train lora"),
    "horizon": ("--kl-horizon 9", "--kl-horizon is for --kl-target"),
    "vocabulary": ("--vocabulary 99", "--vocabulary is for --tokenizer bpe"),
    "kl in ppo": ("--method ppo --model m --kl-estimator k2", "--kl-estimator is for --kl-in loss"),
    "kl of nothing": (
        "--method grpo --model m --kl-in reward --beta 0",
        "--kl-in has no KL to weigh",
    ),
    "estimator of nothing": (
        "--method grpo --model m --kl-estimator k1 --beta 0",
        "--kl-estimator has no KL to weigh with --beta 0",
    ),
    "kl is needed": ("--method grpo --model m --no-track-kl", "--no-track-kl is for --beta 0"),
    "normalised kl": (
        "--method rloo --model m --combination normalize_then_sum",
        "to the spread of a reward, however small it is: take --kl-in loss",
    ),
    "column of text": (
        "--method sft --text-column body",
        "--text-column is for a table, and topics",
    ),
    "prompts of text": (
        "--method grpo --model m --prompt-column question",
        "--prompt-column is for a table, and topics is text",
    ),
    "two columns": (
        "--method grpo --model m --data a/b --text-column body --prompt-column question",
        "--prompt-column does not go with --text-column",
    ),
    "length of a table's": (
        "--method ppo --model m --data openai/gsm8k --prompt-tokens 8",
        "--prompt-tokens is for text, and openai/gsm8k is read as a table of prompts",
    ),
    "room in the story": (
        "--context 40 --max-new-tokens 25",
        "--prompt-tokens 16 and --max-new-tokens 25 are more than the model sees at once",
    ),
    "group of one in the story": ("--group-size 1", "leaves grpo nothing to compare"),
    "warm-up of the story": (
        "--preset tiny --critic-warmup 15",
        "--critic-warmup 15 leaves none of ppo's 15 steps to the policy",
    ),
    "decay in the story": ("--weight-decay 0.1", "while the critic learns alone"),
    "decay": (
        "--method ppo --model m --weight-decay 0.1",
        "take --critic-warmup 0, or no weight d",
    ),
    "fraction": ("--validation-fraction 0.5", "must lie between 0 and 0.5"),
    "temperature": ("--temperature 0", "--temperature must be above 0"),
    "top p": ("--top-p 1.5", "--top-p 1.5 must lie between 0 and 1"),
    "prompts": ("--prompt-tokens 0", "--prompt-tokens must be above 0"),
    "noise": ("--noise -1", "--noise must not be negative"),
    "no data": ("--method sft --data nowhere.txt", "nowhere.txt"),
    "built-in text": (
        "--method sft --data topcis",
        'Unknown text "topcis". Did you mean "topics"?',
    ),
    "small vocabulary": (
        "--method sft --tokenizer bpe --vocabulary 9",
        "--vocabulary 9 has no room",
    ),
}
GENERATE = {
    "model": ("generate", "Name the model"),
    "prompt": ("generate m", "Name the prompt"),
    "no such model": ("generate ./nothing Hello", "./nothing"),
    "samples": ("generate m Hello --samples 0", "--samples must be above 0"),
}


@pytest.mark.parametrize("name", [*WORDS, *GENERATE])
def test_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = (WORDS | GENERATE)[name]
    start = [] if name in GENERATE else LANGUAGE
    assert expected in refused(capsys, [*start, *words.split()], notes=name == "small vocabulary")
    assert not list(tmp_path.iterdir())


# Options that do not fit the start

OPTIONS = {
    "group of one": ("grpo", "--group-size 1", "or batch scope with more than one input"),
    "budget": ("grpo", "--token-budget 100", "--token-budget 100 is less than the 128 tokens"),
    "long completions": ("ppo", "--max-new-tokens 48", "leaves no room for a prompt"),
    "long prompts": ("grpo", "--prompt-tokens 42", "has 42 tokens but 1 to 40 are allowed"),
    "batch": ("grpo", "--batch-size 1000", "batch size 1000 is larger than short/train"),
    "pieces": ("ppo", "--minibatches 3", "cannot be split evenly"),
    "unknown reward": ("grpo", "--reward glod", 'Unknown reward "glod". Did you mean "gold"?'),
    "weights": ("grpo", "--reward-weights 1 2", "2 reward weights for 1 reward"),
    "no judge": ("rloo", "--no-gold", "--reward gold judges by the text"),
    "no reward file": ("grpo", "--reward none.py:f", "none.py"),
    "no reward model": ("grpo", "--reward model:./none", "./none"),
    "warm-up": ("ppo", "--critic-warmup 4", "leaves none of 4 steps to the policy: take more --s"),
    "warm-up of a budget": (
        "ppo",
        "--token-budget 300 --critic-warmup 2",
        "--critic-warmup 2 leaves none of 2 steps to the policy: take a larger --token-budget",
    ),
    "pairs": ("preferences", "--pairs 50 --top-k 1", "differ in text and score"),
    "pairs are not there": ("reward", "", "learns from preference pairs: name a table"),
    "block": ("sft", "--context 100", "--context 100: the model sees 48 tokens at once"),
}


@pytest.fixture(scope="module")
def start(stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start with neither pairs nor a reward model beside it."""
    folder = tmp_path_factory.mktemp("alone") / "start"
    shutil.copytree(stages / "sft" / "model", folder)
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, start: Path, short_text: Path, tmp_path: Path, capsys: Capture) -> None:
    stage, options, expected = OPTIONS[name]
    words = language_words(stage, start, short_text, tmp_path / "run", *options.split())
    assert expected in refused(capsys, words, notes=True)
    assert not list(tmp_path.iterdir())


# Models


def _no_end(start: Path, stages: Path, folder: Path) -> str:
    shutil.copytree(start, folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token": None}))
    return "has no end token, so no completion could end"


def _missing(start: Path, stages: Path, folder: Path) -> str:
    return "does not exist"


def _damaged(start: Path, stages: Path, folder: Path) -> str:
    shutil.copytree(start, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return str(folder)


def _reward_model(start: Path, stages: Path, folder: Path) -> str:
    shutil.copytree(stages / "reward" / "model", folder)
    return "is a reward model, which scores text and writes none"


def _text_alone(start: Path, stages: Path, folder: Path) -> str:
    folder.mkdir()
    (folder / "README.md").write_text("Nothing here.")
    return str(folder)


@pytest.mark.parametrize("make", [_no_end, _missing, _damaged, _reward_model, _text_alone])
def test_starts(
    make: Callable[[Path, Path, Path], str],
    start: Path,
    stages: Path,
    short_text: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    expected = make(start, stages, tmp_path / "model")
    words = language_words("grpo", tmp_path / "model", short_text, tmp_path / "run")
    # transformers may say first that it has no use for the head of a reward model.
    odd = make is _reward_model
    assert expected in refused(capsys, words, notes=odd)
    assert expected in refused(capsys, ["generate", tmp_path / "model", "Hello"], notes=odd)
    assert not (tmp_path / "run").exists()


def test_a_language_model_is_no_reward_model(
    start: Path, short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = language_words(
        "grpo", start, short_text, tmp_path / "run", "--reward", f"model:{start}"
    )
    line = refused(capsys, words, notes=True)
    assert f'"{start}" is no reward model' in line
    assert "--method reward" in line
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_is_too_long_to_complete(start: Path, capsys: Capture) -> None:
    line = refused(capsys, ["generate", start, "word " * 20, "--max-new-tokens", "8"])
    assert "has 100 tokens but 1 to 40 are allowed" in line


# Data

DATA = {
    "empty": ("sft", "text.txt", "", "is empty; name a file with text"),
    "short": ("sft", "text.txt", "One.\n\nTwo.\n\nThree.", "but a block takes 49"),
    "one paragraph": ("sft", "text.txt", "All in one.", "1 documents are too few"),
    "no prompts": ("grpo", "text.txt", "One.\n\nTwo.\n\nThree.", "for prompts of 8"),
    "same": (
        "reward",
        "pairs.jsonl",
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
        '{"prompt": "b", "chosen": "d", "rejected": "d"}\n',
        "row 1 has the same text as chosen and as rejected",
    ),
    "no column": ("reward", "pairs.jsonl", '{"prompt": "a", "chosen": "b"}\n', '"rejected"'),
    "judge of a table": (
        "preferences",
        "prompts.jsonl",
        "".join(f'{{"prompt": "method {n}"}}\n' for n in range(9)),
        "needs --data with text",
    ),
    "story of a table": (
        "all",
        "prompts.jsonl",
        '{"prompt": "a"}\n',
        "--method all starts from text",
    ),
    "not json": ("grpo", "prompts.jsonl", "hello\n", "line 1 is not JSON"),
    "no messages": ("grpo", "prompts.jsonl", '{"prompt": 3}\n', "prompt"),
    "no template": (
        "grpo",
        "prompts.jsonl",
        "".join(f'{{"prompt": [{{"role": "user", "content": "{n}"}}]}}\n' for n in range(9)),
        "chat template",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, start: Path, tmp_path: Path, capsys: Capture) -> None:
    stage, file, content, expected = DATA[name]
    (tmp_path / file).write_text(content)
    init = None if stage in ("sft", "all") else start
    words = language_words(stage, init, tmp_path / file, tmp_path / "run")
    if stage == "grpo" and file == "prompts.jsonl":
        words[words.index("gold")] = f"model:{start}"
    assert expected in refused(capsys, words, notes=True)
    assert not (tmp_path / "run").exists()


# Rewards of the user's own

FUNCTIONS = {
    "too few": ("return [1.0]", "returned 1 rewards for 16 completions: return one for each"),
    "none": ("return None", "must return a list with a number for each completion, not NoneType"),
    "raising": ("raise ValueError('no idea')", "raised ValueError: no idea"),
    "nan": ("return [float('nan')] * len(completions)", "returned nan, not a finite number"),
    "text": ("return ['good'] * len(completions)", "must return numbers, not str"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reward_functions(
    name: str, start: Path, short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    body, expected = FUNCTIONS[name]
    (tmp_path / "mine.py").write_text(f"def mine(completions, **rest):\n    {body}\n")
    options = ("--reward", f"{tmp_path / 'mine.py'}:mine")
    words = language_words("grpo", start, short_text, tmp_path / "run", *options)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    messages = capsys.readouterr().err
    line = next(line for line in messages.splitlines() if line.startswith("visgrpo: "))
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_function_that_needs_another_column(
    start: Path, short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text("def mine(completions, answer):\n    return completions\n")
    options = ("--reward", f"{tmp_path / 'mine.py'}:mine")
    words = language_words("grpo", start, short_text, tmp_path / "run", *options)
    assert '"mine" needs "answer", which is not a column' in refused(capsys, words, notes=True)
    assert not (tmp_path / "run").exists()


def test_rewards_that_are_all_equal_stop_the_run(
    start: Path, short_text: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text("def mine(completions):\n    return [1] * len(completions)\n")
    run = tmp_path / "run"
    options = ["--reward", f"{tmp_path / 'mine.py'}:mine", "--silent-steps", 3, "--steps", 9]
    words = language_words("grpo", start, short_text, run, *options)
    line = refused(capsys, words, notes=True)
    assert "For 3 steps the outputs of every group earned the same" in line
    assert metric_lines(run)[-1]["step"] == 3
    assert (run / "checkpoints" / "step-000003").exists()
    assert not (run / "summary.json").exists()
    patient = [*options[:2], "--silent-steps", 0, "--steps", 9]
    speak("grpo", start, short_text, tmp_path / "patient", *patient)
    assert "warning: up to step 1" in capsys.readouterr().err
