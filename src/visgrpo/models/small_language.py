"""A small language model from random weights, of the classes that large ones have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from visgrpo.errors import UserError, nearest

Architecture = Literal["gpt2", "qwen2"]

SIZES: Mapping[str, tuple[int, int, int]] = {  # layers, width, heads
    "tiny": (2, 64, 2),
    "nano": (4, 128, 4),
    "small": (6, 384, 6),
}


def build_language(
    tokenizer: Any,
    *,
    architecture: Architecture,
    layers: int,
    width: int,
    heads: int,
    context: int,
    seed: int,
) -> Any:
    """Build a causal language model of transformers for a tokenizer's vocabulary.

    Input and output embeddings are one matrix, dropout is 0, weights are float32.

    Args:
        context: positions, prompt and completion together.

    Raises:
        UserError: for an architecture that is not known, sizes that do not fit, and a tokenizer
            that could not be loaded beside the model.
    """
    for option, value in (("layers", layers), ("heads", heads), ("context", context)):
        if value < 1:
            raise UserError(f"--{option} {value}: give 1 or more.")
    if width < 1 or width % heads:
        raise UserError(f"--heads {heads} does not divide --width {width}.")
    sizes = (layers, width, heads, context)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "gpt2":
            model = _gpt2(tokenizer, *sizes)
        elif architecture == "qwen2":
            model = _qwen2(tokenizer, *sizes)
        else:
            known = get_args(Architecture)
            raise UserError(
                f'--architecture "{architecture}" is not known. {nearest(architecture, known)}'
            )
    return model.float().eval()


def _gpt2(tokenizer: Any, layers: int, width: int, heads: int, context: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=context,
        activation_function="gelu_pytorch_tanh",  # as gelu_new, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_vocabulary_of(tokenizer),
    )
    return GPT2LMHeadModel(config)


def _qwen2(tokenizer: Any, layers: int, width: int, heads: int, context: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    if not isinstance(tokenizer, Qwen2Tokenizer):  # AutoTokenizer would misread it, silently
        raise UserError(
            "--architecture qwen2 takes a byte-level tokenizer: transformers loads none but "
            "qwen2's beside it. Choose --tokenizer bpe, or --architecture gpt2."
        )
    if width // heads % 2:
        raise UserError(
            f"--heads {heads} of --width {width} are {width // heads} wide: a qwen2 rotates pairs, "
            "so give heads of even width."
        )
    config = Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=width,
        # Three matrices of 8/3 the width weigh what GPT-2's two of 4 times the width do.
        intermediate_size=8 * -(-width // 3),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        attention_dropout=0.0,
        **_vocabulary_of(tokenizer),
    )
    return Qwen2ForCausalLM(config)


def _vocabulary_of(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
