"""What is saved of models that write loads with plain transformers, scores the same, and stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import (
    TEXT,
    chat_tokenizer,
    logits_of,
    saved_language,
    tiny_language,
    tokenizer_for,
    tokens,
    train,
)
from peft import PeftModel
from test_load import seen
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from vision_folders import asking, noise, saved_vision, tiny_vision

from visgrpo.models.load import load_language, load_vision_language
from visgrpo.models.options import Adapt
from visgrpo.models.parts import Parts
from visgrpo.models.save import save, save_adapter
from visgrpo.models.small import Architecture
from visgrpo.models.trains import adapt, wrap_in_adapters

ARCHITECTURES: tuple[Architecture, ...] = ("gpt2", "qwen2")


def tuned(model: Any, lora: bool) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = adapt(model, ["lora" if lora else "all"], Adapt(2, 4.0))
    train(model)
    return model


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_transformers_loads_the_tuned_model(
    tmp_path: Path, architecture: Architecture, lora: bool
) -> None:
    tokenizer = tokenizer_for(architecture)
    model = tuned(tiny_language(architecture, tokenizer), lora)
    expected = logits_of(model)
    assert (expected - logits_of(tiny_language(architecture))).abs().max() > 1e-3
    save(model, Parts("", None, tokenizer), tmp_path, "# a card\n", {"steps": 2})
    assert torch.equal(logits_of(model), expected)  # merged into a copy: the run can go on
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-5)
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"]
    assert ids == tokenizer(TEXT)["input_ids"]
    assert json.loads((tmp_path / "visgrpo.json").read_text()) == {"task": "language", "steps": 2}
    assert (tmp_path / "README.md").read_text() == "# a card\n"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_puts_the_adapter_on_the_start(tmp_path: Path, architecture: Architecture) -> None:
    start = saved_language(tmp_path / "start", architecture)
    model = tuned(load_language(str(start)).model, lora=True)
    save_adapter(model, tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "visgrpo.json"} <= names
    base = AutoModelForCausalLM.from_pretrained(start)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_of_plain_transformers_stops_at_the_end(
    tmp_path: Path, architecture: Architecture
) -> None:
    tokenizer = tokenizer_for(architecture)
    model = tiny_language(architecture, tokenizer)
    always_ends = teach_to_end(model, tokenizer.eos_token_id)
    # A model whose settings know of no end, as one that was built elsewhere.
    always_ends.config.eos_token_id = always_ends.generation_config.eos_token_id = None
    always_ends.generation_config.pad_token_id = None
    save(always_ends, Parts("", None, tokenizer), tmp_path)
    assert always_ends.generation_config.eos_token_id is None  # what was given stays as it was
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens()
    out = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
    assert out[:, ids.shape[1] :].tolist() == [[tokenizer.eos_token_id]] * 2


def teach_to_end(model: Any, end: int) -> Any:
    """Train on the end token alone, until it is what comes next."""
    ids = tokens()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        model(ids, labels=torch.full_like(ids, end)).loss.backward()
        optimizer.step()
    return model.eval()


def test_several_ends_of_a_chat_model_are_kept(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    model = tiny_language("qwen2", tokenizer)
    model.generation_config.eos_token_id = [1, 7]
    save(model, Parts("", None, tokenizer), tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [1, 7]


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    save(tiny_language("qwen2", tokenizer), Parts("", None, tokenizer), tmp_path)
    messages = [{"role": "user", "content": "Hi"}]
    text = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>Hi<eos><|assistant|>"


def test_plain_transformers_loads_a_model_that_sees_in_three_lines(tmp_path: Path) -> None:
    saved_vision(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    images = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")

    made = images(images=[noise(24, 16)], return_tensors="pt")
    chat = tokenizer.apply_chat_template(asking(), tokenize=False, add_generation_prompt=True)
    chat = chat.replace("<|image_pad|>", 6 * "<|image_pad|>")
    ids = tokenizer(chat, return_tensors="pt")["input_ids"]
    places = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=places, **made).logits[0]
    torch.testing.assert_close(logits, seen(tiny_vision()), rtol=0, atol=1e-6)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_model_that_sees_with_adapters_is_saved_merged(tmp_path: Path) -> None:
    parts = tiny_vision()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap_in_adapters(parts.model, ["q_proj"], Adapt(2, 4.0))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    save(model, parts, tmp_path, "# tuned\n", {"stage": "sft"})
    assert hasattr(model, "peft_config")
    loaded = load_vision_language(str(tmp_path))
    assert loaded.info == {"task": "vision-language", "stage": "sft"}
    assert (tmp_path / "README.md").read_text() == "# tuned\n"
    plain = Parts("", model.merge_and_unload(), parts.tokenizer, processor=parts.processor)
    torch.testing.assert_close(seen(loaded), seen(plain), rtol=0, atol=1e-5)
