"""Vision-language models go round through their folders, and one line for what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from language_models import saved_language
from safetensors.torch import load_file, save_file
from vision_folders import asking, logits_about, noise, saved_vision, tiny_smol, tiny_vision

from visgrpo.errors import UserError
from visgrpo.models.language import context_of, stop_tokens
from visgrpo.models.load import is_vision_language, load_vision_language
from visgrpo.models.parts import Parts
from visgrpo.models.save import save, save_adapter
from visgrpo.models.trains import Adapters, wrap_in_adapters

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_vision(tmp_path_factory.mktemp("vision") / "good")


@pytest.fixture
def spoiled(good: Path, tmp_path: Path) -> Path:
    """A copy of a good model, for a test to spoil."""
    return Path(shutil.copytree(good, tmp_path / "spoiled"))


def one_line(name: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_vision_language(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


def logits_of(parts: Parts) -> torch.Tensor:
    picture = parts.processor.picture(noise(24, 16))
    return logits_about(parts.model, parts.processor.prompt_ids(asking(), [picture]), picture)


def saved_adapter(start: Path, folder: Path) -> torch.Tensor:
    """Save an adapter that changes something, and return its logits."""
    parts = load_vision_language(str(start))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap_in_adapters(parts.model, ["q_proj", "v_proj"], Adapters(2, 4.0))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    save_adapter(model, folder)
    picture = parts.processor.picture(noise(24, 16))
    ids = parts.processor.prompt_ids(asking(), [picture])
    return logits_about(model.merge_and_unload(), ids, picture)


def edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_model_goes_round(good: Path) -> None:
    parts = load_vision_language(str(good))
    assert (parts.name, parts.info, parts.notes) == (str(good), {"task": "vision-language"}, ())
    assert torch.equal(logits_of(parts), logits_of(tiny_vision()))
    assert parts.processor.placeholder_ids == tiny_vision().processor.placeholder_ids
    assert parts.processor.tokenizer is parts.tokenizer
    assert context_of(parts.model) == 128
    assert stop_tokens(parts) == (parts.tokenizer.eos_token_id,)


def test_plain_transformers_loads_it_in_three_lines(good: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(good)
    tokenizer = AutoTokenizer.from_pretrained(good)
    images = AutoImageProcessor.from_pretrained(good, backend="pil")

    seen = images(images=[noise(24, 16)], return_tensors="pt")
    chat = tokenizer.apply_chat_template(asking(), tokenize=False, add_generation_prompt=True)
    chat = chat.replace("<|image_pad|>", 6 * "<|image_pad|>")
    ids = tokenizer(chat, return_tensors="pt")["input_ids"]
    places = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=places, **seen).logits[0]
    torch.testing.assert_close(logits, logits_of(tiny_vision()), rtol=0, atol=1e-6)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_models_of_tiles_need_no_joining(kind: str, tmp_path: Path) -> None:
    start = tiny_smol(kind)
    parts = load_vision_language(str(saved_vision(tmp_path, start)))
    assert torch.equal(logits_of(parts), logits_of(start))
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_seq_len"] == 4


def test_a_run_s_folder_stands_for_its_model(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    assert load_vision_language(str(tmp_path)).name == str(tmp_path / "model")
    assert is_vision_language(str(tmp_path))


def test_half_precision_weights_are_loaded_in_float32(spoiled: Path) -> None:
    tiny_vision().model.half().save_pretrained(spoiled)
    parts = load_vision_language(str(spoiled))
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}


def test_a_limit_of_pixels_is_kept_when_saved(good: Path, tmp_path: Path) -> None:
    parts = load_vision_language(str(good), max_pixels=16 * 16)
    again = load_vision_language(str(saved_vision(tmp_path, parts)))
    assert again.processor.picture(noise(32, 32)).grid == (1, 4, 4)


def test_a_chat_template_beside_the_processor(spoiled: Path) -> None:
    template = {"chat_template": (spoiled / "chat_template.jinja").read_text()}
    (spoiled / "chat_template.jinja").unlink()
    assert "has no chat template" in one_line(spoiled)
    (spoiled / "chat_template.json").write_text(json.dumps(template))
    assert torch.equal(logits_of(load_vision_language(str(spoiled))), logits_of(tiny_vision()))


def test_adapters_are_merged_into_their_base_and_may_follow_each_other(
    good: Path, tmp_path: Path
) -> None:
    first = saved_adapter(good, tmp_path / "first")
    second = saved_adapter(tmp_path / "first", tmp_path / "second")
    assert (second - first).abs().max() > 1e-3
    for name, expected in (("first", first), ("second", second)):
        parts = load_vision_language(str(tmp_path / name))
        assert parts.name == str(tmp_path / name)
        assert not hasattr(parts.model, "peft_config")
        torch.testing.assert_close(logits_of(parts), expected, rtol=0, atol=1e-5)
        assert is_vision_language(str(tmp_path / name))


def test_a_model_with_adapters_is_saved_merged(tmp_path: Path) -> None:
    parts = tiny_vision()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap_in_adapters(parts.model, ["q_proj"], Adapters(2, 4.0))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    save(model, parts, tmp_path, "# tuned\n", {"stage": "sft"})
    assert hasattr(model, "peft_config")
    loaded = load_vision_language(str(tmp_path))
    assert loaded.info == {"task": "vision-language", "stage": "sft"}
    assert (tmp_path / "README.md").read_text() == "# tuned\n"
    merged = Parts("merged", model.merge_and_unload(), parts.tokenizer, processor=parts.processor)
    torch.testing.assert_close(logits_of(loaded), logits_of(merged), rtol=0, atol=1e-5)


def test_other_kinds_of_models(tiny_clip_folder: Path, tmp_path: Path) -> None:
    assert not is_vision_language(str(tiny_clip_folder))
    assert not is_vision_language(str(saved_language(tmp_path)))
    assert "is a clip model; this job needs one of: qwen2_5_vl, smolvlm" in one_line(
        tiny_clip_folder
    )


def test_weights_of_other_shapes_than_the_settings(spoiled: Path) -> None:
    settings = json.loads((spoiled / "config.json").read_text())
    edit(spoiled / "config.json", vision_config=settings["vision_config"] | {"hidden_size": 24})
    message = one_line(spoiled)
    assert "weight(s) of other shapes than its config.json says: model.visual." in message
    assert message.endswith("blocks.0.attn.proj.bias is (16,), not (24,).")


def test_weights_that_are_missing(spoiled: Path) -> None:
    weights = load_file(spoiled / WEIGHTS)
    del weights["visual.merger.mlp.0.weight"]
    save_file(weights, spoiled / WEIGHTS, {"format": "pt"})
    assert "lacks 1 weight(s), such as model.visual.merger.mlp.0.weight" in one_line(spoiled)


def test_damaged_weights(spoiled: Path) -> None:
    (spoiled / WEIGHTS).write_bytes((spoiled / WEIGHTS).read_bytes()[:1000])
    assert one_line(spoiled).startswith(f'Cannot load model "{spoiled}":')


def test_patches_of_another_size_than_the_model_s(spoiled: Path) -> None:
    edit(spoiled / "preprocessor_config.json", patch_size=14)
    assert "The image processor has patch_size 14, the model 4" in one_line(spoiled)


def test_a_folder_without_image_processor(spoiled: Path) -> None:
    (spoiled / "preprocessor_config.json").unlink()
    assert one_line(spoiled).startswith(f'Cannot load model "{spoiled}":')


def test_places_without_models(tmp_path: Path) -> None:
    assert one_line(tmp_path / "no").endswith("does not exist.")
    assert one_line(tmp_path).endswith("config.json is missing.")
    assert one_line("nobody/has-this-model").startswith('Cannot load model "nobody/has-this')


def test_an_adapter_of_a_nameless_base(good: Path, tmp_path: Path) -> None:
    saved_adapter(good, tmp_path)
    edit(tmp_path / "adapter_config.json", base_model_name_or_path=None)
    assert "does not say which model it belongs to" in one_line(tmp_path)


def test_an_adapter_of_a_base_of_another_width(good: Path, tmp_path: Path) -> None:
    saved_adapter(good, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: w[..., :1].contiguous() for name, w in load_file(path).items()}, path)
    assert one_line(tmp_path).endswith(f'does not fit its base "{good}".')
