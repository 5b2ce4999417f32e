"""Published layouts, from twins.py: every job that takes one trains it; transformers reloads it.

What is trained and saved is loaded again by plain transformers (and peft), which must say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from running import clip, read_json, represent, see, segment, speak
from safetensors.torch import load_file

import twins
from making import picture, write_counts, write_pictures
from visgrpo.errors import UserError
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import (
    load_backbone,
    load_clip,
    load_language,
    load_representation,
    load_vision_language,
)
from visgrpo.models.parts import Parts
from visgrpo.tasks.use import kind_of

STEPS = ("--steps", "2")
FEW = (*STEPS, "--no-report")
Twin = Callable[[str], Path]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """The folder of a checkpoint's twin, made when it is first asked for."""
    root = tmp_path_factory.mktemp("twins")

    def made(name: str) -> Path:
        return root / name if (root / name).exists() else twins.twin(name, root / name)

    return made


@pytest.fixture(scope="module")
def few_counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counts(tmp_path_factory.mktemp("counts"), rows=20)


@pytest.fixture(scope="module")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = {"train": 4, "val": 2, "test": 2}
    return write_pictures(tmp_path_factory.mktemp("pictures"), few)


def photo() -> Image.Image:
    return picture(0, 0).resize((60, 40))


def with_adapter(start: Path, run: Path, auto: Any) -> Any:
    """Plain transformers' start with the run's adapter on it, by peft."""
    from peft import PeftModel

    return PeftModel.from_pretrained(auto.from_pretrained(start).eval(), str(run / "adapter"))


def same(ours: Any, plain: Any) -> bool:
    """Whether two models of transformers have the same weights, by name."""
    a, b = ours.state_dict(), plain.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name].float()) for name in a)


def moved(before: Any, after: Any) -> bool:
    a, b = before.state_dict(), after.state_dict()
    return any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", twins.DUAL)
def test_clip(name: str, twin: Twin, few_pictures: Path, tmp_path: Path) -> None:
    run = clip(twin(name), few_pictures, tmp_path / "run", "--train", "full", *FEW)
    folder = run / "model"
    parts = load_clip(str(folder))
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    assert same(parts.model, plain)
    assert moved(load_clip(str(twin(name))).model, plain)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    ours = ClipClassifier(parts.model, parts.tokenizer, ["Cat", "dog"], ["A photo of a {}."]).eval()
    texts = ["A photo of a Cat.", "A photo of a dog."]
    words: dict[str, Any] = {"padding": True}
    if "siglip" in name:  # as its authors have it: small letters, 64 tokens, padded on the right
        texts = [text.lower() for text in texts]
        words = {"padding": "max_length", "max_length": 64, "padding_side": "right"}
    inputs = tokenizer(texts, return_tensors="pt", **words)
    if "siglip" in name:
        inputs.pop("attention_mask", None)
    pixels = images(images=[photo()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = plain(**inputs, pixel_values=pixels).logits_per_image
        mine = ours(parts.preprocess(photo())[None])
    bias = getattr(plain, "logit_bias", torch.zeros(()))
    torch.testing.assert_close(mine, theirs - bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [twins.CLIP, twins.SIGLIP])
def test_adapters_of_clip(name: str, twin: Twin, few_pictures: Path, tmp_path: Path) -> None:
    run = clip(twin(name), few_pictures, tmp_path / "run", "--train", "full", "--lora", *FEW)
    adapted = with_adapter(twin(name), run, transformers.AutoModel)
    merged = transformers.AutoModel.from_pretrained(run / "model")
    for weight, expected in zip(
        adapted.merge_and_unload().state_dict().values(), merged.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)


def test_siglip_s_tokenizers_keep_no_capital_and_no_full_stop(twin: Twin) -> None:
    """SigLIP's tokenizer leaves both out by itself; SigLIP 2's leaves capitals to us."""
    for name, count in ((twins.SIGLIP, 64), (twins.SIGLIP2, 64)):
        parts = load_clip(str(twin(name)))
        ids = [
            ClipClassifier(parts.model, parts.tokenizer, ["a", "b"], [template])._token_ids
            for template in ("A Photo of {}", "a photo of {}")
        ]
        assert torch.equal(*ids)
        assert ids[0].shape == (2, count)


@pytest.mark.parametrize("name", [*twins.BACKBONES, twins.CLIP, twins.SIGLIP])
def test_representation(name: str, twin: Twin, few_pictures: Path, tmp_path: Path) -> None:
    run = represent(twin(name), few_pictures, tmp_path / "run", "--train", "full", *FEW)
    folder = run / "model"
    model, parts = load_representation(folder)
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    assert same(model.backbone.plain, plain)
    assert moved(load_backbone(str(twin(name))).model, plain)
    pixels = parts.preprocess(photo())[None]
    images = transformers.AutoImageProcessor
    if name != twins.DINOV3:  # whose image processor transformers builds only with torchvision
        made = images.from_pretrained(folder, backend="pil")(images=[photo()], return_tensors="pt")
        torch.testing.assert_close(made["pixel_values"], pixels)
    with torch.no_grad():
        pooled = plain(pixel_values=pixels).pooler_output
        features = model.features(pixels)
    if name not in (twins.VIT, twins.DINOV2, twins.DINOV3):  # a first token, and not the pooler's
        torch.testing.assert_close(features, pooled.flatten(1))


@pytest.mark.parametrize("name", [twins.DINOV2, twins.DINOV3])
def test_segmentation(name: str, twin: Twin, masks: Path, tmp_path: Path) -> None:
    train = ("--image-size", "64", "64", "--train", "lora")
    run = segment(twin(name), masks, tmp_path / "run", *train, *FEW)
    model, _ = load_representation(run / "model")
    assert same(model.backbone.plain, transformers.AutoModel.from_pretrained(run / "model"))


def text_moved(start: Path, run: Path, load: Callable[[str], Parts], auto: Any) -> None:
    plain = auto.from_pretrained(run / "model").eval()
    assert same(load(str(run)).model, plain)
    assert moved(load(str(start)).model, plain)
    ended = read_json(run / "model" / "generation_config.json")["eos_token_id"]
    given = start / "generation_config.json"
    if given.exists():
        assert ended == read_json(given)["eos_token_id"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("Count the", return_tensors="pt")
    written = plain.generate(**ids, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > ids["input_ids"].shape[1]


@pytest.mark.parametrize("name", twins.WRITING)
@pytest.mark.parametrize("method", ["sft", "grpo", "ppo"])
def test_language(name: str, method: str, twin: Twin, short_text: Path, tmp_path: Path) -> None:
    context = ("--context", "48") if method == "sft" else ()
    few = (*STEPS, "--eval-every", "2", *context)
    run = speak(method, twin(name), short_text, tmp_path / "run", *few)
    text_moved(twin(name), run, load_language, transformers.AutoModelForCausalLM)


@pytest.mark.parametrize("name", twins.SEEING)
def test_vlm(name: str, twin: Twin, few_counts: Path, tmp_path: Path) -> None:
    few = (*STEPS, "--eval-every", "2", "--eval-images", "2", "--batch-size", "2")
    auto = transformers.AutoModelForImageTextToText
    sft = see("sft", twin(name), few_counts, tmp_path / "sft", *few, "--train", "all")
    text_moved(twin(name), sft, load_vision_language, auto)
    grpo = see("grpo", sft, few_counts, tmp_path / "grpo", *few, "--train", "lora")
    adapted = with_adapter(sft / "model", grpo, auto).merge_and_unload()
    merged = auto.from_pretrained(grpo / "model").state_dict()
    for key, weight in adapted.state_dict().items():
        torch.testing.assert_close(weight, merged[key], atol=1e-6, rtol=1e-5)


def test_what_no_job_takes_is_named_with_what_they_take(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}')
    with pytest.raises(UserError, match="is a blip-2 model, which nothing here takes") as caught:
        kind_of(str(tmp_path))
    assert all(word in str(caught.value) for word in ("siglip", "dinov2", "qwen2_5_vl", "gpt2"))
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(UserError, match=r"is a NaFlex SigLIP 2 \(siglip2\)"):
        load_clip(str(tmp_path))


def test_twins_have_the_names_of_weights_that_were_published(twin: Twin) -> None:
    named = {
        twins.SIGLIP: "vision_model.head.probe",
        twins.DINOV2: "encoder.layer.0.layer_scale1.lambda1",
        twins.VIT: "vit.encoder.layer.0.attention.attention.query.weight",
        twins.RESNET: "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight",
        twins.GPT2: "h.0.attn.bias",
        twins.QWEN: "model.layers.0.self_attn.q_proj.bias",
        twins.QWEN_VL: "visual.blocks.0.attn.qkv.weight",
        twins.QWEN3_VL: "model.visual.deepstack_merger_list.0.norm.weight",
        twins.SMOL: "model.connector.modality_projection.proj.weight",
    }
    for name, key in named.items():
        files = twin(name).glob("*.safetensors")
        assert key in {each for file in files for each in load_file(file)}, name
