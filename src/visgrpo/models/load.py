"""Load a model of any kind: by folder, Hub name or adapter, which is merged into its base.

Merging makes "adapter off" mean the start itself when a new adapter is put on top.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from typing_extensions import TypedDict

from visgrpo.errors import UserError
from visgrpo.files import read_json
from visgrpo.models.backbone import (
    FAMILIES,
    Backbone,
    RepresentationClassifier,
    Segmenter,
    encodes_images,
)
from visgrpo.models.language import LanguageModel
from visgrpo.models.nanogpt import CHECKPOINT, load_nanogpt
from visgrpo.models.parts import (
    ADAPTER_FILE,
    INFO_FILE,
    Parts,
    StoredSettings,
    first_misfit,
    in_one_line,
    is_adapter,
    load_images,
    load_pretrained,
    load_tokenizer,
    model_folder,
    pickled_weights,
    pretrained,
    read_info,
)
from visgrpo.models.reward_model import RewardModel
from visgrpo.models.tokenizers import check_tokenizer
from visgrpo.models.vision_families import SEEING
from visgrpo.models.vision_language import VisionProcessor
from visgrpo.models.whole import check_model_name

HEAD_FILE = "head.safetensors"
DUAL_ENCODERS = ("clip", "siglip")
# A checkpoint may lack these: a ViT's pooler, and what masked pre-training puts into the input.
_UNUSED = re.compile(r"pooler\.|embeddings\.mask_token$")
_CLASSIFIER = re.compile(r"(score|classifier)\b")  # what other models have no weights for


def load_clip(name: str) -> Parts:
    """Load a CLIP or SigLIP model.

    Raises:
        UserError: when the model is not there, cannot be fetched, or is of another kind.
    """
    return _load(name, _clip)


def load_backbone(name: str) -> Parts:
    """Load a vision encoder; of CLIP and SigLIP the image tower.

    Raises:
        UserError: when the model is not there, cannot be fetched, is of another kind, or lacks
            weights.
    """
    parts = _load(name, _backbone)
    is_dual = parts.model.config.model_type in DUAL_ENCODERS
    return replace(parts, model=parts.model.vision_model) if is_dual else parts


def load_representation(
    folder: str | Path,
) -> tuple[RepresentationClassifier | Segmenter, Parts]:
    """Load a backbone with the head that was saved beside it, in evaluation mode.

    Raises:
        UserError: for a folder without a head, and one whose parts do not belong together.
    """
    parts = load_backbone(str(folder))
    with in_one_line(str(folder)):
        model = _with_new_head(parts)
        _load_head(model, Path(folder) / HEAD_FILE)
    return model.eval(), parts


def load_language(name: str) -> Parts:
    """Load a causal language model: a model's or a run's folder, or a nanoGPT ``ckpt.pt`` too.

    Raises:
        UserError: when the model is not there, cannot be fetched, writes no text, lacks weights, or
            has a tokenizer that cannot end a completion.
    """
    return _load(model_folder(name), _language, checkpoints=True)


def load_vision_language(
    name: str, *, max_pixels: int | None = None, min_pixels: int | None = None
) -> Parts:
    """Load a model of a family that sees, or a joined one; a run's folder, too.

    Args:
        max_pixels: images with more are made smaller; by default as the model's settings say.
        min_pixels: images with fewer are made larger; by default as the model's settings say.

    Raises:
        UserError: when the model is not there, cannot be fetched, is of another kind, lacks
            weights, or has parts that do not belong together.
    """
    parts = _load(model_folder(name), _vision_language)
    if max_pixels is not None:
        parts.processor.limit(max_pixels)
    if min_pixels is not None:
        parts.processor.enlarge(min_pixels)
    return parts


def load_reward_model(name: str) -> Parts:
    """Load a reward model, in evaluation mode; a run's folder, too.

    Its info has ``reward_mean`` and ``reward_std``, those of its scores of completions that it
    learned from, where visgrpo trained it.

    Raises:
        UserError: when the model is not there, cannot be fetched, or gives no single score.
    """
    parts = _load(model_folder(name), _reward)
    return replace(parts, model=RewardModel(parts.model).eval())


def start_of(name: str) -> str:
    """Return the model below an adapter, and below those below it; any other name as it is.

    Raises:
        UserError: where an adapter does not say its model, or says itself.
    """
    seen = set[Path]()
    while is_adapter(name):
        if Path(name).resolve() in seen:
            raise UserError(
                f'Adapter "{name}" belongs to itself: name the model it was trained on as '
                f'"base_model_name_or_path" in its {ADAPTER_FILE}.'
            )
        seen.add(Path(name).resolve())
        name = adapter_base(name)
    return name


def adapter_base(name: str) -> str:
    """Return the name of the model that an adapter was trained on.

    Raises:
        UserError: where the adapter does not say.
    """
    start = read_json(Path(name) / ADAPTER_FILE).get("base_model_name_or_path")
    if not start or not isinstance(start, str):
        raise UserError(
            f'Adapter "{name}" does not say which model it belongs to: set '
            f'"base_model_name_or_path" in its {ADAPTER_FILE}.'
        )
    return model_folder(start)


def nanogpt_checkpoint(name: str) -> Path | None:
    """Return the nanoGPT checkpoint that a file or folder is or holds; None for other models."""
    path = Path(name)
    if path.is_file() and path.suffix == ".pt":
        return path
    holds_one = (path / CHECKPOINT).exists() and not (path / "config.json").exists()
    return path / CHECKPOINT if holds_one else None


def _load(name: str, build: Callable[[str], Parts], *, checkpoints: bool = False) -> Parts:
    """Load a model by its folder or Hub name; an adapter merged into the model that it belongs to.

    Args:
        build: loads one kind of model.
        checkpoints: whether nanoGPT's are models of that kind.
    """
    if checkpoints and nanogpt_checkpoint(name) is not None:
        return build(name)
    check_model_name(name)
    if is_adapter(name):
        start_of(name)  # refuses what would not end
        return _merged(name, _load(adapter_base(name), build, checkpoints=checkpoints))
    with in_one_line(name):
        parts = build(name)
        file = pickled_weights(name)
    if file is None:
        return parts
    note = f'"{name}": {file} was read by torch.load(weights_only=True), which runs no code of it.'
    return replace(parts, notes=(*parts.notes, note))


def _merged(name: str, base: Parts) -> Parts:
    """Return a model with an adapter merged into it.

    Raises:
        UserError: where the adapter does not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict

    misfit = f'Adapter "{name}" does not fit its base "{base.name}"'
    with in_one_line(name), safe_open(Path(name) / "adapter_model.safetensors", "pt") as stored:
        found = set(stored.keys())
    with in_one_line(name), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # said below
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        try:
            adapted = PeftModel.from_pretrained(base.model, name)
        except RuntimeError as error:  # torch's, for weights of other shapes
            raise UserError(f"{misfit}.") from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    # What is missing stays as if untrained, and weights that fit nothing are passed over by peft.
    for problem, names in (("is missing", wanted - found), ("is not in it", found - wanted)):
        strays = sorted(key for key in names if problem == "is missing" or "lora_" in key)
        if strays:
            raise UserError(f"{misfit}: {strays[0]} {problem}.")
    merged = adapted.merge_and_unload()
    # An adapter trained on top of this one belongs to the merged model, not to the first base.
    merged.name_or_path = merged.config._name_or_path = name
    return replace(base, name=name, model=merged, info=read_info(name) or base.info)


def _clip(name: str) -> Parts:
    model = _of_kind("AutoModel", name, DUAL_ENCODERS)
    tokenizer = load_tokenizer(name)
    parts = Parts(name, model, tokenizer, processor=load_images(name), info=read_info(name))
    side = model.config.vision_config.image_size
    height, width = parts.preprocess(Image.new("RGB", (side, side))).shape[-2:]
    if (height, width) != (side, side):
        raise UserError(
            f'The image processor of "{name}" makes {height} × {width} pixels, the model takes '
            f"{side} × {side}: they do not belong together."
        )
    text = model.config.text_config
    ids = tokenizer("a text")["input_ids"]
    if max(tokenizer.get_vocab().values()) >= text.vocab_size or (
        model.config.model_type == "clip" and text.eos_token_id not in (2, ids[-1])
    ):
        raise UserError(
            f'The tokenizer of "{name}" is not the model\'s own: its tokens, or its end of a text, '
            "are others. Save the model's tokenizer into the folder."
        )
    return parts


def _backbone(name: str) -> Parts:
    kind = pretrained("AutoConfig", name).model_type
    kinds = (kind,) if encodes_images(kind) else (*FAMILIES, *DUAL_ENCODERS)
    refusal = (
        f"; this job needs one of: {', '.join(kinds)}, or another encoder by which transformers "
        "classifies images."
    )
    model = _of_kind("AutoModel", name, kinds, refusal=refusal, may_lack=_UNUSED)
    return _seeing(Parts(name, model, processor=load_images(name), info=read_info(name)))


def _seeing(parts: Parts) -> Parts:
    """Return parts whose image processor is understood: its settings say all that it does."""
    preprocess = parts.preprocess
    if isinstance(parts.processor, StoredSettings):
        return parts
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    theirs = parts.processor(images=[image], return_tensors="pt")["pixel_values"][0].float()
    ours = preprocess(image)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-4):
        raise UserError(
            f'"{parts.name}": its {type(parts.processor).__name__} does more to images than its '
            "settings say: use a checkpoint with a CLIP, SigLIP, BiT or ViT image processor."
        )
    return parts


def _language(name: str) -> Parts:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    checkpoint = nanogpt_checkpoint(name)
    if checkpoint is not None:
        with in_one_line(name):
            return _checked(Parts(name, *load_nanogpt(checkpoint)))
    model = _of_kind(
        "AutoModelForCausalLM",
        name,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        refusal=", which does not write text; this job needs a causal language model such as gpt2 "
        "or qwen2.",
    )
    return _checked(Parts(name, model, load_tokenizer(name), info=read_info(name)))


def _vision_language(name: str) -> Parts:
    refusal = (
        f"; this job needs one of: {', '.join(SEEING)}. visgrpo join makes one of a vision tower "
        "and a qwen2."
    )
    config = _config_of_kind(name, SEEING, refusal)
    _check_sees_all(name, config)
    tokenizer, images = load_tokenizer(name), load_images(name)
    _use_template_of_processor(name, tokenizer)
    model, _ = load_pretrained("AutoModelForImageTextToText", name)
    note = check_tokenizer(tokenizer, name, model.get_input_embeddings().num_embeddings)
    processor = VisionProcessor.of(config, images, tokenizer)
    notes = (note,) if note else ()
    return Parts(name, model, tokenizer, processor=processor, info=read_info(name), notes=notes)


def _reward(name: str) -> Parts:
    auto = "AutoModelForSequenceClassification"
    scorer, lacking = load_pretrained(auto, name, may_lack=_CLASSIFIER)
    tokenizer = load_tokenizer(name)
    if lacking:
        raise UserError(
            f'"{name}" is no reward model: it lacks {lacking[0]}. Train one with --method reward.'
        )
    if not hasattr(scorer, "score") or scorer.config.num_labels != 1:
        raise UserError(
            f'"{name}" is no reward model: it has {scorer.config.num_labels} outputs. A reward '
            "model has one, read at the last token."
        )
    check_tokenizer(tokenizer, name, scorer.get_input_embeddings().num_embeddings)
    return Parts(name, scorer, tokenizer, info=read_info(name))


def _of_kind(
    auto: str,
    name: str,
    kinds: Container[str],
    *,
    refusal: str = "",
    may_lack: re.Pattern[str] | None = None,
) -> Any:
    """Load a model of one of some kinds; weights that it may lack are 0.

    Args:
        kinds: by `model_type`.
        refusal: how the sentence that refuses another kind ends; by default with the kinds.
    """
    _config_of_kind(name, kinds, refusal)
    model, lacking = load_pretrained(auto, name, may_lack=may_lack)
    with torch.no_grad():
        for key in lacking:
            model.get_parameter(key).zero_()  # not random: the same model in every run
    return model


def _config_of_kind(name: str, kinds: Any, refusal: str) -> Any:
    config = pretrained("AutoConfig", name)
    if config.model_type == "siglip2":
        raise UserError(
            f'"{name}" is a NaFlex SigLIP 2 (siglip2), whose images keep their own shapes: take '
            "one of a fixed size, such as google/siglip2-base-patch16-224."
        )
    if config.model_type == "paligemma":
        raise UserError(
            f'"{name}" is a PaliGemma (paligemma), whose prompts see themselves whole and know no '
            f"chat: take one of {', '.join(SEEING)}."
        )
    if config.model_type not in kinds:
        ending = refusal or f"; this job needs one of: {', '.join(kinds)}."
        raise UserError(f'"{name}" is a {config.model_type} model{ending}')
    return config


def _checked(parts: Parts) -> Parts:
    """Refuse a language model that we would read otherwise than it is; mend its tokenizer."""
    _check_sees_all(parts.name, parts.model.config)
    _check_scores(parts)
    embeddings = parts.model.get_input_embeddings().num_embeddings
    note = check_tokenizer(parts.tokenizer, parts.name, embeddings)
    return replace(parts, notes=(note,)) if note else parts


def _check_sees_all(name: str, config: Any) -> None:
    """Refuse layers that see a part of the context only, but for windows: see `context_of`."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise UserError(
            f'"{name}" has layers that see a part of the context only, with which completions '
            "cannot share their prompt: take a model whose layers all have attention."
        )


def _check_scores(parts: Parts) -> None:
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


class Template(TypedDict):
    """A chat_template.json: one template, or several by their names."""

    chat_template: str | dict[str, str]


def _use_template_of_processor(name: str, tokenizer: Any) -> None:
    """Take the chat template of older checkpoints from the processor's file, where only it is."""
    from transformers.utils import cached_file

    if tokenizer.chat_template is not None:
        return
    path = cached_file(name, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    if path is not None:
        stored = read_json(Path(path), Template, "Save the model again.")
        tokenizer.chat_template = stored["chat_template"]


def _with_new_head(parts: Parts) -> RepresentationClassifier | Segmenter:
    info = parts.info
    needed = {
        "classification": ("classes", "hidden", "pool"),
        "label-sets": ("classes", "hidden", "pool"),
        "segmentation": ("classes", "hidden"),
    }
    task = str(info.get("task"))
    lacking = [key for key in needed.get(task, ("task",)) if key not in info]
    if lacking:
        raise UserError(
            f'"{parts.name}" has no head: {INFO_FILE} does not say its {lacking[0]}. Give the '
            "model folder of a representation or segmentation run."
        )
    with torch.random.fork_rng():  # these weights are replaced
        backbone = Backbone(parts.model)
        if task == "segmentation":
            return Segmenter(backbone, info["classes"], hidden=info["hidden"])
        return RepresentationClassifier(
            backbone, info["classes"], pool=info["pool"], hidden=info["hidden"]
        )


def _load_head(model: RepresentationClassifier | Segmenter, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'Cannot read the head "{path}": {reason} Save the model again.') from error
    misfit = first_misfit(tensors, model.head.state_dict())
    if misfit:
        name, found, expected = misfit
        raise UserError(
            f'The head "{path}" does not belong to this model: {name} has shape {found}, '
            f"{INFO_FILE} and the backbone ask for {expected}."
        )
    model.head.load_state_dict(tensors)
