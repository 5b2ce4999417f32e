"""Load a causal language model, from a folder, the Hub or a nanoGPT checkpoint, in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from visgrpo.errors import UserError
from visgrpo.models.language import LanguageModel
from visgrpo.models.loading import (
    check_model_name,
    in_one_line,
    load_pretrained,
    model_folder,
    read_info,
)
from visgrpo.models.nanogpt import CHECKPOINT, load_nanogpt
from visgrpo.models.tokenizers import check_tokenizer


@dataclass(frozen=True)
class LanguageParts:
    """A language model with everything that belongs to it.

    Attributes:
        name: where it was loaded from.
        info: what visgrpo saved beside it (visgrpo.json).
        notes: sentences for the user, on what was decided while loading.
    """

    name: str
    model: Any  # a transformers causal language model
    tokenizer: Any
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Parts = TypeVar("Parts", bound=LanguageParts)


def load_language(name: str) -> LanguageParts:
    """Load a model folder, a run's folder, a Hub name, an adapter or a nanoGPT ``ckpt.pt``.

    An adapter is merged into its base, so that "adapter off" means the start itself when a new
    adapter is put on top.

    Raises:
        UserError: when the model is not there, cannot be fetched, writes no text, lacks weights, or
            has a tokenizer that cannot end a completion.
    """
    checkpoint = nanogpt_checkpoint(name)
    if checkpoint is not None:
        return _load_nanogpt(name, checkpoint)
    name = model_folder(name)
    check_model_name(name)
    if (Path(name) / "adapter_config.json").exists():
        return load_adapter(name, load_language)
    from transformers import AutoTokenizer

    with in_one_line(name):
        model = _load_weights(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    return _checked(LanguageParts(name, model, tokenizer, read_info(name)))


def adapter_base(name: str) -> str:
    """Return the name of the model that an adapter was trained on.

    Raises:
        UserError: where the adapter does not say.
    """
    config = json.loads((Path(name) / "adapter_config.json").read_text(encoding="utf-8"))
    start = config.get("base_model_name_or_path")
    if not start:
        raise UserError(
            f'Adapter "{name}" does not say which model it belongs to: set '
            '"base_model_name_or_path" in its adapter_config.json.'
        )
    return str(start)


def load_adapter(name: str, load: Callable[[str], Parts]) -> Parts:
    """Load a peft adapter merged into the model that it was trained on.

    Args:
        load: loads that model by its name.

    Raises:
        UserError: for an adapter that does not say its model, or does not fit it.
    """
    from peft import PeftModel

    start = adapter_base(name)
    base = load(start)
    try:
        with in_one_line(name):
            merged = PeftModel.from_pretrained(base.model, name).merge_and_unload()
    except RuntimeError as error:  # peft's, for weights of other shapes
        raise UserError(f'Adapter "{name}" does not fit its base "{start}".') from error
    # An adapter trained on top of this one belongs to the merged model, not to the first base.
    merged.name_or_path = merged.config._name_or_path = name
    return replace(base, name=name, model=merged, info=read_info(name) or base.info)


def nanogpt_checkpoint(name: str) -> Path | None:
    """Return the nanoGPT checkpoint that a file or folder is or holds; None for other models."""
    path = Path(name)
    if path.is_file() and path.suffix == ".pt":
        return path
    holds_one = (path / CHECKPOINT).exists() and not (path / "config.json").exists()
    return path / CHECKPOINT if holds_one else None


def context_of(model: Any) -> int:
    """Return the greatest number of positions, of prompt and completion together.

    Raises:
        UserError: for a model that has no such number.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise UserError(
            f"A {config.model_type} model does not say how long its context is: set "
            '"max_position_embeddings" in its config.json.'
        )
    return int(positions)


def stop_tokens(parts: LanguageParts) -> tuple[int, ...]:
    """Return the ids that end a completion: the tokenizer's and the generation settings', sorted.

    A chat model often has several: the end of a turn and the end of a text.
    """
    settings = parts.model.generation_config.eos_token_id
    further = settings if isinstance(settings, list) else [settings]
    return tuple(sorted({parts.tokenizer.eos_token_id, *further} - {None}))


def _load_weights(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = AutoConfig.from_pretrained(name).model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f'"{name}" is a {kind} model, which does not write text; this job needs a causal '
            "language model such as gpt2 or qwen2."
        )
    model, _ = load_pretrained(AutoModelForCausalLM, name)
    return model


def _load_nanogpt(name: str, path: Path) -> LanguageParts:
    with in_one_line(name):
        model, tokenizer = load_nanogpt(path)
    return _checked(LanguageParts(name, model, tokenizer))


def _check_scores(parts: LanguageParts) -> None:
    """Refuse a model whose log-probs our way of reading prompts once would get wrong.

    Some families scale their logits after the output head, keep dropout where we do not see it, or
    have no cache of keys and values. A few tokens, scored both ways, tell.
    """
    model = LanguageModel(parts.model)
    ids_BT = torch.arange(6).view(2, 3) % model.plain.get_input_embeddings().num_embeddings
    prompts, rest = ids_BT[:, :1], ids_BT[:, None, 1:]
    refusal = UserError(
        f'"{parts.name}", a {parts.model.config.model_type}, scores otherwise when its completions '
        "share a prompt: take a model such as gpt2, qwen2 or llama."
    )
    training = parts.model.training
    model.train()  # where dropout that was not switched off shows
    try:
        ours_BT = model.score(prompts, torch.ones(2, dtype=torch.long), rest).squeeze(1)
        with torch.no_grad():
            logits_BTV = parts.model.eval()(input_ids=ids_BT[:, :-1], use_cache=False).logits
    except (AttributeError, TypeError, ValueError) as error:
        raise refusal from error
    finally:
        parts.model.train(training)
    plain_BTV = logits_BTV.float().log_softmax(dim=-1)
    plain_BT = plain_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    if not torch.allclose(ours_BT, plain_BT, atol=1e-3):
        raise refusal


def _checked(parts: LanguageParts) -> LanguageParts:
    config = parts.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        raise UserError(
            f'"{parts.name}" has layers that see a part of the context only, with which completions'
            " cannot share their prompt: take a model such as gpt2, qwen2 or llama."
        )
    _check_scores(parts)
    embeddings = parts.model.get_input_embeddings().num_embeddings
    note = check_tokenizer(parts.tokenizer, parts.name, embeddings)
    return replace(parts, notes=(note,)) if note else parts
