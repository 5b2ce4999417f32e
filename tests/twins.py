"""Random twins of published checkpoints: their layout, with fewer and narrower layers.

What is known of the originals stands in published.json, file by file (names of classes are cut to
three). A twin has the same settings but for sizes and the ids of tokens, the same names of weights,
the same kind of files and the same class of tokenizer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from visgrpo.models.tokenizers import CHATML, VISION_TOKENS, with_image_places

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "published.json").read_text()
)
CLIP, CLIP_NEW = "openai--clip-vit-base-patch32", "openai--clip-vit-base-patch32@4.57"
LAION = "laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
SIGLIP, SIGLIP2 = "google--siglip-base-patch16-224", "google--siglip2-base-patch16-224"
DINOV2, DINOV3 = "facebook--dinov2-small", "facebook--dinov3-vits16-pretrain-lvd1689m"
VIT, RESNET = "google--vit-base-patch16-224", "microsoft--resnet-50"
GPT2, QWEN = "openai-community--gpt2", "Qwen--Qwen2.5-0.5B-Instruct"
QWEN_VL, QWEN3_VL = "Qwen--Qwen2.5-VL-3B-Instruct", "Qwen--Qwen3-VL-4B-Instruct"
SMOL = "HuggingFaceTB--SmolVLM2-500M-Video-Instruct"
SMOL_SMALL = "HuggingFaceTB--SmolVLM2-256M-Video-Instruct"  # of which no config.json is known
DUAL = (CLIP, CLIP_NEW, LAION, SIGLIP, SIGLIP2)
BACKBONES = (DINOV2, DINOV3, VIT, RESNET)
WRITING, SEEING = (GPT2, QWEN), (QWEN_VL, QWEN3_VL, SMOL)

_TOWER = {
    **{"hidden_size": 32, "intermediate_size": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}
_QWEN_TEXT = {**_TOWER, "num_key_value_heads": 1}
# Settings that are smaller in the twin; those of other files than config.json by its name.
SMALLER: Mapping[str, dict[str, Any]] = {
    **{
        name: {"text_config": _TOWER, "vision_config": _TOWER, "projection_dim": 16}
        for name in (CLIP, CLIP_NEW, LAION)
    },
    **{name: {"text_config": _TOWER, "vision_config": _TOWER} for name in (SIGLIP, SIGLIP2)},
    # DINOv2's sides and patches stay, so that positions are interpolated from 37 × 37 to 16 × 16.
    DINOV2: {**_TOWER, "out_features": ["stage2"], "out_indices": [2]}
    | {"stage_names": ["stem", "stage1", "stage2"]},
    DINOV3: _TOWER,
    VIT: _TOWER,
    RESNET: {"depths": [1] * 4, "embedding_size": 8, "hidden_sizes": [16, 16, 32, 32]},
    GPT2: {"n_embd": 32, "n_head": 2, "n_layer": 2},
    QWEN: _QWEN_TEXT,
    QWEN_VL: _QWEN_TEXT
    | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    | {
        "vision_config": {
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
            **{"out_hidden_size": 32, "fullatt_block_indexes": [1]},
        },
        "preprocessor_config.json": {"max_pixels": 56 * 56},
    },
    QWEN3_VL: {
        "text_config": _QWEN_TEXT
        | {"head_dim": 16}
        | {"rope_scaling": {"mrope_section": [3, 3, 2]}},
        "vision_config": {
            **{"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
            **{"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1]},
        },
        "preprocessor_config.json": {"size": {"longest_edge": 64 * 64, "shortest_edge": 1024}},
    },
    SMOL: {
        "text_config": _TOWER | {"num_key_value_heads": 1, "head_dim": 16},
        "vision_config": _TOWER
        | {"image_size": 64}
        | {"max_image_size": {"longest_edge": 64}, "size": {"longest_edge": 128}},
        "preprocessor_config.json": {
            **{"max_image_size": {"longest_edge": 64}, "size": {"longest_edge": 128}}
        },
        "processor_config.json": {"image_seq_len": 1},
    },
}
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS)
_SMOL_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def twin(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the twin of a published checkpoint and return its folder."""
    import transformers

    folder.mkdir(parents=True)
    files = PUBLISHED[name]
    if name == CLIP_NEW:  # whose image processor was not saved again
        files = {**PUBLISHED[CLIP], **files}
    smaller = {key: value for key, value in SMALLER[name].items() if ".json" not in key}
    for file, settings in files.items():
        changed = smaller if file == "config.json" else SMALLER[name].get(file, {})
        _write(folder / file, _merged(settings, changed))
    ids = _TOKENIZERS[name](folder) if name in _TOKENIZERS else {}
    for file in ("config.json", "generation_config.json"):
        if file in files:
            _write(folder / file, _with_ids(json.loads((folder / file).read_text()), ids))
    config = transformers.AutoConfig.from_pretrained(folder)
    (architecture,) = files["config.json"]["architectures"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config).eval()
    written = {path: path.read_bytes() for path in folder.iterdir()}
    sharded = name in (QWEN_VL, QWEN3_VL)
    model.save_pretrained(folder, **({"max_shard_size": "200KB"} if sharded else {}))
    for path, content in written.items():  # settings as they were published
        path.write_bytes(content)
    if "generation_config.json" not in files:
        (folder / "generation_config.json").unlink(missing_ok=True)
    if name in _WEIGHTS:
        _WEIGHTS[name](folder / "model.safetensors")
    return folder


def _write(path: Path, settings: Any) -> None:
    path.write_text(json.dumps(settings), encoding="utf-8")


def _merged(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes, which may be nested."""
    merged = dict(settings)
    for key, value in changes.items():
        inner = merged.get(key)
        deeper = isinstance(value, dict) and isinstance(inner, dict)
        merged[key] = _merged(inner, value) if deeper else value
    return merged


def _with_ids(settings: dict[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which ids of tokens, and their number, are the twin's, nested or not."""
    changed = {key: ids[key] for key in settings if key in ids}
    inner = {k: _with_ids(v, ids) for k, v in settings.items() if isinstance(v, dict)}
    return {**settings, **inner, **changed}


# Tokenizers: each writes its files and returns the ids that settings name


def _bytes() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _pairs(folder: Path, vocabulary: Mapping[str, int]) -> None:
    _write(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _clip(folder: Path) -> dict[str, Any]:
    """CLIP's: every character has a form that ends a word; the last token ends a text."""
    from transformers import CLIPTokenizer

    letters = _bytes()
    ends = [f"{letter}</w>" for letter in letters]
    tokens = [*letters, *ends, "<|startoftext|>", "<|endoftext|>"]
    _pairs(folder, {token: number for number, token in enumerate(tokens)})
    settings = {
        **{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
        **{"bos_token": "<|startoftext|>", "errors": "replace"},
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    _write(folder / "tokenizer_config.json", settings)
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    _write(folder / "tokenizer_config.json", settings)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    _write(
        folder / "config.json",
        _merged(
            json.loads((folder / "config.json").read_text()),
            {"text_config": {**text, "vocab_size": len(tokens)}},
        ),
    )
    return {}


def _siglip(folder: Path) -> dict[str, Any]:
    """SigLIP's: a unigram of sentencepiece, in spiece.model alone."""
    import sentencepiece

    text = ["a photo of a red square", "this is a picture of two dogs and a cat", "the quick fox"]
    alphabet = [" ".join("abcdefghijklmnopqrstuvwxyz0123456789")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20 + alphabet * 20),
        model_writer=model,
        **{"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2},
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    settings = {
        **{"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, "do_lower_case": True},
        **{"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    }
    _write(folder / "tokenizer_config.json", settings)
    config = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", _merged(config, {"text_config": {"vocab_size": 100}}))
    return {}


def _siglip2(folder: Path) -> dict[str, Any]:
    """SigLIP 2's: Gemma's byte pairs; letters keep their case, and a text ends with <eos>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(number) for number in range(33, 127)]
    known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
    tokens = [*known, *(f"<0x{number:02X}>" for number in range(256))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    named = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    settings = {"tokenizer_class": "GemmaTokenizer", "model_max_length": 64, "padding_side": "left"}
    _write(folder / "tokenizer_config.json", {**settings, **named})
    config = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", _merged(config, {"text_config": {"vocab_size": len(tokens)}}))
    return {}


def _gpt2(folder: Path) -> dict[str, Any]:
    """GPT-2's, whose settings name no class."""
    tokens = [*_bytes(), "<|endoftext|>"]
    _pairs(folder, {token: number for number, token in enumerate(tokens)})
    _write(folder / "tokenizer_config.json", {"model_max_length": 1024})
    return {"bos_token_id": 256, "eos_token_id": 256, "vocab_size": 257}


def _qwen(folder: Path) -> dict[str, Any]:
    """Qwen's, with the tokens of images and more embeddings than tokens."""
    from transformers import Qwen2Tokenizer

    vocabulary = {token: number for number, token in enumerate(_bytes())}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN_TOKENS)})
    tokenizer.chat_template = with_image_places(CHATML)
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    end, text_end = vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]
    names = ("vision_start", "vision_end", "image", "video")
    both = json.loads((folder / "generation_config.json").read_text()) if _generates(folder) else {}
    if both:
        _write(folder / "generation_config.json", {**both, "eos_token_id": [end, text_end]})
    return {
        **{f"{n}_token_id": vocabulary[t] for n, t in zip(names, VISION_TOKENS, strict=True)},
        **{"bos_token_id": text_end, "pad_token_id": text_end, "vocab_size": 288},
        **({} if both else {"eos_token_id": end}),
        **({"vision_token_id": vocabulary["<|video_pad|>"]} if both else {}),
    }


def _generates(folder: Path) -> bool:
    return (folder / "generation_config.json").exists()


def _smol(folder: Path) -> dict[str, Any]:
    """SmolVLM's: the classes' names, and the tokens of images and of their places."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = json.loads((folder / "tokenizer_config.json").read_text())
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    specials = [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>", *places),
    ]
    tokens = [*specials[:3], *_bytes(), *specials[3:]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.add_special_tokens({"additional_special_tokens": specials})
    made.save_pretrained(folder)
    _write(folder / "tokenizer_config.json", own)
    _write(folder / "chat_template.json", {"chat_template": _SMOL_TEMPLATE})
    return {
        **{"image_token_id": vocabulary["<image>"], "vocab_size": len(tokens)},
        **{"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": vocabulary["<end_of_utterance>"]},
    }


_TOKENIZERS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    **{CLIP: _clip, CLIP_NEW: _clip, LAION: _clip, SIGLIP: _siglip, SIGLIP2: _siglip2},
    **{GPT2: _gpt2, QWEN: _qwen, QWEN_VL: _qwen, QWEN3_VL: _qwen, SMOL: _smol},
}


# Weights that were published under other names, or in other files, than save_pretrained has


def _pickled(file: Path) -> None:
    """OpenAI's CLIP: pytorch_model.bin alone, with numbers of positions among the weights."""
    weights = load_file(file)
    for side, places in (("text", 77), ("vision", 50)):
        name = f"{side}_model.embeddings.position_ids"
        weights[name] = torch.arange(places)[None]
    torch.save(weights, file.with_name("pytorch_model.bin"))
    file.unlink()


def _bare(file: Path) -> None:
    """GPT-2: names without a prefix, and the causal mask of every layer among the weights."""
    stored = {name.removeprefix("transformer."): w for name, w in load_file(file).items()}
    stored.pop("lm_head.weight", None)
    for layer in range(2):
        stored[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 1024, 1024).tril()
    save_file(stored, file, {"format": "pt"})


_WEIGHTS: Mapping[str, Callable[[Path], None]] = {CLIP: _pickled, GPT2: _bare}
