"""What trains, by literal name, for every choice of every kind of model."""

from __future__ import annotations

import copy
import itertools
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import KINDS, encoder_of, picture
from classifiers import classifier_from, frozen_copy
from classifiers import logits_of as clip_logits
from classifiers import train as train_clip
from language_models import logits_of, tiny_language, train
from torch import nn
from vision_folders import asking, noise, tiny_smol, tiny_vision

from visgrpo.data.pictures import Pictures
from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone, Pool, RepresentationClassifier, Segmenter
from visgrpo.models.language import LanguageModel
from visgrpo.models.options import Adapt
from visgrpo.models.parts import Parts
from visgrpo.models.reference import AdapterOff, FrozenStart, adapters_alone, reference_of
from visgrpo.models.save import merged
from visgrpo.models.small import Architecture
from visgrpo.models.trains import (
    USUAL,
    adapt,
    encoder_is_frozen,
    trainable_parameters,
    trained_parts,
)
from visgrpo.models.vision_language import VisionLanguageModel

SMALL = Adapt(2, 4.0)
# Of CLIP and SigLIP.
IMAGE = ["encoder.vision_model.*", "encoder.visual_projection.weight"]
TEXT = ["encoder.text_model.*", "encoder.text_projection.weight"]
PROJECTIONS = ["encoder.visual_projection.weight", "encoder.text_projection.weight"]
AFTER_BLOCKS = ["encoder.vision_model.post_layernorm.*", "encoder.visual_projection.weight"]
LAST_BLOCK = ["encoder.vision_model.encoder.layers.1.*", *AFTER_BLOCKS]
SCALE = "encoder.logit_scale"
IN_PEFT = "encoder.base_model.model."
LINEAR = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
WHOLE_BLOCK = IN_PEFT + "vision_model.encoder.layers.1.modules_to_save.default.*"
SCALE_IN_PEFT = IN_PEFT + "logit_scale"


def adapters(tower: str, *blocks: int) -> list[str]:
    return [
        f"{IN_PEFT}{tower}.encoder.layers.{block}.{linear}.lora_{side}.default.weight"
        for block, linear, side in itertools.product(blocks, LINEAR, "AB")
    ]


IMAGE_LORA, TEXT_LORA = adapters("vision_model", 0, 1), adapters("text_model", 0, 1)
SIGLIP_HEAD_LORA = [
    f"{IN_PEFT}vision_model.head.mlp.{linear}.lora_{side}.default.weight"
    for linear, side in itertools.product(("fc1", "fc2"), "AB")
]
ALL_BLOCKS = ["encoder.vision_model.encoder.layers.*", *AFTER_BLOCKS]
SIGLIP_LAST = [
    f"encoder.vision_model.{part}.*" for part in ("encoder.layers.1", "post_layernorm", "head")
]
BESIDE_A_BLOCK = [*adapters("vision_model", 0), WHOLE_BLOCK]
CLIP_CASES: list[tuple[str, str, list[str]]] = [
    ("image", "frozen", IMAGE),
    ("text", "frozen", TEXT),
    ("full", "frozen", IMAGE + TEXT),
    ("projections", "frozen", PROJECTIONS),
    ("image", "trainable", [*IMAGE, SCALE]),
    ("projections", "clamped", [*PROJECTIONS, SCALE]),
    ("image last:1", "frozen", LAST_BLOCK),
    ("image last:2", "frozen", ALL_BLOCKS),
    ("full last:1", "frozen", LAST_BLOCK + TEXT),
    ("visual_projection.* text_model.final*", "frozen", ["*.visual_p*", "*.final_layer_norm.*"]),
    ("image lora", "frozen", IMAGE_LORA),
    ("text lora", "frozen", TEXT_LORA),
    ("full lora", "frozen", IMAGE_LORA + TEXT_LORA),
    ("image lora", "trainable", [*IMAGE_LORA, SCALE_IN_PEFT]),
    ("image last:1 lora", "frozen", BESIDE_A_BLOCK),
    ("full last:1 lora", "clamped", [*BESIDE_A_BLOCK, *TEXT_LORA, SCALE_IN_PEFT]),
]
SIGLIP_CASES: list[tuple[str, str, list[str]]] = [
    ("image", "frozen", ["encoder.vision_model.*"]),
    ("text", "frozen", ["encoder.text_model.*"]),
    ("full", "trainable", ["encoder.vision_model.*", "encoder.text_model.*", SCALE]),
    ("image last:1", "frozen", SIGLIP_LAST),
    ("image lora", "frozen", IMAGE_LORA + SIGLIP_HEAD_LORA),
    ("text lora", "frozen", TEXT_LORA),
]
CLIP_AND_SIGLIP = [("tiny_clip_folder", *case) for case in CLIP_CASES]
CLIP_AND_SIGLIP += [("tiny_siglip_folder", *case) for case in SIGLIP_CASES]
# Of backbones.
TRANSFORMERS = [kind for kind in KINDS if "conv" not in kind and kind != "resnet"]
CLASSES = ("cat", "dog", "apple")
HEAD = ["head.projection.0.weight", "head.projection.0.bias", "head.output.*"]
LAST = {
    "dinov2": ["encoder.layer.1.*", "layernorm.*"],
    "dinov2_with_registers": ["encoder.layer.1.*", "layernorm.*"],
    "vit": ["layers.1.*", "layernorm.*"],
    "dinov3_vit": ["model.layer.1.*", "norm.*"],
    "dinov3_convnext": ["model.stages.2.*", "layer_norm.*"],
    "clip_vision_model": ["encoder.layers.1.*", "post_layernorm.*"],
    "siglip_vision_model": ["encoder.layers.1.*", "post_layernorm.*", "head.*"],
    "resnet": ["encoder.stages.1.*"],
    "convnext": ["encoder.stages.1.*", "layernorm.*"],
}
# Of language models.
ADAPTED = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "qwen2": (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
}
BLOCKS = {"gpt2": "transformer.h", "qwen2": "model.layers"}
ARCHITECTURES: tuple[Architecture, ...] = ("gpt2", "qwen2")
MERGER_LAST = ("model.visual.merger.mlp.2.weight", "model.visual.merger.mlp.2.bias")
EMBEDDINGS = ("model.language_model.embed_tokens.weight",)


def seeded(model: Any, words: str, sizes: Adapt = SMALL) -> Any:
    """Adapt a model, with adapters that start from seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adapt(model, words.split(), sizes)


def expected_names(model: nn.Module, patterns: list[str]) -> list[str]:
    """The parameters that patterns name; every pattern names one."""
    names = [name for name, _ in model.named_parameters()]
    assert [p for p in patterns if not any(fnmatchcase(name, p) for name in names)] == []
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]


def moved_since(start: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, p in trainable_parameters(model).items() if p.grad is None]


@pytest.mark.parametrize(("family", "words", "scale", "patterns"), CLIP_AND_SIGLIP)
def test_exactly_these_train_and_move(
    family: str, words: str, scale: Any, patterns: list[str], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    classifier = classifier_from(folder, words.split(), logit_scale=scale)
    expected = expected_names(classifier, patterns)
    assert list(trainable_parameters(classifier)) == expected
    assert encoder_is_frozen(classifier) == (not any("vision_model" in name for name in expected))
    start = frozen_copy(classifier)
    train_clip(classifier)
    assert without_gradient(classifier) == []
    moved = moved_since(start, classifier)
    assert moved
    assert moved <= set(expected)


@pytest.mark.parametrize("words", ["image", "text", "full", "image last:1", "full last:1"])
@pytest.mark.parametrize("family", ["tiny_clip_folder", "tiny_siglip_folder"])
def test_adapters_of_towers_start_as_the_base(
    family: str, words: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    adapted, base = classifier_from(folder, [*words.split(), "lora"]), classifier_from(folder)
    assert torch.equal(clip_logits(adapted), clip_logits(base))


@pytest.mark.parametrize("family", ["clip", "backbone"])
def test_rank_and_alpha_arrive(family: str, tiny_clip_folder: Path) -> None:
    sizes = Adapt(3, 12.0)
    if family == "clip":
        classifier = seeded(classifier_from(tiny_clip_folder), "image lora", sizes)
        layer, width = classifier.backbone.vision_model.encoder.layers[0].mlp.fc1, 32
    else:
        layer = headed("dinov2", "lora", sizes=sizes).backbone.plain.encoder.layer[0].mlp.fc1
        width = 16
    assert layer.lora_A["default"].weight.shape == (3, width)
    assert layer.scaling["default"] == 4.0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("image last:-1", "--last-blocks -1: the image tower has 2 blocks."),
        ("image last:3", "--last-blocks 3: the image tower has 2 blocks."),
        ("text last:1", "--last-blocks are the image tower's: they do not go with --train text."),
        ("projections lora", "--train lora adapts towers: choose image, text or full beside it."),
        ("imgae", '--train "imgae" is no part of this model. Did you mean "image"?'),
    ],
)
def test_what_a_clip_cannot_follow(tiny_clip_folder: Path, words: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        classifier_from(tiny_clip_folder, words.split())
    assert str(caught.value) == problem


def test_siglip_has_no_projections(tiny_siglip_folder: Path) -> None:
    with pytest.raises(UserError, match="siglip has no projection layers"):
        classifier_from(tiny_siglip_folder, ["projections"])


def headed(kind: str, words: str, pool: Pool = "cls", *, sizes: Adapt = USUAL) -> Any:
    backbone = Backbone(encoder_of(kind))
    model = RepresentationClassifier(backbone, CLASSES, pool=pool, hidden=8)
    return seeded(model, words, sizes)


def check_that_exactly_these_move(model: Any, patterns: list[str]) -> None:
    expected = expected_names(model, patterns)
    assert list(trainable_parameters(model)) == expected
    start = frozen_copy(model)
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    model.train()
    for _ in range(2):  # LoRA's A moves only after its B
        optimizer.zero_grad()
        logits = model(picture()).flatten(0, -2)
        F.cross_entropy(logits, torch.zeros(len(logits)).long()).backward()
        assert without_gradient(model) == []
        optimizer.step()
    moved = moved_since(start, model)
    assert moved <= set(expected)
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("backbone.") for name in moved) != encoder_is_frozen(model)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen(kind: str) -> None:
    model = headed(kind, "frozen")
    assert encoder_is_frozen(model)
    before = model.backbone.eval()(picture()).patches_NHWD
    check_that_exactly_these_move(model, HEAD)
    torch.testing.assert_close(model.backbone(picture()).patches_NHWD, before)


@pytest.mark.parametrize("kind", KINDS)
def test_last_blocks(kind: str) -> None:
    model = headed(kind, "last:1")
    check_that_exactly_these_move(model, HEAD + [f"backbone.encoder.{name}" for name in LAST[kind]])
    blocks = model.backbone.plain.get_submodule(LAST[kind][0][: -len(".1.*")])
    assert not blocks[0].training  # its dropout and statistics rest
    assert blocks[-1].training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
def test_full_trains_whatever_takes_part(kind: str, pool: Pool) -> None:
    model = headed(kind, "full", pool)
    idle = ["*.mask_token", "*.encoder.pooler.*"]
    if pool == "mean":
        idle += {
            "clip_vision_model": ["*.post_layernorm.*"],
            "siglip_vision_model": ["backbone.encoder.head.*"],
            "convnext": ["backbone.encoder.layernorm.*"],
        }.get(kind, [])
    names = [name for name, _ in model.named_parameters()]
    expected = [name for name in names if not any(fnmatchcase(name, p) for p in idle)]
    check_that_exactly_these_move(model, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_full_segmentation(kind: str) -> None:
    model = Segmenter(Backbone(encoder_of(kind)), CLASSES, hidden=8)
    expected = list(trainable_parameters(seeded(model, "full")))
    assert "backbone.encoder.post_layernorm.weight" not in expected or kind != "clip_vision_model"
    model.train()(picture(32, 32)).sum().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "conv" not in kind and kind != "resnet"]
)
@pytest.mark.parametrize("beside", ["", " last:1"])
def test_lora_of_transformers(kind: str, beside: str) -> None:
    prefix = LAST[kind][0].removesuffix(".1.*")
    is_clip = kind in ("clip_vision_model", "siglip_vision_model")
    linear = [f"self_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "out_proj")]
    if not is_clip:
        linear = [f"attention.{x}" for x in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linear += ["mlp.up_proj", "mlp.down_proj"] if kind == "dinov3_vit" else ["mlp.fc1", "mlp.fc2"]
    inside = "backbone.encoder.base_model.model."
    patterns = [
        f"{inside}{prefix}.{block}.{name}.lora_{side}.default.weight"
        for block, name, side in itertools.product((0, 1), linear, "AB")
    ]
    if beside:
        patterns += [f"{inside}{name}" for name in LAST[kind]]
    check_that_exactly_these_move(headed(kind, f"lora{beside}"), HEAD + patterns)


@pytest.mark.parametrize("kind", ["convnext", "dinov3_convnext"])
def test_lora_of_convnets_is_on_their_pointwise_layers(kind: str) -> None:
    layer = "pwconv?" if kind == "convnext" else "pointwise_conv?"
    pattern = f"backbone.encoder.base_model.model.*.stages.*.layers.0.{layer}.lora_?.default.weight"
    check_that_exactly_these_move(headed(kind, "lora"), [*HEAD, pattern])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resnet"])
def test_adapters_of_backbones_start_as_the_base(kind: str) -> None:
    model = headed(kind, "lora").eval()
    expected = Backbone(encoder_of(kind)).eval()(picture()).patches_NHWD
    torch.testing.assert_close(model.backbone(picture()).patches_NHWD, expected)


def test_a_resnet_has_no_place_for_adapters() -> None:
    with pytest.raises(UserError, match="a resnet has no linear layers for adapters; choose last-"):
        headed("resnet", "lora")


@pytest.mark.parametrize("last", [0, -1, 3])
def test_last_blocks_must_exist(last: int) -> None:
    with pytest.raises(UserError, match=f"--last-blocks {last}: this dinov2 has 2 blocks"):
        headed("dinov2", f"last:{last}")


def test_batch_statistics_move_only_where_the_stage_trains() -> None:
    model = headed("resnet", "last:1").train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    model(picture())
    moved = {name for name, b in model.named_buffers() if not torch.equal(b, before[name])}
    assert moved
    assert all(name.startswith("backbone.encoder.encoder.stages.1.") for name in moved)


def test_batch_statistics_of_full_tuning_travel_in_the_state() -> None:
    tuned, other, start = (headed("resnet", "full") for _ in range(3))
    tuned.train()(picture())
    other.load_state_dict(tuned.state_dict())
    start.load_state_dict(dict(tuned.named_parameters()), strict=False)  # the weights alone
    expected = tuned.eval()(picture())
    torch.testing.assert_close(other.eval()(picture()), expected)
    assert not torch.allclose(start.eval()(picture()), expected)


def test_adapting_leaves_mode_and_gradients_as_they_were() -> None:
    model = headed("vit", "full")
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_on_every_linear_layer_but_the_head(architecture: Architecture) -> None:
    model = seeded(tiny_language(architecture), "lora")
    assert set(trainable_parameters(model)) == {
        f"base_model.model.{BLOCKS[architecture]}.{block}.{layer}.lora_{side}.default.weight"
        for block, layer, side in itertools.product((0, 1), ADAPTED[architecture], "AB")
    }


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "qwen2_5_vl"])
def test_the_layers_of_adapters_are_those_that_peft_calls_all_linear(kind: Any) -> None:
    from peft import LoraConfig, get_peft_model

    sees = kind == "qwen2_5_vl"
    ours = seeded(copy.deepcopy(tiny_vision().model) if sees else tiny_language(kind), "lora")
    model = copy.deepcopy(tiny_vision().model) if sees else tiny_language(kind)
    trunk = model.model.language_model if sees else model
    fan = kind == "gpt2"
    theirs = get_peft_model(trunk, LoraConfig(target_modules="all-linear", fan_in_fan_out=fan))
    inside = "base_model.model." + ("model.language_model." if sees else "")
    found = {name.removeprefix("base_model.model.") for name in trainable_parameters(theirs)}
    assert {name.removeprefix(inside) for name in trainable_parameters(ours)} == found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_start_as_no_change_and_off_is_the_start(architecture: Architecture) -> None:
    start = logits_of(tiny_language(architecture))
    model = seeded(tiny_language(architecture), "lora")
    torch.testing.assert_close(logits_of(model), start, rtol=0, atol=1e-6)
    train(model)
    assert (logits_of(model) - start).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), start, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_parts_of_a_language_model(architecture: Architecture) -> None:
    model = tiny_language(architecture).requires_grad_(False)
    assert adapt(model, ["all"]) is model
    assert all(parameter.requires_grad for parameter in model.parameters())
    first, last = (f"{BLOCKS[architecture]}.{i}." for i in (0, 1))
    assert trained(model, "layers:0") == named(model, first)
    after = "transformer.ln_f." if architecture == "gpt2" else "model.norm."
    assert trained(model, "last:1") == named(model, last) | named(model, after)
    embedding = "transformer.wte.weight" if architecture == "gpt2" else "model.embed_tokens.weight"
    assert trained(model, "embeddings") == trained(model, "head") == {embedding}  # one matrix


def test_a_language_model_without_linear_layers() -> None:
    model = tiny_language()
    model.transformer.h = nn.ModuleList()
    with pytest.raises(UserError, match="a gpt2 has no linear layers"):
        seeded(model, "lora")


def trained(model: Any, words: str) -> set[str]:
    return set(trainable_parameters(seeded(model, words)))


def named(model: Any, start: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(start)}


@pytest.fixture
def qwen() -> Any:
    return copy.deepcopy(tiny_vision().model)


def test_parts_of_qwen(qwen: Any) -> None:
    assert trained(qwen, "all") == set(dict(qwen.named_parameters()))
    assert trained(qwen, "merger") == named(qwen, "model.visual.merger.")
    assert trained(qwen, "merger-last") == set(MERGER_LAST)
    assert trained(qwen, "vision") == named(qwen, "model.visual.")
    assert trained(qwen, "language") == named(qwen, "model.language_model.")
    assert trained(qwen, "embeddings") == trained(qwen, "head") == set(EMBEDDINGS)  # one matrix
    first = named(qwen, "model.language_model.layers.0.")
    assert trained(qwen, "layers:0") == first
    together = {*MERGER_LAST, *EMBEDDINGS, *first}
    assert trained(qwen, "merger-last embeddings layers:0-0") == together


def test_parts_of_smolvlm() -> None:
    model = copy.deepcopy(tiny_smol("smolvlm").model)
    connector = {"model.connector.modality_projection.proj.weight"}
    assert trained(model, "merger") == trained(model, "merger-last") == connector
    tower = named(model, "model.vision_model.")
    assert trained(model, "vision") == connector | tower
    text = named(model, "model.text_model.")
    assert trained(model, "language") >= text
    assert trained(model, "language") & (connector | tower) == set()
    beside = trained(model, "lora merger")
    assert {name for name in beside if ".lora_" not in name} == {
        f"base_model.model.{name}" for name in connector
    }
    assert any(".text_model.layers.0." in name for name in beside)


def test_patterns_of_names(qwen: Any) -> None:
    biases = {name for name, _ in qwen.named_parameters() if name.endswith(".bias")}
    assert trained(qwen, "*.bias") == biases
    assert trained(qwen, "model.visual.merger.ln_q.weight") == {"model.visual.merger.ln_q.weight"}


def test_a_choice_replaces_the_one_before(qwen: Any) -> None:
    seeded(qwen, "language")
    assert trained(qwen, "merger-last") == set(MERGER_LAST)


def test_adapters_on_the_language_model_alone(qwen: Any) -> None:
    layers = len(qwen.model.language_model.layers)
    names = trained(qwen, "lora")
    assert all(".lora_" in name and ".language_model.layers." in name for name in names)
    assert len(names) == layers * 7 * 2  # q, k, v, o, gate, up, down


@pytest.mark.parametrize("words", ["lora", "lora merger-last layers:0"])
def test_adapters_of_a_model_that_sees_start_as_no_change_and_merge(words: str) -> None:
    parts = tiny_vision()
    start = _logits(parts, parts.model)
    model = seeded(copy.deepcopy(parts.model), words)
    torch.testing.assert_close(_logits(parts, model), start, rtol=0, atol=1e-6)
    with torch.no_grad():
        for number, weight in enumerate(trainable_parameters(model).values()):
            generator = torch.Generator().manual_seed(number)
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    now = _logits(parts, model)
    assert (now - start).abs().max() > 1e-3
    torch.testing.assert_close(_logits(parts, merged(model)), now, rtol=0, atol=1e-5)


def test_adapter_off_is_the_reference_only_where_nothing_else_trains(qwen: Any) -> None:
    alone = VisionLanguageModel(seeded(copy.deepcopy(qwen), "lora"))
    assert adapters_alone(alone)
    assert isinstance(reference_of(alone), AdapterOff)
    beside = VisionLanguageModel(seeded(copy.deepcopy(qwen), "lora merger-last"))
    assert not adapters_alone(beside)
    assert isinstance(reference_of(beside), FrozenStart)
    assert not adapters_alone(VisionLanguageModel(seeded(qwen, "merger-last")))


def test_the_table_counts_every_parameter_once(qwen: Any) -> None:
    total = sum(p.numel() for p in qwen.parameters())
    last = sum(dict(qwen.named_parameters())[name].numel() for name in MERGER_LAST)
    rows = trained_parts(seeded(qwen, "merger-last"))
    by_part = {row.part: row for row in rows}
    assert sum(row.total for row in rows) == total
    assert by_part["merger"][1:3] == (2, last)
    assert sum(row.parameters for row in rows) == last
    width, ff = qwen.config.text_config.hidden_size, qwen.config.text_config.intermediate_size
    layers = len(qwen.model.language_model.layers)
    rows = trained_parts(seeded(qwen, "lora", Adapt(3, 4.0)))
    assert [row.part for row in rows] == [*by_part, "lora"]
    lora = rows[-1]
    # Four square layers, and three between the width and the wider one, each with two factors.
    assert lora.parameters == lora.total == layers * 3 * (4 * 2 * width + 3 * (width + ff))
    assert sum(row.total for row in rows) == total + lora.total


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("", "names nothing that trains"),
        ("megrer", 'no part of this model. Did you mean "merger"?'),
        ("lroa", 'Did you mean "lora"?'),
        ("xyz", "Choose from: all, vision, merger, merger-last, language, embeddings, head"),
        ("model.visual.merger.mlp.2.wieght", 'Did you mean "model.visual.merger.mlp.2.weight"?'),
        ("layers:0-9", "--train layers:0-9: the language model has the layers 0-1"),
        ("layers:1-0", "the language model has the layers 0-1"),
        ("last:3", "--train last:3: the language model has 2 layers."),
        ("all lora", "adapters add nothing where everything trains"),
    ],
)
def test_what_names_nothing_is_refused(qwen: Any, words: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        seeded(qwen, words)
    assert problem in str(caught.value)


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="--lora-rank 0: give 1 or more"):
        seeded(tiny_language(), "lora", Adapt(lora_rank=0))


@torch.no_grad()
def _logits(parts: Parts, lm: Any) -> torch.Tensor:
    """Log-probs of three tokens after a prompt with an image."""
    picture = parts.processor.picture(noise(24, 16, seed=0))
    ids = torch.from_numpy(parts.processor.prompt_ids(asking("How many?", 1), [picture])).long()
    pictures = Pictures.of([[picture]], [[""]])
    completion = torch.tensor([[[5, 6, 7]]])
    model = VisionLanguageModel(lm).eval()
    return model.score(ids[None], torch.tensor([len(ids)]), completion, pictures=pictures)


@pytest.mark.parametrize("kind", ["rslora", "dora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kinds_of_adapters(architecture: Architecture, kind: Any, tmp_path: Path) -> None:
    """They start as no change, train, are off at the start, and are saved and loaded by peft."""
    from peft import PeftModel

    start = logits_of(tiny_language(architecture))
    model = seeded(tiny_language(architecture), "lora", Adapt(4, 6.0, kind))
    torch.testing.assert_close(logits_of(model), start, rtol=0, atol=1e-6)
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert all(m.scaling["default"] == (3.0 if kind == "rslora" else 1.5) for m in layers)
    lengths = [name for name in trainable_parameters(model) if "magnitude" in name]
    assert len(lengths) == (len(layers) if kind == "dora" else 0)
    assert adapters_alone(LanguageModel(model))
    train(model)
    end = logits_of(model)
    assert (end - start).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), start, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_of(merged(model)), end, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(tiny_language(architecture), str(tmp_path))
    torch.testing.assert_close(logits_of(again), end, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("q_proj", "v_proj"), ["self_attn.q_proj", "self_attn.v_proj"]),
        (("*.1.mlp.*",), ["1.mlp.gate_proj", "1.mlp.up_proj", "1.mlp.down_proj"]),
        (("layers.0.self_attn.k_proj",), ["0.self_attn.k_proj"]),
    ],
)
def test_adapters_on_the_layers_that_are_named(targets: Any, layers: list[str]) -> None:
    model = seeded(tiny_language("qwen2"), "lora", Adapt(2, 4.0, lora_targets=targets))
    found = [name for name, m in model.named_modules() if hasattr(m, "lora_A")]
    assert len(found) == len(layers) * (2 if "." not in targets[0] else 1)
    assert all(any(name.endswith(layer) for name in found) for layer in layers)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r'--lora-targets "q_porj" is no .* Did you mean "q_proj"'):
        seeded(tiny_language("qwen2"), "lora", Adapt(lora_targets=("v_proj", "q_porj")))
