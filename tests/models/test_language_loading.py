"""Loading a language model: from every kind of place, and one line for everything that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_models import TEXT, chat_tokenizer, logits_of, saved_language, tiny_language, train
from safetensors.torch import load_file, save_file

from visgrpo.errors import UserError
from visgrpo.models.language import context_of, stop_tokens
from visgrpo.models.load import load_language
from visgrpo.models.parts import Parts
from visgrpo.models.save import save, save_adapter
from visgrpo.models.small import Architecture
from visgrpo.models.trains import Adapters, adapt


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_language(tmp_path_factory.mktemp("language") / "good")


@pytest.fixture
def spoiled(good: Path, tmp_path: Path) -> Path:
    """A copy of a good model, for a test to spoil."""
    return Path(shutil.copytree(good, tmp_path / "spoiled"))


def one_line(name: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_language(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_adapter(start: Path, folder: Path) -> torch.Tensor:
    """Save a tuned adapter, and return the tuned model's logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = adapt(load_language(str(start)).model, ["lora"], Adapters(2, 4.0))
    train(model)
    save_adapter(model, folder)
    return logits_of(model)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_everything_that_belongs_to_a_model(tmp_path: Path, architecture: Architecture) -> None:
    parts = load_language(str(saved_language(tmp_path, architecture)))
    assert parts.name == str(tmp_path)
    assert parts.info == {"task": "language"}
    assert parts.notes == ()
    assert torch.equal(logits_of(parts.model), logits_of(tiny_language(architecture)))
    assert parts.tokenizer.decode(parts.tokenizer(TEXT)["input_ids"]) == TEXT
    assert context_of(parts.model) == 128
    assert stop_tokens(parts) == (parts.tokenizer.eos_token_id,)


def test_a_run_s_folder_stands_for_its_model(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    parts = load_language(str(tmp_path))
    assert parts.name == str(tmp_path / "model")


def test_half_precision_weights_are_loaded_in_float32(spoiled: Path) -> None:
    tiny_language().half().save_pretrained(spoiled)
    assert {p.dtype for p in load_language(str(spoiled)).model.parameters()} == {torch.float32}


def test_adapters_are_merged_into_their_base_and_may_follow_each_other(
    good: Path, tmp_path: Path
) -> None:
    first = with_adapter(good, tmp_path / "first")
    second = with_adapter(tmp_path / "first", tmp_path / "second")
    assert (second - first).abs().max() > 1e-3
    for name, expected in (("first", first), ("second", second)):
        parts = load_language(str(tmp_path / name))
        assert parts.name == str(tmp_path / name)
        assert not hasattr(parts.model, "peft_config")
        torch.testing.assert_close(logits_of(parts.model), expected, rtol=0, atol=1e-5)


def test_context_of_a_model_with_adapters() -> None:
    model = adapt(tiny_language(context=48), ["lora"], Adapters(2, 4.0))
    assert context_of(model) == 48


def test_a_model_without_a_greatest_length() -> None:
    config = SimpleNamespace(model_type="mamba")
    config.get_text_config = lambda: config
    with pytest.raises(UserError, match="A mamba model does not say how long its context is"):
        context_of(SimpleNamespace(config=config))


@pytest.mark.parametrize(
    ("settings", "expected"), [(None, (1,)), (7, (1, 7)), ([9, 1, 7], (1, 7, 9))]
)
def test_every_token_that_ends_a_completion(settings: Any, expected: tuple[int, ...]) -> None:
    model = tiny_language(tokenizer=chat_tokenizer())
    model.generation_config.eos_token_id = settings
    assert stop_tokens(Parts("m", model, chat_tokenizer())) == expected


def test_a_tokenizer_without_padding_is_mended_and_it_is_said(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = None
    save(tiny_language("qwen2", tokenizer), Parts("", None, tokenizer), tmp_path)
    parts = load_language(str(tmp_path))
    assert "has no padding token: '<eos>' pads." in parts.notes[0]
    assert parts.tokenizer.pad_token_id == parts.tokenizer.eos_token_id


def test_a_tokenizer_without_an_end(spoiled: Path) -> None:
    path = spoiled / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    assert "has no end token" in one_line(spoiled)


def test_a_tokenizer_of_another_model(spoiled: Path) -> None:
    chat_tokenizer().save_pretrained(spoiled)
    assert "they do not belong together" in one_line(spoiled)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert one_line(tmp_path / "no").endswith("does not exist.")


def test_a_hub_name_without_network() -> None:
    assert one_line("nobody/has-this-model").startswith('Cannot load model "nobody/has-this-model"')


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert one_line(tmp_path).endswith("config.json is missing.")


def test_weights_that_need_pickle(spoiled: Path) -> None:
    (spoiled / "model.safetensors").rename(spoiled / "pytorch_model.bin")
    assert "needs pickle" in one_line(spoiled)


def test_a_model_that_writes_no_text(tiny_clip_folder: Path) -> None:
    assert "is a clip model, which does not write text" in one_line(tiny_clip_folder)


def test_weights_that_are_missing(spoiled: Path) -> None:
    weights = load_file(spoiled / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weight(s), such as transformer.h.1.mlp.c_fc.weight" in one_line(spoiled)


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_damaged_weights(spoiled: Path, kept: int) -> None:
    weights = spoiled / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert one_line(spoiled).startswith(f'Cannot load model "{spoiled}":')


def test_an_adapter_of_a_nameless_base(good: Path, tmp_path: Path) -> None:
    with_adapter(good, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(settings))
    assert "does not say which model it belongs to" in one_line(tmp_path / "adapter")


def test_an_adapter_of_a_base_of_another_width(good: Path, tmp_path: Path) -> None:
    with_adapter(good, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: w[..., :1].contiguous() for name, w in load_file(path).items()}, path)
    assert one_line(tmp_path / "adapter").endswith(f'does not fit its base "{good}".')
