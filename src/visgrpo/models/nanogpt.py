"""Import a checkpoint of nanoGPT (github.com/karpathy/nanoGPT) as transformers' GPT-2.

Its ``ckpt.pt`` is the one file with pickle that is read here, by torch's restricted reader, which
accepts tensors and plain values and runs no code. ``meta.pkl``, the characters of its character
models, is plain pickle and is not opened: they are read from a ``meta.json``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import torch
from torch import Tensor
from typing_extensions import TypedDict

from visgrpo.errors import UserError
from visgrpo.files import read_json
from visgrpo.models.parts import first_misfit, pretrained
from visgrpo.models.tokenizers import character_tokenizer

CHECKPOINT = "ckpt.pt"
CHARACTERS = "meta.json"
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_GPT2_VOCABULARIES = (50257, 50304)  # as it is, and padded to a multiple of 64
_GPT2 = "openai-community/gpt2"
_COMPILED = "_orig_mod."  # put before every name by torch.compile
# nn.Linear holds (out, in), GPT-2's Conv1D (in, out).
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_CAUSAL_MASK = re.compile(r"\.attn\.bias$")  # a buffer where flash attention was missing
_BIAS = re.compile(r"\.bias$")


class Characters(TypedDict):
    """A meta.json: the id of every character, and which of them ends a text."""

    stoi: dict[str, int]
    eos: NotRequired[str]


def load_nanogpt(path: Path) -> tuple[Any, Any]:
    """Return a checkpoint's model, a ``GPT2LMHeadModel`` in float32, and its tokenizer.

    Biases that the checkpoint was trained without are zero. Its GELU is the exact one, as in
    nanoGPT since 2023; dropout is 0.

    Raises:
        UserError: for a file that holds more than weights and plain values or is not nanoGPT's, and
            where the tokenizer cannot be had.
    """
    checkpoint = _read(path)
    sizes = _sizes_of(checkpoint, path)
    model = _empty_gpt2(sizes)
    weights = _renamed(checkpoint["model"], model.state_dict(), path)
    _check_shapes(weights, model.state_dict(), path)
    model.load_state_dict(weights)
    model.name_or_path = model.config._name_or_path = str(path)
    tokenizer = _tokenizer_beside(path, sizes["vocab_size"])
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval(), tokenizer


def _read(path: Path) -> Mapping[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'"{path}" holds more than tensors and plain values, or is damaged; what could run '
            'code is not read. Save it again with "model" and "model_args" alone.'
        ) from error
    except (EOFError, RuntimeError) as error:
        raise UserError(f'"{path}" is damaged: torch cannot read it.') from error
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    if not all(isinstance(parts.get(key), dict) for key in ("model", "model_args")):
        raise UserError(f'"{path}" is not a nanoGPT checkpoint: no "model" and "model_args" in it.')
    return parts


def _sizes_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, int]:
    arguments = checkpoint["model_args"]
    for name in _SIZES:
        value = arguments.get(name)
        if type(value) is not int or value < 1:  # True is an int too
            raise UserError(f'"{path}" has {name} {value} in model_args: it must be 1 or more.')
    sizes = {name: arguments[name] for name in _SIZES}
    if sizes["n_embd"] % sizes["n_head"]:
        raise UserError(
            f'"{path}": n_head {sizes["n_head"]} does not divide n_embd {sizes["n_embd"]}.'
        )
    return sizes


def _empty_gpt2(sizes: Mapping[str, int]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=sizes["n_layer"],
        n_head=sizes["n_head"],
        n_embd=sizes["n_embd"],
        n_positions=sizes["block_size"],
        vocab_size=sizes["vocab_size"],
        activation_function="gelu",
        layer_norm_epsilon=1e-5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():  # these weights are replaced
        return GPT2LMHeadModel(config)


def _renamed(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Return nanoGPT's weights as GPT-2's, with zeros for biases that it was trained without."""
    weights = {}
    for name, tensor in found.items():
        name = name.removeprefix(_COMPILED)
        if not isinstance(tensor, Tensor):
            raise UserError(f'"{path}" is not a nanoGPT checkpoint: {name} is not a tensor.')
        if _CAUSAL_MASK.search(name):
            continue
        weights[name] = (tensor.t() if _TRANSPOSED.search(name) else tensor).float()
    if not any(_BIAS.search(name) for name in weights):
        weights |= {name: torch.zeros_like(t) for name, t in wanted.items() if _BIAS.search(name)}
    return weights


def _check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    misfit = first_misfit(found, wanted)
    if misfit:
        name, shape, expected = misfit
        raise UserError(
            f'The weights in "{path}" do not fit its model_args: {name} has shape {shape}, '
            f"model_args ask for {expected}."
        )
    if not torch.equal(found["lm_head.weight"], found["transformer.wte.weight"]):
        raise UserError(
            f'"{path}" has an lm_head of its own: nanoGPT has one matrix for both embeddings.'
        )


def _tokenizer_beside(path: Path, vocabulary: int) -> Any:
    for folder in (path.parent, path.parent / "tokenizer"):
        if (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists():
            return pretrained("AutoTokenizer", str(folder))
    if (path.parent / CHARACTERS).exists():
        return _characters(path.parent / CHARACTERS)
    if vocabulary not in _GPT2_VOCABULARIES:
        raise UserError(
            f'"{path}" has no tokenizer beside it: put a folder "tokenizer" there, or a '
            f'{CHARACTERS} with "eos" and the "stoi" of meta.pkl, which is pickle and not opened.'
        )
    try:
        return pretrained("AutoTokenizer", _GPT2)
    except OSError as error:
        raise UserError(
            f'"{path}" needs the tokenizer {_GPT2}, which cannot be fetched: save it into '
            f"{path.parent / 'tokenizer'}."
        ) from error


def _characters(path: Path) -> Any:
    meta = read_json(path, Characters, 'It needs "stoi", the id of every character.')
    ids = meta["stoi"]
    if meta.get("eos") not in ids:
        raise UserError(
            f'"{path}" needs "eos": nanoGPT\'s characters have no end of text, so name one of '
            'them that your text does without, such as "eos": "$".'
        )
    return character_tokenizer(ids, end=meta["eos"])
