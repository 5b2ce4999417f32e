"""nanoGPT's checkpoints against a model written after nanoGPT's own: logits and scores of text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from language_models import TEXT, chat_tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer

from visgrpo.errors import UserError
from visgrpo.models.language import context_of, stop_tokens
from visgrpo.models.load import load_language
from visgrpo.models.save import save

CHARACTERS = sorted({*TEXT, "$"})
STOI = {character: number for number, character in enumerate(CHARACTERS)}
ARGUMENTS: dict[str, Any] = {
    **{"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32},
    **{"vocab_size": len(CHARACTERS), "dropout": 0.2, "bias": False},
}


class Norm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    """Attention written out; the mask is a buffer, as nanoGPT has it without flash attention."""

    def __init__(self, width: int, heads: int, context: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.register_buffer("bias", torch.tril(torch.ones(context, context))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        steps, width = x.shape[1:]
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=2)
        )
        scores = q @ k.transpose(2, 3) / (width // self.heads) ** 0.5
        seen = self.get_buffer("bias")[:, :, :steps, :steps] != 0
        weights = scores.masked_fill(~seen, -torch.inf).softmax(3)
        return self.c_proj((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, context: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = Norm(width, bias), Norm(width, bias)
        self.attn = CausalSelfAttention(width, heads, context, bias)
        self.mlp = MLP(width, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's GPT, with its names."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        width, bias, context = (arguments[key] for key in ("n_embd", "bias", "block_size"))
        blocks = [
            Block(width, arguments["n_head"], context, bias) for _ in range(arguments["n_layer"])
        ]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(arguments["vocab_size"], width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(blocks),
                "ln_f": Norm(width, bias),
            }
        )
        self.lm_head = nn.Linear(width, arguments["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def random_nanogpt(arguments: dict[str, Any]) -> NanoGPT:
    generator = torch.Generator().manual_seed(0)
    model = NanoGPT(arguments)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, larger than at the start
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise + (parameter.ndim == 1))
    return model.eval()


def checkpoint_of(model: nn.Module, prefix: str = "", **changes: Any) -> dict[str, Any]:
    """What nanoGPT's train.py saves, the optimiser included."""
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": ARGUMENTS | changes,
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
    }


def write(folder: Path, checkpoint: Any, meta: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / "ckpt.pt")
    meta = {"stoi": STOI, "eos": "$", "vocab_size": len(STOI)} if meta is None else meta
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def one_line(name: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_language(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def nanogpt() -> NanoGPT:
    return random_nanogpt(ARGUMENTS)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits_and_scores_of_text_are_the_same(tmp_path: Path, bias: bool, prefix: str) -> None:
    source = random_nanogpt(ARGUMENTS | {"bias": bias})
    write(tmp_path, checkpoint_of(source, prefix, bias=bias))
    parts = load_language(str(tmp_path))
    ids = torch.tensor([[STOI[character] for character in TEXT[:32]]])
    assert parts.tokenizer(TEXT[:32])["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        logits = source(ids)
        imported = parts.model(ids, labels=ids)
    assert logits.std() > 0.5
    torch.testing.assert_close(imported.logits, logits, rtol=1e-5, atol=1e-5)
    nll = -logits.log_softmax(2)[0, :-1].gather(1, ids[0, 1:, None]).mean()
    torch.testing.assert_close(imported.loss, nll, rtol=0, atol=1e-5)


def test_what_belongs_to_it(tmp_path: Path, nanogpt: NanoGPT) -> None:
    write(tmp_path, checkpoint_of(nanogpt))
    parts = load_language(str(tmp_path / "ckpt.pt"))
    assert parts.info == {}
    assert context_of(parts.model) == 32
    assert stop_tokens(parts) == (STOI["$"],)
    assert parts.notes[0].endswith("has no padding token: '$' pads.")
    assert parts.model.get_output_embeddings().weight is parts.model.transformer.wte.weight
    assert parts.model.config.attn_pdrop == 0


def test_imported_and_saved_it_is_a_plain_gpt2(tmp_path: Path, nanogpt: NanoGPT) -> None:
    parts = load_language(str(write(tmp_path / "nano", checkpoint_of(nanogpt))))
    (tmp_path / "plain").mkdir()
    save(parts.model, parts, tmp_path / "plain")
    again = load_language(str(tmp_path / "plain"))
    ids = torch.tensor([again.tokenizer(TEXT[:32])["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, nanogpt(ids), rtol=1e-5, atol=1e-5)
    assert stop_tokens(again) == (STOI["$"],)


def test_a_character_that_it_does_not_know_is_not_dropped(tmp_path: Path, nanogpt: NanoGPT) -> None:
    parts = load_language(str(write(tmp_path, checkpoint_of(nanogpt))))
    with pytest.raises(Exception, match="WordLevel error: Missing"):
        parts.tokenizer("Tell €")


def test_checkpoints_of_before_the_bias_option_have_biases(tmp_path: Path) -> None:
    source = random_nanogpt(ARGUMENTS | {"bias": True})
    checkpoint = checkpoint_of(source)
    del checkpoint["model_args"]["bias"]
    loaded = load_language(str(write(tmp_path, checkpoint))).model
    expected = source.transformer["ln_f"].bias
    torch.testing.assert_close(loaded.transformer.ln_f.bias, expected, rtol=0, atol=0)


@pytest.mark.parametrize("place", [".", "tokenizer"])
def test_a_tokenizer_folder_comes_first(tmp_path: Path, place: str) -> None:
    tokenizer = chat_tokenizer()
    arguments = ARGUMENTS | {"vocab_size": 384}  # more rows than tokens, as nanoGPT pads them
    write(tmp_path, checkpoint_of(random_nanogpt(arguments), **arguments))
    tokenizer.save_pretrained(tmp_path / place)
    parts = load_language(str(tmp_path))
    assert parts.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert parts.notes == ()
    assert parts.model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.fixture
def gpt2_sized(tmp_path: Path) -> Path:
    arguments = ARGUMENTS | {"vocab_size": 50304, "n_embd": 2, "n_layer": 1}
    write(tmp_path, checkpoint_of(random_nanogpt(arguments), **arguments))
    (tmp_path / "meta.json").unlink()
    return tmp_path


def test_vocabulary_of_gpt2_takes_its_tokenizer(
    gpt2_sized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat_tokenizer()
    asked = []
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, **_: asked.append(name) or tokenizer
    )
    assert load_language(str(gpt2_sized)).tokenizer is tokenizer
    assert asked == ["openai-community/gpt2"]


def test_tokenizer_of_gpt2_without_network(
    gpt2_sized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str, **_: Any) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", offline)
    message = one_line(gpt2_sized)
    assert message.endswith(f"cannot be fetched: save it into {gpt2_sized / 'tokenizer'}.")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize("harm", [Harmful(), Path("a/path"), {"deep": [Harmful()]}])
def test_what_could_run_code_is_refused(
    tmp_path: Path, nanogpt: NanoGPT, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, checkpoint_of(nanogpt) | {"config": harm})
    assert "holds more than tensors and plain values" in one_line(tmp_path)
    assert "code ran" not in capsys.readouterr().out


def test_meta_pickle_is_not_opened(tmp_path: Path, nanogpt: NanoGPT) -> None:
    write(tmp_path, checkpoint_of(nanogpt))
    (tmp_path / "meta.json").rename(tmp_path / "meta.pkl")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Harmful()))
    assert 'the "stoi" of meta.pkl, which is pickle and not opened' in one_line(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 3000])
def test_damaged_file(tmp_path: Path, nanogpt: NanoGPT, kept: int) -> None:
    path = write(tmp_path, checkpoint_of(nanogpt)) / "ckpt.pt"
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged" in one_line(tmp_path)


@pytest.mark.parametrize("other", [[1, 2], {"model": {}}, {"model": {}, "model_args": 3}])
def test_another_program_s_checkpoint(tmp_path: Path, other: Any) -> None:
    assert "is not a nanoGPT checkpoint" in one_line(write(tmp_path, other))


@pytest.mark.parametrize("value", [None, 0, "4", True])
def test_sizes_that_are_not_numbers(tmp_path: Path, nanogpt: NanoGPT, value: Any) -> None:
    write(tmp_path, checkpoint_of(nanogpt, n_layer=value))
    assert f"has n_layer {value} in model_args" in one_line(tmp_path)


def test_heads_that_do_not_divide(tmp_path: Path, nanogpt: NanoGPT) -> None:
    write(tmp_path, checkpoint_of(nanogpt, n_head=3))
    assert "n_head 3 does not divide n_embd 16" in one_line(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 3}, "transformer.h.2.attn.c_attn.weight has shape None"),
        ({"block_size": 64}, "wpe.weight has shape (32, 16), model_args ask for (64, 16)"),
    ],
)
def test_weights_that_do_not_fit_their_sizes(
    tmp_path: Path, nanogpt: NanoGPT, changes: dict[str, int], message: str
) -> None:
    assert message in one_line(write(tmp_path, checkpoint_of(nanogpt, **changes)))


def test_weights_that_are_not_tensors(tmp_path: Path, nanogpt: NanoGPT) -> None:
    checkpoint = checkpoint_of(nanogpt)
    checkpoint["model"]["lm_head.weight"] = 3
    assert "lm_head.weight is not a tensor" in one_line(write(tmp_path, checkpoint))


def test_head_of_its_own(tmp_path: Path, nanogpt: NanoGPT) -> None:
    checkpoint = checkpoint_of(nanogpt)
    checkpoint["model"]["lm_head.weight"] = 2 * checkpoint["model"]["lm_head.weight"]
    assert "has an lm_head of its own" in one_line(write(tmp_path, checkpoint))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ([], "meta.json is damaged"),
        ({"stoi": {"a": "b"}, "eos": "a"}, 'needs "stoi", the id'),
        ({"stoi": STOI, "eos": 1}, "eos: input should be a valid string"),
        ({"stoi": STOI}, 'needs "eos"'),
        ({"stoi": STOI, "eos": "€"}, 'needs "eos"'),
        ({"stoi": {**STOI, "€": 99}, "eos": "$"}, "has 100 tokens, the model embeddings of"),
    ],
)
def test_characters_that_do_not_do(
    tmp_path: Path, nanogpt: NanoGPT, meta: Any, message: str
) -> None:
    assert message in one_line(write(tmp_path, checkpoint_of(nanogpt), meta))


def test_characters_that_are_not_json(tmp_path: Path, nanogpt: NanoGPT) -> None:
    write(tmp_path, checkpoint_of(nanogpt))
    (tmp_path / "meta.json").write_text("{")
    assert "meta.json is damaged" in one_line(tmp_path)
