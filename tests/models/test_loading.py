"""Loading: what is accepted, and one line for everything that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from classifiers import classifier_from, logits_of, train

from visgrpo.errors import UserError
from visgrpo.models.load import load_clip
from visgrpo.models.parts import check_model_name, read_info
from visgrpo.models.save import save_adapter

LORA = ("full", "lora")


@pytest.fixture
def spoiled(tiny_clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good model, for a test to spoil."""
    return Path(shutil.copytree(tiny_clip_folder, tmp_path / "spoiled"))


def one_line(folder: Path | str) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(UserError) as caught:
        load_clip(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_everything_that_belongs_to_a_model(tiny_clip_folder: Path) -> None:
    parts = load_clip(str(tiny_clip_folder))
    assert parts.name == str(tiny_clip_folder)
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}
    assert parts.preprocess.crop == (16, 16)
    assert parts.tokenizer("a cat")["input_ids"][0] == parts.tokenizer.bos_token_id


def test_half_precision_weights_are_loaded_in_float32(spoiled: Path) -> None:
    load_clip(str(spoiled)).model.half().save_pretrained(spoiled)
    assert {p.dtype for p in load_clip(str(spoiled)).model.parameters()} == {torch.float32}


def test_an_adapter_is_merged_into_its_base(tiny_clip_folder: Path, tmp_path: Path) -> None:
    tuned = classifier_from(tiny_clip_folder, LORA)
    train(tuned, rate=0.1)
    save_adapter(tuned, tmp_path / "adapter")
    check_model_name(str(tmp_path / "adapter"))
    loaded = classifier_from(tmp_path / "adapter")
    assert not loaded.has_adapter
    torch.testing.assert_close(logits_of(loaded), logits_of(tuned), rtol=1e-4, atol=1e-4)


def test_an_adapter_trained_on_an_adapter_loads_with_both(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    first = classifier_from(tiny_clip_folder, LORA)
    train(first, rate=0.1)
    save_adapter(first, tmp_path / "first")
    second = classifier_from(tmp_path / "first", LORA)
    train(second, rate=0.1)
    save_adapter(second, tmp_path / "second")
    loaded = classifier_from(tmp_path / "second")
    torch.testing.assert_close(logits_of(loaded), logits_of(second), rtol=1e-4, atol=1e-4)


def test_info_is_what_was_saved_beside_the_model(spoiled: Path) -> None:
    (spoiled / "visgrpo.json").write_text(json.dumps({"classes": ["a", "b"]}))
    assert load_clip(str(spoiled)).info == {"classes": ["a", "b"]}
    (spoiled / "visgrpo.json").unlink()
    assert read_info(str(spoiled)) == {}


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "nowhere/"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f'Model folder "{name}" does not exist'):
        check_model_name(name)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "gpt2"])
def test_a_hub_name_is_not_checked_without_the_network(name: str) -> None:
    check_model_name(name)


def test_a_hub_name_without_network() -> None:
    message = one_line("nobody/has-this-model")
    assert message.startswith('Cannot load model "nobody/has-this-model":')
    assert "network" in message


def test_a_file_is_not_a_model(tiny_clip_folder: Path) -> None:
    assert "give the folder" in one_line(tiny_clip_folder / "config.json")


def test_folder_without_config(tmp_path: Path) -> None:
    assert one_line(tmp_path).endswith("config.json is missing.")


def test_run_folder_instead_of_its_model(tiny_clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_clip_folder, tmp_path / "model")
    assert one_line(tmp_path).endswith(f"Did you mean {tmp_path / 'model'}?")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth"])
def test_weights_that_need_pickle(spoiled: Path, name: str) -> None:
    (spoiled / "model.safetensors").rename(spoiled / name)
    message = one_line(spoiled)
    assert name in message
    assert "pickle" in message


def test_pickled_weights_beside_safetensors_do_not_matter(spoiled: Path) -> None:
    (spoiled / "pytorch_model.bin").write_bytes(b"not even pickle")
    load_clip(str(spoiled))


def test_adapter_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "has no adapter_model.safetensors" in one_line(tmp_path)


def test_adapter_whose_base_is_gone(tiny_clip_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_clip_folder, tmp_path / "base"))
    save_adapter(classifier_from(base, LORA), tmp_path / "adapter")
    shutil.rmtree(base)
    assert one_line(tmp_path / "adapter") == f'Model folder "{base}" does not exist.'


def test_model_of_another_kind(spoiled: Path) -> None:
    from transformers import ViTConfig, ViTModel

    for weights in spoiled.glob("*.safetensors"):
        weights.unlink()
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(spoiled)
    message = one_line(spoiled)
    assert f'"{spoiled}" is a vit model; this job needs one of: clip, siglip.' == message


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_damaged_weights(spoiled: Path, kept: int) -> None:
    weights = spoiled / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert one_line(spoiled).startswith(f'Cannot load model "{spoiled}":')


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{"), ("preprocessor_config.json", None), ("tokenizer.json", None)],
)
def test_damaged_or_missing_part(spoiled: Path, name: str, content: str | None) -> None:
    if content is None:
        (spoiled / name).unlink()
    else:
        (spoiled / name).write_text(content)
    assert one_line(spoiled).startswith(f'Cannot load model "{spoiled}":')
