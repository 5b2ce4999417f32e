"""The same path with models from elsewhere: a chat model with adapters, a nanoGPT checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from running import read_json, read_lines, speak, training_lines, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from visgrpo.cli import main
from visgrpo.models.parts import Parts
from visgrpo.models.save import save
from visgrpo.models.small import build_language
from visgrpo.models.tokenizers import make_tokenizer

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Messages and strings, as TRL's functions get them; the column is in the table.
RIGHT = """
def right(prompts, completions, answer, **columns):
    assert len(prompts) == len(completions) == len(answer)
    texts = []
    for prompt, completion in zip(prompts, completions):
        if isinstance(prompt, str):
            assert isinstance(completion, str)
        else:
            assert prompt[-1]["role"] == "user" and completion[0]["role"] == "assistant"
            completion = completion[0]["content"]
        texts.append(completion)
    return [sum(c in a for c in text) / 8 for text, a in zip(texts, answer)]
"""
FEW = ("--batch-size", "4", "--steps", "2", "--keep", "last")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    tokenizer = make_tokenizer("bpe", ["What is two and two?"], vocabulary=262)
    tokenizer.chat_template = CHAT
    sizes: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 128}
    model = build_language(tokenizer, architecture="qwen2", **sizes, seed=0)
    save(model, Parts("", None, tokenizer), folder)
    return folder


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(RIGHT)
    return f"{file}:right"


def _table(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number} and {number}?"}]


def _prompts(file: Path, *, chat: bool) -> Path:
    rows = [
        {"prompt": _messages(n) if chat else f"{n} + {n} =", "answer": f"abcde{2 * n}"}
        for n in range(20)
    ]
    return _table(file, rows)


@pytest.mark.parametrize("kind", ["messages", "strings"])
def test_a_chat_model_learns_adapters_from_a_table(
    kind: str, chat_model: Path, reward: str, tmp_path: Path
) -> None:
    data = _prompts(tmp_path / "prompts.jsonl", chat=kind == "messages")
    options = ["--reward", reward, "--train", "lora", "--lora-rank", "2", *FEW]
    run = speak("grpo", chat_model, data, tmp_path / "run", *options)
    assert "gold_reward" not in training_lines(run)[-1]  # a table has no text to judge by
    assert "rewards/right/mean" in training_lines(run)[-1]
    shown = {sample["prompt"] for sample in read_lines(run / "samples.jsonl")}
    assert all(("user: " in prompt) == (kind == "messages") for prompt in shown)
    start = AutoModelForCausalLM.from_pretrained(chat_model).eval()
    tuned = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before, after = (model(tokens).logits for model in (start, tuned))
        adapted = PeftModel.from_pretrained(start, run / "adapter").eval()(tokens).logits
    torch.testing.assert_close(adapted, after, atol=1e-5, rtol=1e-5)
    assert not torch.equal(before, after)
    assert AutoTokenizer.from_pretrained(run / "model").chat_template == CHAT
    memory = read_json(run / "summary.json")["memory"]
    assert "reference_bytes" not in memory  # the start is the model with its adapters off
    assert memory["optimizer_bytes"] < memory["policy_bytes"]


def test_an_adapter_is_a_start(chat_model: Path, reward: str, tmp_path: Path) -> None:
    data = _prompts(tmp_path / "prompts.jsonl", chat=True)
    first = ["--reward", reward, "--train", "lora", "--learning-rate", "1e-2", *FEW]
    run = speak("grpo", chat_model, data, tmp_path / "first", *first)
    again = speak("rloo", run / "adapter", data, tmp_path / "second", "--reward", reward, *FEW)
    merged = speak("rloo", run / "model", data, tmp_path / "third", "--reward", reward, *FEW)
    ours, theirs = (read_json(each / "summary.json")["before"] for each in (again, merged))
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_sft_on_a_column_of_a_table(chat_model: Path, tmp_path: Path) -> None:
    rows = [{"body": f"{n} and two make {n + 2}, as everyone knows."} for n in range(10, 50)]
    data = _table(tmp_path / "text.jsonl", rows)
    options = ["--text-column", "body", "--context", "32", "--train", "lora", *FEW]
    run = speak("sft", chat_model, data, tmp_path / "run", *options)
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert read_json(run / "summary.json")["data"]["unit"] == "blocks"
    # The same table holds prompts for what follows, cut from its text, with a judge of it.
    after = ["--text-column", "body", "--reward", "gold", *FEW]
    run = speak("grpo", run, data, tmp_path / "next", *after)
    assert "gold_reward" in training_lines(run)[-1]


def test_a_reward_model_of_conversations_is_a_reward(chat_model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": _messages(n),
            "chosen": [{"role": "assistant", "content": f"It is {2 * n}."}],
            "rejected": [{"role": "assistant", "content": f"Who knows {n}?"}],
        }
        for n in range(24)
    ]
    data = _table(tmp_path / "pairs.jsonl", rows)
    run = speak("reward", chat_model, data, tmp_path / "reward", *FEW)
    assert read_json(run / "summary.json")["after"].keys() >= {"accuracy", "nll", "ece"}
    prompts = _prompts(tmp_path / "prompts.jsonl", chat=True)
    options = ["--reward", f"model:{run}", *FEW]
    policy = speak("grpo", chat_model, prompts, tmp_path / "policy", *options)
    assert "rewards/model/mean" in training_lines(policy)[-1]
    assert read_json(policy / "summary.json")["memory"]["reward_model_bytes"] > 0


def test_a_chat_model_answers(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(chat_model), "Who are you?", "--max-new-tokens", "6", "--json", "-"]
    main(words)
    plain = json.loads(capsys.readouterr().out)
    main([*words, "--chat"])
    chat = json.loads(capsys.readouterr().out)
    assert chat["prompt"] == plain["prompt"] == "Who are you?"
    assert chat["completions"] != plain["completions"]


def test_a_nanogpt_checkpoint_is_a_start(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    checkpoint = _nanogpt(folder, short_text.read_text())
    run = speak("grpo", checkpoint, short_text, tmp_path / "run", *FEW)
    assert "pads." in capsys.readouterr().err  # nanoGPT knows no padding
    assert len(weights(run)) > 0
    AutoModelForCausalLM.from_pretrained(run / "model")
    main(["generate", str(checkpoint), "str", "--samples", "2", "--max-new-tokens", "4"])
    assert "--- 2 of 2" in capsys.readouterr().out


def _nanogpt(folder: Path, text: str) -> Path:
    """Random weights under nanoGPT's names, and the ids of its characters."""
    characters = sorted({*text, "$"})
    width, context, vocabulary = 16, 32, len(characters)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(*shape, generator=generator)

    block = "transformer.h.0"
    model = {
        "transformer.wte.weight": random(vocabulary, width),
        "transformer.wpe.weight": random(context, width),
        f"{block}.ln_1.weight": torch.ones(width),
        f"{block}.attn.c_attn.weight": random(3 * width, width),
        f"{block}.attn.c_proj.weight": random(width, width),
        f"{block}.ln_2.weight": torch.ones(width),
        f"{block}.mlp.c_fc.weight": random(4 * width, width),
        f"{block}.mlp.c_proj.weight": random(width, 4 * width),
        "transformer.ln_f.weight": torch.ones(width),
    }
    model["lm_head.weight"] = model["transformer.wte.weight"]
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": width, "block_size": context}
    arguments = {**sizes, "vocab_size": vocabulary, "dropout": 0.0, "bias": False}
    torch.save({"model": model, "model_args": arguments}, folder / "ckpt.pt")
    stoi = {character: number for number, character in enumerate(characters)}
    (folder / "meta.json").write_text(json.dumps({"stoi": stoi, "eos": "$"}))
    return folder / "ckpt.pt"
