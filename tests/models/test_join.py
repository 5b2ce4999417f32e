"""Joining: on text the language model, before the merger's last layer the vision tower, exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import chat_tokenizer, saved_language
from safetensors.torch import load_file, save_file
from torch import Tensor
from vision_folders import SIZES, asking, logits_about, noise, saved_vision, tiny_vision

from visgrpo.errors import UserError
from visgrpo.models.join import join
from visgrpo.models.load import load_vision_language
from visgrpo.models.parts import Parts
from visgrpo.models.save import save
from visgrpo.models.tokenizers import CHATML, VISION_TOKENS
from visgrpo.tasks.vlm.options import JoinConfig
from visgrpo.tasks.vlm.use import join_models

WIDE = replace(SIZES, width=24, heads=3)  # a tower made for a language model of 24


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_vision(tmp_path_factory.mktemp("join") / "vision", tiny_vision(7, WIDE))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_qwen(tmp_path_factory.mktemp("join") / "language")


@pytest.fixture
def spoiled(vision: Path, tmp_path: Path) -> Path:
    """A copy of a good tower, for a test to spoil."""
    return Path(shutil.copytree(vision, tmp_path / "spoiled"))


def saved_qwen(
    folder: Path, *, tokenizer: Any = None, change: Callable[[Any], None] | None = None
) -> Path:
    """A Qwen2 of width 16 with two heads, whose biases and settings are no longer the usual."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = chat_tokenizer() if tokenizer is None else tokenizer
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        rms_norm_eps=1e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    if change is not None:
        change(config)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2ForCausalLM(config)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    save(model, Parts("", None, tokenizer), folder)
    return folder


@torch.no_grad()
def text_logits(model: Any) -> Tensor:
    ids = torch.arange(40).view(2, 20) * 7 % 250
    return model.eval()(input_ids=ids).logits


@torch.no_grad()
def features(model: Any) -> tuple[Tensor, Tensor]:
    """What goes into the merger's last layer, for two images of different shapes, and comes out."""
    processor = tiny_vision(7, WIDE).processor
    pictures = [processor.picture(noise(24, 16)), processor.picture(noise(32, 32, 1))]
    seen: list[Tensor] = []
    last = model.model.visual.merger.mlp[2]
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = model.model.visual(
        torch.cat([p.pixels for p in pictures]), grid_thw=torch.tensor([p.grid for p in pictures])
    )
    handle.remove()
    return seen[0], out.pooler_output


def language_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def refusal(vision: Path | str, language: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        join(str(vision), str(language), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
def test_on_text_it_is_the_language_model(vision: Path, tmp_path: Path, tied: bool) -> None:
    def change(config: Any) -> None:
        config.tie_word_embeddings = tied

    start = saved_qwen(tmp_path / "language", change=change)
    expected = text_logits(language_of(start))
    model = join(str(vision), str(start)).model
    ours = text_logits(model)[..., : expected.shape[-1]]  # four tokens were added
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_before_the_merger_s_last_layer_it_is_the_vision_tower(
    vision: Path, language: Path
) -> None:
    tower_states, tower_features = features(tiny_vision(7, WIDE).model)
    for merger in ("slice", "new"):
        states, made = features(join(str(vision), str(language), merger=merger).model)
        torch.testing.assert_close(states, tower_states, rtol=0, atol=1e-6)
        sliced = torch.allclose(made, tower_features[:, :16], rtol=0, atol=1e-6)
        assert sliced == (merger == "slice")
        assert made.shape == (6 + 16, 16)


def test_a_new_layer_is_the_seed_s(vision: Path, language: Path) -> None:
    first, again, other = (
        join(str(vision), str(language), merger="new", seed=seed).model.model.visual.merger.mlp[2]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert abs(first.weight.std().item() / 0.3 - 1) < 0.1  # as the language model's own layers
    assert first.bias.abs().max() == 0


def test_a_new_layer_may_be_wider_than_the_tower_s(tmp_path: Path, language: Path) -> None:
    narrow = saved_vision(tmp_path, tiny_vision(7, replace(SIZES, width=12, heads=1)))
    assert "layer of " in refusal(narrow, language)
    assert "is (12, 64) and cannot be sliced to (16, 64)" in refusal(narrow, language)
    model = join(str(narrow), str(language), merger="new").model
    assert model.model.visual.merger.mlp[2].weight.shape == (16, 64)


def test_what_it_takes_from_the_language_model(vision: Path, language: Path) -> None:
    parts = join(str(vision), str(language))
    text = parts.model.config.text_config
    assert text.rope_parameters["rope_theta"] == 500.0
    assert text.rope_parameters["mrope_section"] == [2, 1, 1]
    assert text.rms_norm_eps == 1e-4
    assert (text.num_key_value_heads, text.max_position_embeddings) == (1, 64)
    assert parts.model.generation_config.eos_token_id == [parts.tokenizer.eos_token_id, 5]


def test_tokens_that_are_missing_are_added_and_it_is_said(vision: Path, language: Path) -> None:
    before = language_of(language)
    parts = join(str(vision), str(language))
    had = before.config.vocab_size
    config = parts.model.config
    ids = [
        config.vision_start_token_id,
        config.vision_end_token_id,
        config.image_token_id,
        config.video_token_id,
    ]
    assert ids == [had, had + 1, had + 2, had + 3]
    assert parts.tokenizer.convert_ids_to_tokens(ids) == list(VISION_TOKENS)
    assert parts.processor.placeholder_ids == tuple(ids)
    assert parts.model.get_output_embeddings().weight.shape == (had + 4, 16)
    assert parts.notes[0].endswith("The model got 4 embedding(s) more.")
    again = join(str(vision), str(language)).model
    assert torch.equal(parts.model.lm_head.weight, again.lm_head.weight)


def test_tokens_that_the_vocabulary_has_are_found(vision: Path, tmp_path: Path) -> None:
    tokenizer = tiny_vision().tokenizer
    tokenizer.chat_template = CHATML
    parts = join(str(vision), str(saved_qwen(tmp_path, tokenizer=tokenizer)))
    assert parts.notes == ()
    assert parts.model.config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert parts.model.config.text_config.vocab_size == len(tokenizer)


def test_tokens_that_the_embeddings_have_room_for(vision: Path, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config.vocab_size += 10

    start = saved_qwen(tmp_path, change=change)
    parts = join(str(vision), str(start))
    assert parts.notes[0].endswith("<|image_pad|>, <|video_pad|>.")
    assert parts.model.config.text_config.vocab_size == language_of(start).config.vocab_size


def test_it_goes_round_and_sees(vision: Path, language: Path, tmp_path: Path) -> None:
    config = JoinConfig(
        str(vision), str(language), output=str(tmp_path / "joined"), max_pixels=16 * 16
    )
    made = join_models(config)
    loaded = load_vision_language(str(tmp_path / "joined"))
    first, other = (made.processor.picture(noise(32, 32, seed)) for seed in (0, 1))
    assert first.grid == (1, 4, 4)
    ids = loaded.processor.prompt_ids(asking(), [first])
    assert ids.tolist() == made.processor.prompt_ids(asking(), [first]).tolist()
    logits = logits_about(made.model, ids, first)
    assert torch.equal(logits_about(loaded.model, ids, first), logits)
    assert (logits_about(loaded.model, ids, other) - logits)[-1].abs().max() > 1e-4
    assert loaded.info["task"] == "vision-language"
    assert loaded.info["vision"] == str(vision)
    settings = (tmp_path / "joined" / "config.json").read_text()
    assert str(tmp_path) not in settings
    assert str(language) not in settings


def test_a_joined_model_s_tower_can_be_joined_again(
    vision: Path, language: Path, tmp_path: Path
) -> None:
    join_models(JoinConfig(str(vision), str(language), output=str(tmp_path / "first")))
    again = join(str(tmp_path / "first"), str(language)).model
    expected = load_vision_language(str(tmp_path / "first")).model
    for ours, theirs in zip(features(again), features(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_command_prints_what_it_made(
    vision: Path, language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    join_models(JoinConfig(str(vision), str(language), output=str(tmp_path / "joined")))
    out = capsys.readouterr().out
    assert "slice, to 16" in out
    assert "time 2, rows 1, columns 1" in out
    assert "<|image_pad|> (" in out
    assert "got <|vision_start|>" in out


def test_weights_in_several_files(spoiled: Path, language: Path) -> None:
    """Those without any weight of the tower are not even opened."""
    weights = load_file(spoiled / "model.safetensors")
    (spoiled / "model.safetensors").unlink()
    places = {}
    for number, key in enumerate(sorted(weights)):
        name = "text" if not key.startswith("visual.") else f"eyes-{number % 2}"
        places[key] = f"{name}.safetensors"
    for file in set(places.values()) - {"text.safetensors"}:
        save_file({key: weights[key] for key in places if places[key] == file}, spoiled / file)
    index = {"metadata": {}, "weight_map": places}
    (spoiled / "model.safetensors.index.json").write_text(json.dumps(index))
    _, made = features(join(str(spoiled), str(language)).model)
    _, expected = features(tiny_vision(7, WIDE).model)
    torch.testing.assert_close(made, expected[:, :16], rtol=0, atol=1e-6)


def test_weights_named_as_in_memory(spoiled: Path, language: Path) -> None:
    file = spoiled / "model.safetensors"
    save_file({f"model.{key}": weight for key, weight in load_file(file).items()}, file)
    _, made = features(join(str(spoiled), str(language)).model)
    _, expected = features(tiny_vision(7, WIDE).model)
    torch.testing.assert_close(made, expected[:, :16], rtol=0, atol=1e-6)


def test_a_tower_of_other_shapes_than_its_settings(spoiled: Path, language: Path) -> None:
    settings = json.loads((spoiled / "config.json").read_text())
    settings["vision_config"]["intermediate_size"] = 20
    (spoiled / "config.json").write_text(json.dumps(settings))
    message = refusal(spoiled, language)
    assert "has visual.blocks.0.mlp.gate_proj.weight of (48, 16), but its config.json" in message
    assert "says (20, 16)" in message


def test_a_tower_that_lacks_a_weight(spoiled: Path, language: Path) -> None:
    weights = load_file(spoiled / "model.safetensors")
    del weights["visual.merger.ln_q.weight"]
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})
    assert "lacks the weight visual.merger.ln_q.weight" in refusal(spoiled, language)


def test_patches_that_are_not_the_tower_s(spoiled: Path, language: Path) -> None:
    path = spoiled / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"merge_size": 1}))
    assert "has merge_size 1, the model 2" in refusal(spoiled, language)


def test_models_of_other_kinds(
    vision: Path, language: Path, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    assert "is a clip model; its tower cannot be joined. Take a qwen2_5_vl" in refusal(
        tiny_clip_folder, language
    )
    gpt2 = saved_language(tmp_path, "gpt2")
    assert "is a gpt2 model; a Qwen2.5-VL tower can be joined with a qwen2 only" in refusal(
        vision, gpt2
    )


def test_models_that_are_not_there(vision: Path, language: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "no", language)
    assert "does not exist" in refusal(vision, tmp_path / "no")


def test_a_merger_that_is_not_known(vision: Path, language: Path) -> None:
    assert 'Did you mean "slice"' in refusal(vision, language, merger="slices")


def test_too_few_pixels_to_see(vision: Path, language: Path) -> None:
    assert "a token sees 64" in refusal(vision, language, max_pixels=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision": ""}, "--vision NAME"),
        ({"language": ""}, "--language NAME"),
        ({"output": ""}, "--output FOLDER"),
        ({"max_pixels": 0}, "--max-pixels must be above 0"),
        ({"seed": -1}, "--seed must not be negative"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        join_models(JoinConfig(**{"vision": "v", "language": "l", "output": "o"} | options))


def test_a_folder_that_is_not_free(vision: Path, language: Path) -> None:
    with pytest.raises(UserError, match="is not empty: name another folder"):
        join_models(JoinConfig(str(vision), str(language), output=str(vision)))
