"""What of a vision-language model trains: named parts, patterns, adapters, and the table of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from vision_folders import asking, noise, tiny_smol, tiny_vision

from visgrpo.data.pictures import Pictures
from visgrpo.errors import UserError
from visgrpo.models.adapt import trainable_parameters
from visgrpo.models.adapt_vision import TrainedPart, adapt_vision_language
from visgrpo.models.saving import merged
from visgrpo.models.token_reference import AdapterOff, FrozenStart, adapters_alone, reference_of
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.models.vision_loading import VisionParts

LAST = ("model.visual.merger.mlp.2.weight", "model.visual.merger.mlp.2.bias")
EMBEDDINGS = ("model.language_model.embed_tokens.weight",)


def adapt(model: Any, *train: str, rank: int = 2) -> tuple[Any, list[TrainedPart]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adapt_vision_language(model, train=train, rank=rank, alpha=4.0)


def trained(model: Any, *train: str) -> set[str]:
    return set(trainable_parameters(adapt(model, *train)[0]))


def named(model: Any, start: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(start)}


@pytest.fixture
def qwen() -> Any:
    return copy.deepcopy(tiny_vision().model)


def test_parts_of_qwen(qwen: Any) -> None:
    assert trained(qwen, "all") == set(dict(qwen.named_parameters()))
    assert trained(qwen, "merger") == named(qwen, "model.visual.merger.")
    assert trained(qwen, "merger-last") == set(LAST)
    assert trained(qwen, "vision") == named(qwen, "model.visual.")
    assert trained(qwen, "language") == named(qwen, "model.language_model.")
    assert trained(qwen, "embeddings") == set(EMBEDDINGS)
    assert trained(qwen, "head") == set(EMBEDDINGS)  # one matrix
    first = named(qwen, "model.language_model.layers.0.")
    assert trained(qwen, "layers:0") == first
    assert trained(qwen, "merger-last", "embeddings", "layers:0-0") == {
        *LAST,
        *EMBEDDINGS,
        *first,
    }


def test_parts_of_smolvlm() -> None:
    model = copy.deepcopy(tiny_smol("smolvlm").model)
    connector = {"model.connector.modality_projection.proj.weight"}
    assert trained(model, "merger") == trained(model, "merger-last") == connector
    tower = named(model, "model.vision_model.")
    assert trained(model, "vision") == connector | tower
    text = named(model, "model.text_model.")
    assert trained(model, "language") >= text
    assert trained(model, "language") & (connector | tower) == set()
    beside = trained(model, "lora", "merger")
    assert {name for name in beside if ".lora_" not in name} == {
        f"base_model.model.{name}" for name in connector
    }
    assert any(".text_model.layers.0." in name for name in beside)


def test_patterns_of_names(qwen: Any) -> None:
    biases = {name for name, _ in qwen.named_parameters() if name.endswith(".bias")}
    assert trained(qwen, "*.bias") == biases
    assert trained(qwen, "model.visual.merger.ln_q.weight") == {"model.visual.merger.ln_q.weight"}


def test_a_choice_replaces_the_one_before(qwen: Any) -> None:
    adapt(qwen, "language")
    assert trained(qwen, "merger-last") == set(LAST)


def test_adapters_on_the_language_model_alone(qwen: Any) -> None:
    names = trained(qwen, "lora")
    assert names
    assert all(".lora_" in name and ".language_model.layers." in name for name in names)
    layers = len(qwen.model.language_model.layers)
    assert len(names) == layers * 7 * 2  # q, k, v, o, gate, up, down


@pytest.mark.parametrize("train", [("lora",), ("lora", "merger-last", "layers:0")])
def test_adapters_start_as_no_change_and_merge(train: tuple[str, ...]) -> None:
    parts = tiny_vision()
    start = _logits(parts, parts.model)
    model, _ = adapt(copy.deepcopy(parts.model), *train)
    torch.testing.assert_close(_logits(parts, model), start, rtol=0, atol=1e-6)
    with torch.no_grad():
        for number, weight in enumerate(trainable_parameters(model).values()):
            weight += 0.05 * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(number)
            )
    now = _logits(parts, model)
    assert (now - start).abs().max() > 1e-3
    torch.testing.assert_close(_logits(parts, merged(model)), now, rtol=0, atol=1e-5)


def test_adapter_off_is_the_reference_only_where_nothing_else_trains(qwen: Any) -> None:
    alone = VisionLanguageModel(adapt(copy.deepcopy(qwen), "lora")[0])
    assert adapters_alone(alone)
    assert isinstance(reference_of(alone), AdapterOff)
    beside = VisionLanguageModel(adapt(copy.deepcopy(qwen), "lora", "merger-last")[0])
    assert not adapters_alone(beside)
    assert isinstance(reference_of(beside), FrozenStart)
    whole = VisionLanguageModel(adapt(qwen, "merger-last")[0])
    assert not adapters_alone(whole)


def test_the_table_counts_every_parameter_once(qwen: Any) -> None:
    total = sum(p.numel() for p in qwen.parameters())
    last = sum(dict(qwen.named_parameters())[name].numel() for name in LAST)
    _, rows = adapt(qwen, "merger-last")
    by_part = {row.part: row for row in rows}
    assert sum(row.total for row in rows) == total
    assert by_part["merger"][1:3] == (2, last)
    assert sum(row.parameters for row in rows) == last
    width, ff = qwen.config.text_config.hidden_size, qwen.config.text_config.intermediate_size
    _, rows = adapt(qwen, "lora", rank=3)
    lora = {row.part: row for row in rows}["lora"]
    layers = len(qwen.model.language_model.layers)
    # Four square layers, and three between the width and the wider one, each with two factors.
    assert lora.parameters == lora.total == layers * 3 * (4 * 2 * width + 3 * (width + ff))


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ((), "names nothing that trains"),
        (("megrer",), 'no part of this model. Did you mean "merger"?'),
        (("lroa",), 'Did you mean "lora"?'),
        (("xyz",), "Choose from: all, vision, merger, merger-last, language, embeddings, head"),
        (
            ("model.visual.merger.mlp.2.wieght",),
            'Did you mean "model.visual.merger.mlp.2.weight"?',
        ),
        (("layers:0-9",), "--train layers:0-9: the language model has the layers 0-1"),
        (("layers:1-0",), "the language model has the layers 0-1"),
        (("all", "lora"), "adapters add nothing where everything trains"),
    ],
)
def test_what_names_nothing_is_refused(qwen: Any, train: tuple[str, ...], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        adapt(qwen, *train)
    assert problem in str(caught.value)


def test_a_rank_below_one_is_refused(qwen: Any) -> None:
    with pytest.raises(UserError, match="--lora-rank 0: give 1 or more"):
        adapt(qwen, "lora", rank=0)


@torch.no_grad()
def _logits(parts: VisionParts, lm: Any) -> torch.Tensor:
    """Log-probs of three tokens after a prompt with an image."""
    picture = parts.processor.picture(noise(24, 16, seed=0))
    ids = torch.from_numpy(parts.processor.prompt_ids(asking("How many?", 1), [picture])).long()
    pictures = Pictures.of([[picture]], [[""]])
    completion = torch.tensor([[[5, 6, 7]]])
    model = VisionLanguageModel(lm).eval()
    return model.score(ids[None], torch.tensor([len(ids)]), completion, pictures=pictures)
