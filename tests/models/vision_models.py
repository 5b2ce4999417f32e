"""Tiny models that see, batches of prompts with images, and transformers' forward one by one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vision_folders import SIZES, asking, noise, tiny_smol, tiny_vision

from visgrpo.data.pictures import Picture, Pictures
from visgrpo.data.text import lengths, padded
from visgrpo.models.language import Engine
from visgrpo.models.options import Adapt
from visgrpo.models.parts import Parts
from visgrpo.models.trains import adapt
from visgrpo.models.vision_language import FEATURE_BYTES, VisionLanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution

# What trains; frozen parts before it are computed once.
TRAINED: dict[str, tuple[str, ...]] = {
    "all": ("all",),
    "tower": ("model.visual.blocks.*",),
    "merger": ("merger",),
    "language": ("language",),
    "lora": ("lora",),
    "lora and merger": ("lora", "merger"),
}
NOTHING_CUT = TokenDistribution()


@functools.cache
def qwen() -> Parts:
    """Images of up to 8 × 8 tokens, of which 4 × 4 see each other in the tower's first block."""
    return spread(tiny_vision(sizes=replace(SIZES, max_pixels=64 * 64)))


@functools.cache
def sharing_keys() -> Parts:
    """As large ones are built: two heads of the language model share their keys and values."""
    config = copy.deepcopy(qwen().model.config)
    config.text_config.num_key_value_heads = 1
    return spread(replace(qwen(), model=type(qwen().model)(config).eval()))


@functools.cache
def smol(kind: str = "smolvlm") -> Parts:
    return spread(tiny_smol(kind))


def spread(parts: Parts) -> Parts:
    """Weights so large that logits, and what an image changes in them, differ clearly."""
    generator = torch.Generator().manual_seed(0)
    for weight in parts.model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return parts


def seeing(
    train: str = "all",
    engine: Engine = "shared",
    parts: Parts | None = None,
    feature_bytes: int = FEATURE_BYTES,
    folder: Path | None = None,
) -> VisionLanguageModel:
    """A policy of its own weights; adapters, where it has them, are no longer the identity."""
    lm = copy.deepcopy((parts or qwen()).model)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lm = adapt(lm, TRAINED[train], Adapt(2, 4.0))
        for name, weight in lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    return VisionLanguageModel(lm, engine=engine, feature_bytes=feature_bytes, folder=folder)


@dataclass(frozen=True)
class Scene:
    """N prompts with the images of each, and G completions of T tokens."""

    ids_N: list[np.ndarray]
    pictures_N: list[list[Picture]]
    completions_NGT: Tensor
    padding: int = 0  # more of it than the longest prompt needs

    def batch(self, keys: Callable[[int, int], str] = "{}/{}".format) -> dict[str, Any]:
        """What a model's forward takes, images with keys by which features may be kept."""
        named = [[keys(n, i) for i in range(len(p))] for n, p in enumerate(self.pictures_N)]
        prompts_NP = padded(self.ids_N, 0, "left")
        return {
            "prompts_NP": torch.nn.functional.pad(prompts_NP, (self.padding, 0)),
            "lengths_N": lengths(self.ids_N),
            "completions_NGT": self.completions_NGT,
            "pictures": Pictures.of(self.pictures_N, named),
        }

    def rows(self, chosen: Sequence[int]) -> Scene:
        return replace(
            self,
            ids_N=[self.ids_N[n] for n in chosen],
            pictures_N=[self.pictures_N[n] for n in chosen],
            completions_NGT=self.completions_NGT[list(chosen)],
        )


def scene(
    sizes_N: Sequence[Sequence[tuple[int, int]]] = (((24, 16),), ((40, 48), (16, 16)), ()),
    *,
    parts: Parts | None = None,
    group_size: int = 2,
    length: int = 4,
    padding: int = 0,
    ragged: bool = True,
) -> Scene:
    """Prompts about images of some sizes; the default has one, two and none, of 3 to 30 tokens."""
    processor = (parts or qwen()).processor
    pictures = [
        [
            processor.picture(noise(*size, seed=10 * n + i), len(sizes) == 1)
            for i, size in enumerate(sizes)
        ]
        for n, sizes in enumerate(sizes_N)
    ]
    questions = ["How many?" + "!" * (5 * n if ragged else 0) for n in range(len(pictures))]
    ids = [
        processor.prompt_ids(asking(question, len(each)), each)
        for question, each in zip(questions, pictures, strict=True)
    ]
    shape = (len(ids), group_size, length)
    completions = torch.randint(1, 200, shape, generator=torch.Generator().manual_seed(0))
    return Scene(ids, pictures, completions, padding)


class Answer(NamedTuple):
    """Log-probs and entropies (N, G, T), and the gradients of a weighted sum of both."""

    log_probs: Tensor
    entropy: Tensor
    gradients: dict[str, Tensor]


class Differences(NamedTuple):
    """The largest of log-probs and entropies in nats; of gradients relative to each parameter's."""

    log_probs: float
    entropy: float
    gradient: float


def answer_of(
    model: VisionLanguageModel, batch: dict[str, Any], cut: TokenDistribution = NOTHING_CUT
) -> Answer:
    """What the model under test says of a batch."""
    model.zero_grad()
    scores = model(**batch, distribution=cut, entropies="gradient")
    return _differentiated(model, scores.log_probs, scores.entropy)


def truth_of(
    model: VisionLanguageModel, seen: Scene, cut: TokenDistribution = NOTHING_CUT
) -> Answer:
    """What transformers' own forward pass says, one sequence after the other."""
    model.zero_grad()
    logits = logits_of_each(model, seen)
    allowed = [token for token in range(logits.shape[-1]) if token not in cut.forbidden]
    places = torch.tensor([allowed.index(int(t)) for t in seen.completions_NGT.flatten()])
    log_p = logits[..., allowed].log_softmax(-1)
    chosen = log_p.gather(-1, places.view(*seen.completions_NGT.shape, 1)).squeeze(-1)
    return _differentiated(model, chosen, -(log_p.exp() * log_p).sum(-1))


def logits_of_each(model: VisionLanguageModel, seen: Scene) -> Tensor:
    """Logits (N, G, T, V) of completions: no padding, no cache, no batch, nothing kept."""
    return torch.stack(
        [
            torch.stack([_logits(model.lm, ids, pictures, one) for one in group])
            for ids, pictures, group in zip(
                seen.ids_N, seen.pictures_N, seen.completions_NGT, strict=True
            )
        ]
    )


def differences(ours: Answer, theirs: Answer) -> Differences:
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert theirs.gradients
    # Some gradients are 0 but for rounding: those are compared with the largest.
    largest = max(gradient.norm().item() for gradient in theirs.gradients.values())
    relative = [
        (ours.gradients[name] - gradient).norm().item()
        / max(gradient.norm().item(), 1e-4 * largest)
        for name, gradient in theirs.gradients.items()
    ]
    return Differences(
        (ours.log_probs - theirs.log_probs).abs().max().item(),
        (ours.entropy - theirs.entropy).abs().max().item(),
        max(relative),
    )


def seen_by(lm: Any, tokens_1S: torch.Tensor, pictures: list[Any]) -> dict[str, Any]:
    """What transformers' own model takes of one sequence with images, beside its tokens."""
    kind = lm.config.model_type
    pixels = torch.cat([picture.pixels for picture in pictures])
    places_1S = (tokens_1S == lm.config.image_token_id).int()
    if kind.startswith("qwen"):
        grids = torch.tensor([picture.grid for picture in pictures])
        return {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": places_1S}
    if kind == "gemma3":
        return {"pixel_values": pixels, "token_type_ids": places_1S}
    if kind == "internvl":
        return {"pixel_values": pixels}
    if kind.startswith("llava"):
        most = max(len(picture.pixels) for picture in pictures)
        padded = [
            torch.cat([p.pixels, p.pixels.new_zeros(most - len(p.pixels), *p.pixels.shape[1:])])
            for p in pictures
        ]
        sizes = torch.tensor([picture.grid[1:] for picture in pictures])
        seen = {"pixel_values": torch.stack(padded), "image_sizes": sizes}
        if kind == "llava_onevision":
            seen["batch_num_images"] = torch.tensor([len(pictures)])
        return seen
    return {"pixel_values": pixels[None]}


def _logits(lm: Any, ids: np.ndarray, pictures: list[Picture], completion_T: Tensor) -> Tensor:
    tokens_1S = torch.cat([torch.tensor(ids, dtype=torch.long), completion_T])[None]
    seen: dict[str, Any] = {}
    if pictures:
        seen = seen_by(lm, tokens_1S, pictures)
    return lm(input_ids=tokens_1S, **seen, use_cache=False).logits[0, len(ids) - 1 : -1]


def _differentiated(model: VisionLanguageModel, log_probs: Tensor, entropy: Tensor) -> Answer:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, *log_probs.shape, generator=generator, dtype=log_probs.dtype)
    ((a * log_probs).sum() + (b * entropy).sum()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Answer(log_probs.detach(), entropy.detach(), gradients)
