"""Loading models of every kind: from every kind of place, and one line for everything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from backbones import KINDS, encoder_of, picture
from classifiers import classifier_from
from classifiers import logits_of as clip_logits
from classifiers import train as train_clip
from language_models import TEXT, chat_tokenizer, logits_of, saved_language, tiny_language, train
from PIL import Image
from safetensors.torch import load_file, save_file
from vision_folders import asking, logits_about, noise, saved_vision, tiny_smol, tiny_vision

from visgrpo.errors import UserError, printable
from visgrpo.models.backbone import Backbone
from visgrpo.models.language import context_of, stop_tokens
from visgrpo.models.load import (
    load_backbone,
    load_clip,
    load_language,
    load_reward_model,
    load_vision_language,
)
from visgrpo.models.options import Adapt
from visgrpo.models.parts import Parts, preprocess_of, read_info
from visgrpo.models.reward_model import build_reward_model
from visgrpo.models.save import save, save_adapter, start_card
from visgrpo.models.small import Architecture
from visgrpo.models.trains import adapt, wrap_in_adapters
from visgrpo.models.whole import check_model_name
from visgrpo.tasks.use import kind_of

LORA = ("full", "lora")
WEIGHTS = "model.safetensors"
SETTINGS = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
LOADERS: dict[str, Callable[[str], Parts]] = {
    "clip": load_clip,
    "backbone": load_backbone,
    "language": load_language,
    "vision": load_vision_language,
    "reward": load_reward_model,
}
# A weight of each kind as it is stored, and as messages name it.
NEEDED = {
    "clip": ("visual_projection.weight",) * 2,
    "backbone": ("layernorm.weight",) * 2,
    "language": ("transformer.h.1.mlp.c_fc.weight",) * 2,
    "vision": ("visual.merger.mlp.0.weight", "model.visual.merger.mlp.0.weight"),
    "reward": ("transformer.h.1.mlp.c_fc.weight",) * 2,
}
PLACES = tuple(LOADERS)


def saved_backbone(folder: Path, kind: str, settings: dict[str, Any] = SETTINGS) -> Path:
    """A checkpoint as the Hub has it: model and preprocessor_config.json."""
    encoder_of(kind).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> dict[str, Path]:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("good")
    language = saved_language(root / "language")
    parts = load_language(str(language))
    save(build_reward_model(parts, seed=0), parts, root / "reward")
    return {
        "clip": tiny_clip_folder,
        "backbone": saved_backbone(root / "backbone", "vit"),
        "language": language,
        "vision": saved_vision(root / "vision"),
        "reward": root / "reward",
    }


@pytest.fixture
def spoil(good: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a good model, for a test to spoil."""
    return lambda kind: Path(shutil.copytree(good[kind], tmp_path / "spoiled"))


def one_line(kind: str, name: Path | str) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(UserError) as caught:
        LOADERS[kind](str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def plain(parts: Parts) -> Any:
    """The transformers model of parts."""
    return getattr(parts.model, "scorer", parts.model)


def seen(parts: Parts) -> torch.Tensor:
    """Logits of a model that sees, about a picture."""
    made = parts.processor.picture(noise(24, 16))
    return logits_about(parts.model, parts.processor.prompt_ids(asking(), [made]), made)


@pytest.mark.parametrize("kind", PLACES)
def test_parts_print_as_a_short_line(kind: str, good: dict[str, Path]) -> None:
    parts = LOADERS[kind](str(good[kind]))
    weights = sum(weight.numel() for weight in parts.model.parameters())
    name = type(parts.model).__name__
    assert repr(parts) == f'Parts("{good[kind]}": {name} of {weights:,} weights)'


@pytest.mark.parametrize("kind", PLACES)
def test_half_precision_weights_are_loaded_in_float32(
    kind: str, spoil: Callable[[str], Path], good: dict[str, Path]
) -> None:
    folder = spoil(kind)
    plain(LOADERS[kind](str(good[kind]))).half().save_pretrained(folder)
    assert {p.dtype for p in LOADERS[kind](str(folder)).model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", PLACES)
def test_places_without_models(kind: str, tmp_path: Path) -> None:
    assert one_line(kind, tmp_path / "no") == f'Model folder "{tmp_path / "no"}" does not exist.'
    assert one_line(kind, tmp_path).endswith("config.json is missing.")
    message = one_line(kind, "nobody/has-this-model")
    assert message.startswith('Cannot load model "nobody/has-this-model": no such folder is here')
    assert "network" in message


@pytest.mark.parametrize("kind", PLACES)
def test_a_run_s_folder(kind: str, good: dict[str, Path], tmp_path: Path) -> None:
    """It stands for its model where text is read; else the model is named."""
    inside = Path(shutil.copytree(good[kind], tmp_path / "model"))
    if kind in ("clip", "backbone"):
        assert one_line(kind, tmp_path).endswith(f"Did you mean {inside}?")
    else:
        assert LOADERS[kind](str(tmp_path)).name == str(inside)


@pytest.mark.parametrize("kind", PLACES)
def test_weights_of_older_files(kind: str, spoil: Callable[[str], Path]) -> None:
    """The same model, and a note that says how they were read."""
    folder = spoil(kind)
    whole = plain(LOADERS[kind](str(folder))).state_dict()
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    parts = LOADERS[kind](str(folder))
    again = plain(parts).state_dict()
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    said = "pytorch_model.bin was read by torch.load(weights_only=True), which runs no code of it."
    assert said in parts.notes[-1]


class Harmful:
    """Unpickled, it would leave a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("kind", PLACES)
def test_code_in_weights_is_not_run(
    kind: str, spoil: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = spoil(kind)
    (folder / WEIGHTS).unlink()
    torch.save({"weight": Harmful(tmp_path / "ran")}, folder / "pytorch_model.bin")
    said = one_line(kind, folder)
    assert said.startswith(f'"{folder}": pytorch_model.bin is damaged, or holds more than weights')
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "model.bin"])
def test_weights_that_transformers_does_not_read(
    kind: str, name: str, spoil: Callable[[str], Path]
) -> None:
    folder = spoil(kind)
    (folder / WEIGHTS).rename(folder / name)
    assert f"has its weights in {name}, which is no file of transformers" in one_line(kind, folder)


def test_pickled_weights_beside_safetensors_do_not_matter(spoil: Callable[[str], Path]) -> None:
    folder = spoil("clip")
    (folder / "pytorch_model.bin").write_bytes(b"not even pickle")
    load_clip(str(folder))


@pytest.mark.parametrize("kind", PLACES)
def test_weights_that_are_missing(kind: str, spoil: Callable[[str], Path]) -> None:
    folder = spoil(kind)
    weights = load_file(folder / WEIGHTS)
    stored, named = NEEDED[kind]
    del weights[stored]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert f"lacks 1 weight(s), such as {named}" in one_line(kind, folder)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_damaged_weights(kind: str, kept: int, spoil: Callable[[str], Path]) -> None:
    folder = spoil(kind)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:kept])
    assert one_line(kind, folder).startswith(f'Cannot load model "{folder}":')


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("clip", "config.json", "{"),
        ("clip", "preprocessor_config.json", None),
        ("clip", "tokenizer.json", None),
        ("clip", "tokenizer_config.json", None),
        ("language", "tokenizer_config.json", None),
        ("language", "generation_config.json", "{"),
        ("language", "tokenizer.json", "null"),
        ("reward", "tokenizer_config.json", None),
        ("reward", "visgrpo.json", '{"reward_std": "x"}'),
        ("vision", "tokenizer.json", None),
        ("clip", "visgrpo.json", '{"classes": 3}'),
        ("backbone", "config.json", "{"),
        ("backbone", "model.safetensors", "{"),
        ("backbone", "preprocessor_config.json", "{"),
        ("backbone", "preprocessor_config.json", None),
        ("vision", "preprocessor_config.json", None),
    ],
)
def test_a_damaged_or_missing_part(
    kind: str, name: str, content: str | None, spoil: Callable[[str], Path]
) -> None:
    folder = spoil(kind)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    said = one_line(kind, folder)
    assert name in said if content else f'"{folder}" has no {name}' in said


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("language", "config.json", {"use_cache": []}),
        ("language", "config.json", {"n_layer": 1}),
        ("language", "config.json", {"quantization_config": {"quant_method": "gptq"}}),
        ("language", "tokenizer_config.json", {"model_max_length": {"x": None}}),
        ("clip", "config.json", {"logit_scale_init_value": "x"}),
        ("clip", "preprocessor_config.json", {"crop_size": {"height": 8, "width": 8}}),
        ("clip", "tokenizer_config.json", {"tokenizer_class": 3}),
        ("backbone", "config.json", {"num_hidden_layers": 1}),
        ("backbone", "config.json", {"hidden_size": 10**9}),
    ],
)
def test_settings_that_belong_to_no_model_of_these_weights(
    kind: str, name: str, settings: dict[str, Any], spoil: Callable[[str], Path]
) -> None:
    """None of these is another model, silently, or a traceback."""
    folder = spoil(kind)
    edit(folder / name, **settings)
    assert str(folder) in one_line(kind, folder)


def test_a_clip_with_the_tokenizer_of_another(spoil: Callable[[str], Path]) -> None:
    folder = spoil("clip")
    chat_tokenizer().save_pretrained(folder)
    assert "is not the model's own" in one_line("clip", folder)


def test_a_checkpoint_s_own_code_is_not_run(spoil: Callable[[str], Path], tmp_path: Path) -> None:
    folder = spoil("language")
    proof = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(proof)!r}, 'w')\nclass Own: pass\n")
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    assert "brings code of its own" in one_line("language", folder)
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["clip", "backbone", "language", "vision"])
def test_a_model_of_another_kind(kind: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=4)
    ).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", model_type="bert" if kind != "language" else "clip")
    needed = {
        "clip": ("clip", "siglip"),
        "backbone": (*KINDS, "clip", "siglip"),
        "vision": ("qwen2_5_vl", "smolvlm"),
        "language": ("a causal language model such as gpt2 or qwen2",),
    }[kind]
    message = one_line(kind, tmp_path)
    assert message.startswith(f'"{tmp_path}" is a ')
    assert all(word in message for word in needed)
    if kind == "clip":
        assert message == f'"{tmp_path}" is a bert model; this job needs one of: clip, siglip.'
    if kind == "language":
        assert "is a clip model, which does not write text" in message


def test_paligemma_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Every token of its prompt sees all of it, which engines here would read otherwise."""
    (tmp_path / "config.json").write_text('{"model_type": "paligemma"}')
    message = one_line("vision", tmp_path)
    assert (
        "is a PaliGemma (paligemma), whose prompts see themselves whole and know no chat" in message
    )
    assert "gemma3" in message


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "nowhere/"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f'Model folder "{name}" does not exist'):
        check_model_name(name)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "gpt2"])
def test_a_hub_name_is_not_checked_without_the_network(name: str) -> None:
    check_model_name(name)


def test_a_file_is_not_a_model(tiny_clip_folder: Path) -> None:
    assert "give the folder" in one_line("clip", tiny_clip_folder / "config.json")


def test_info_is_what_was_saved_beside_the_model(spoil: Callable[[str], Path]) -> None:
    folder = spoil("clip")
    (folder / "visgrpo.json").write_text(json.dumps({"classes": ["a", "b"]}))
    assert load_clip(str(folder)).info == {"classes": ["a", "b"]}
    (folder / "visgrpo.json").unlink()
    assert read_info(str(folder)) == {}


def test_everything_that_belongs_to_a_clip(tiny_clip_folder: Path) -> None:
    parts = load_clip(str(tiny_clip_folder))
    assert parts.name == str(tiny_clip_folder)
    assert parts.preprocess.crop == (16, 16)
    assert parts.tokenizer("a cat")["input_ids"][0] == parts.tokenizer.bos_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_of_backbones_goes_through_a_folder(tmp_path: Path, kind: str) -> None:
    parts = load_backbone(str(saved_backbone(tmp_path, kind)))
    assert parts.name == str(tmp_path)
    assert parts.preprocess.size == (16, 16)
    assert parts.info == {}
    with torch.no_grad():
        found = Backbone(parts.model).eval()(picture())
        expected = Backbone(encoder_of(kind)).eval()(picture())
    torch.testing.assert_close(found.patches_NHWD, expected.patches_NHWD)


def test_clip_gives_its_image_tower(tiny_clip_folder: Path) -> None:
    from transformers import CLIPModel

    parts = load_backbone(str(tiny_clip_folder))
    with torch.no_grad():
        output = CLIPModel.from_pretrained(tiny_clip_folder).vision_model(picture())
        found = Backbone(parts.model).eval()(picture())
    assert found.class_token_ND is not None
    torch.testing.assert_close(found.class_token_ND, output.pooler_output)
    assert parts.preprocess.crop == (16, 16)
    assert preprocess_of(parts.processor) == parts.preprocess


def test_siglip_gives_its_image_tower(tiny_siglip_folder: Path) -> None:
    assert load_backbone(str(tiny_siglip_folder)).model.config.model_type == "siglip_vision_model"


def test_a_vit_may_lack_its_pooler(tmp_path: Path) -> None:
    """Checkpoints of classifiers have none; what is missing must not be random."""
    weights = saved_backbone(tmp_path, "vit") / WEIGHTS
    kept = {name: t for name, t in load_file(weights).items() if not name.startswith("pooler.")}
    save_file(kept, weights, {"format": "pt"})
    first, again = (load_backbone(str(tmp_path)).model.state_dict() for _ in range(2))
    assert not first["pooler.dense.weight"].any()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", ["DINOv3ViTImageProcessorFast", "DINOv3ViTImageProcessor"])
def test_a_processor_that_needs_torchvision(tmp_path: Path, name: str) -> None:
    settings = {**SETTINGS, "image_processor_type": name, "disable_grouping": None}
    parts = load_backbone(str(saved_backbone(tmp_path, "dinov3_vit", settings)))
    image = noise(33, 20)
    resized = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)) / 255
    expected = (resized - SETTINGS["image_mean"]) / np.array(SETTINGS["image_std"])
    np.testing.assert_allclose(parts.preprocess(image).permute(1, 2, 0), expected, atol=1e-6)
    (tmp_path / "again").mkdir()
    parts.processor.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert saved == settings


@pytest.mark.parametrize("edge", [16, 384])
@pytest.mark.parametrize("legacy", [False, True])
def test_convnext_preprocessing(tmp_path: Path, edge: int, legacy: bool) -> None:
    """As ResNet and ConvNeXt checkpoints on the Hub have it: a fraction that is cropped."""
    settings = {**SETTINGS, "size": {"shortest_edge": edge}, "crop_pct": 0.875, "resample": 3}
    settings["image_processor_type"] = "ConvNextImageProcessor"
    if legacy:
        del settings["image_processor_type"]
        settings.update(size=edge, feature_extractor_type="ConvNextFeatureExtractor")
    parts = load_backbone(str(saved_backbone(tmp_path, "resnet", settings)))
    for image in (noise(33, 20), noise(30, 41)):
        expected = parts.processor(image, return_tensors="pt")["pixel_values"][0]
        found = parts.preprocess(image)
        assert found.shape == (3, edge, edge)
        torch.testing.assert_close(found, expected)


def test_a_setting_that_is_not_understood(tmp_path: Path) -> None:
    settings = {**SETTINGS, "do_pad": True}
    assert '"do_pad"' in one_line("backbone", saved_backbone(tmp_path, "vit", settings))


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_everything_that_belongs_to_a_language_model(
    tmp_path: Path, architecture: Architecture
) -> None:
    parts = load_language(str(saved_language(tmp_path, architecture)))
    assert (parts.name, parts.info, parts.notes) == (str(tmp_path), {"task": "language"}, ())
    assert torch.equal(logits_of(parts.model), logits_of(tiny_language(architecture)))
    assert parts.tokenizer.decode(parts.tokenizer(TEXT)["input_ids"]) == TEXT
    assert context_of(parts.model) == 128
    assert stop_tokens(parts) == (parts.tokenizer.eos_token_id,)


def test_context_of_a_model_with_adapters() -> None:
    model = adapt(tiny_language(context=48), ["lora"], Adapt(2, 4.0))
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


def test_a_tokenizer_without_an_end(spoil: Callable[[str], Path]) -> None:
    path = spoil("language") / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    assert "has no end token" in one_line("language", path.parent)


def test_a_tokenizer_of_another_model(spoil: Callable[[str], Path]) -> None:
    folder = spoil("language")
    chat_tokenizer().save_pretrained(folder)
    assert "they do not belong together" in one_line("language", folder)


def test_everything_that_belongs_to_a_model_that_sees(good: dict[str, Path]) -> None:
    parts = load_vision_language(str(good["vision"]))
    assert (parts.name, parts.notes) == (str(good["vision"]), ())
    assert parts.info == {"task": "vision-language"}
    assert torch.equal(seen(parts), seen(tiny_vision()))
    assert parts.processor.placeholder_ids == tiny_vision().processor.placeholder_ids
    assert parts.processor.tokenizer is parts.tokenizer
    assert context_of(parts.model) == 128
    assert stop_tokens(parts) == (parts.tokenizer.eos_token_id,)


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_models_of_tiles_need_no_joining(kind: str, tmp_path: Path) -> None:
    start = tiny_smol(kind)
    parts = load_vision_language(str(saved_vision(tmp_path, start)))
    assert torch.equal(seen(parts), seen(start))
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_seq_len"] == 4


def test_a_limit_of_pixels_is_kept_when_saved(good: dict[str, Path], tmp_path: Path) -> None:
    parts = load_vision_language(str(good["vision"]), max_pixels=16 * 16)
    again = load_vision_language(str(saved_vision(tmp_path, parts)))
    assert again.processor.picture(noise(32, 32)).grid == (1, 4, 4)
    parts = load_vision_language(str(good["vision"]), min_pixels=16 * 16)
    again = load_vision_language(str(saved_vision(tmp_path / "larger", parts)))
    assert again.processor.picture(noise(8, 8)).grid == (1, 4, 4)


def test_a_chat_template_beside_the_processor(spoil: Callable[[str], Path]) -> None:
    folder = spoil("vision")
    template = {"chat_template": (folder / "chat_template.jinja").read_text()}
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in one_line("vision", folder)
    (folder / "chat_template.json").write_text(json.dumps(template))
    assert torch.equal(seen(load_vision_language(str(folder))), seen(tiny_vision()))


def test_weights_of_other_shapes_than_the_settings(spoil: Callable[[str], Path]) -> None:
    folder = spoil("vision")
    settings = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vision_config=settings["vision_config"] | {"hidden_size": 24})
    message = one_line("vision", folder)
    assert "weight(s) of other shapes than its config.json says: model.visual." in message
    assert message.endswith("blocks.0.attn.proj.bias is (16,), not (24,).")
    shutil.rmtree(folder)
    edit(spoil("clip") / "config.json", projection_dim=24)
    assert "weight(s) of other shapes than its config.json says: " in one_line("clip", folder)


def test_patches_of_another_size_than_the_model_s(spoil: Callable[[str], Path]) -> None:
    folder = spoil("vision")
    edit(folder / "preprocessor_config.json", patch_size=14)
    assert "The image processor has patch_size 14, the model 4" in one_line("vision", folder)


def tuned_adapter(kind: str, start: Path, folder: Path) -> torch.Tensor:
    """Save an adapter that changes something, and return the tuned model's logits."""
    if kind == "clip":
        tuned = classifier_from(start, LORA)
        train_clip(tuned, rate=0.1)
        save_adapter(tuned, folder)
        return clip_logits(tuned)
    parts = LOADERS[kind](str(start))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "language":
            model = adapt(parts.model, ["lora"], Adapt(2, 4.0))
            train(model)
        else:
            model = wrap_in_adapters(parts.model, ["q_proj", "v_proj"], Adapt(2, 4.0))
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight)
    save_adapter(model, folder)
    if kind == "language":
        return logits_of(model)
    made = parts.processor.picture(noise(24, 16))
    ids = parts.processor.prompt_ids(asking(), [made])
    return logits_about(model.merge_and_unload(), ids, made)


@pytest.mark.parametrize("kind", ["clip", "language", "vision"])
def test_adapters_are_merged_into_their_base_and_may_follow_each_other(
    kind: str, good: dict[str, Path], tmp_path: Path
) -> None:
    first = tuned_adapter(kind, good[kind], tmp_path / "first")
    second = tuned_adapter(kind, tmp_path / "first", tmp_path / "second")
    assert (second - first).abs().max() > 1e-3
    for name, expected in (("first", first), ("second", second)):
        check_model_name(str(tmp_path / name))
        parts = LOADERS[kind](str(tmp_path / name))
        assert parts.name == str(tmp_path / name)
        assert not hasattr(parts.model, "peft_config")
        if kind == "clip":
            found = clip_logits(classifier_from(tmp_path / name))
        else:
            found = logits_of(parts.model) if kind == "language" else seen(parts)
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-4 if kind == "clip" else 1e-5
        )
        named = "vision-language" if kind == "vision" else kind
        assert kind_of(str(tmp_path / name)) == named


def test_an_adapter_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "has no adapter_model.safetensors" in one_line("clip", tmp_path)


def test_an_adapter_whose_base_is_gone(tiny_clip_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_clip_folder, tmp_path / "base"))
    save_adapter(classifier_from(base, LORA), tmp_path / "adapter")
    shutil.rmtree(base)
    assert one_line("clip", tmp_path / "adapter") == f'Model folder "{base}" does not exist.'


def test_a_vision_language_model_with_sliding_windows(spoil: Callable[[str], Path]) -> None:
    """It sees as many tokens as the window has; with other kinds of layers it is refused."""
    folder = spoil("vision")
    config = json.loads((folder / "config.json").read_text())
    layers = config["text_config"]["num_hidden_layers"]
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 4}
    config["text_config"] |= {"max_window_layers": 0, "layer_types": ["sliding_attention"] * layers}
    (folder / "config.json").write_text(json.dumps(config))
    assert context_of(load_vision_language(str(folder)).model) == 4
    config["text_config"]["layer_types"] = ["chunked_attention"] * layers
    (folder / "config.json").write_text(json.dumps(config))
    assert "see a part of the context only" in one_line("vision", folder)


def _changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **values}))


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("preprocessor_config.json", {"do_rescale": []}, "do_rescale"),
        ("preprocessor_config.json", {"rescale_factor": "\x1b[31m"}, "rescale_factor"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id"),
    ],
)
def test_settings_of_another_kind(
    file: str, values: Any, told: str, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    _changed(folder, file, **values)
    with pytest.raises(UserError, match=f"{file} is damaged \\({told}") as refused:
        check_model_name(str(folder))
    assert "\x1b" not in printable(str(refused.value))


def test_an_adapter_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"use_rslora": "no", "r": 2}')
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_config.json is damaged \(use_rslora"):
        check_model_name(str(tmp_path))


def test_settings_of_no_tokenizer(tiny_clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    (folder / "tokenizer_config.json").write_text('{"1": {"2": null}}')
    with pytest.raises(UserError, match="has none of the settings of a tokenizer"):
        check_model_name(str(folder))


def test_what_visgrpo_saved_has_what_it_knows(tiny_clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    (folder / "README.md").write_text(start_card("A start", "clip", ["It is new."]))
    (folder / "visgrpo.json").unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"was saved by visgrpo, as its README\.md says, and has no"
    ):
        check_model_name(str(folder))
    (folder / "visgrpo.json").write_text("{}")
    check_model_name(str(folder))
    (folder / "visgrpo.json").write_text('{"learned": []}')
    with pytest.raises(UserError, match="says that the model has learned from nothing"):
        read_info(str(folder))


def test_settings_of_a_far_larger_model(tiny_clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    _changed(folder, "config.json", vision_config={"x": None})  # then ViT-B/32 by default
    with pytest.raises(
        UserError, match=r"its config.json describes [\d,]+ weights, and [\d,]+ are"
    ):
        load_clip(str(folder))


@pytest.mark.parametrize("key", ["answers", "style", "preset", "prompt", "coordinates"])
@pytest.mark.parametrize("value", [[], {"x": None}, 3])
def test_what_we_know_of_another_kind(key: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "visgrpo.json").write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=rf"is damaged \({key}"):
        read_info(str(tmp_path))
