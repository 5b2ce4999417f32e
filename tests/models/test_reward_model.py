"""The reward model scores what plain transformers scores, and what it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import tiny_language
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from visgrpo.data.prompts import encode_pairs
from visgrpo.data.roles import pair_table
from visgrpo.errors import UserError
from visgrpo.models.load import load_reward_model
from visgrpo.models.parts import Parts
from visgrpo.models.reward_model import LearnedReward, build_reward_model
from visgrpo.models.save import save
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.objectives import bradley_terry_loss

CONTEXT = 24
KINDS = ("gpt2", "qwen2")
STATISTICS = {"reward_mean": 0.5, "reward_std": 2.0}


def language_of(kind: Any, *, end_pads: bool = False) -> Parts:
    """A random model of width 16; its padding may be its end token, as that of GPT-2 is."""
    tokenizer = make_tokenizer("bpe", ["abc"], vocabulary=258)  # every byte, and nothing merged
    if end_pads:
        tokenizer.pad_token = tokenizer.eos_token
    model = tiny_language(kind, tokenizer, context=CONTEXT)
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return Parts(kind, model, tokenizer)


def ragged(parts: Parts) -> tuple[Tensor, Tensor]:
    """Four texts of different lengths, two of which end; what follows them is padding."""
    lengths_B = torch.tensor([7, 1, 4, 6])
    tokens_BT = torch.randint(3, 12, (4, 7), generator=torch.Generator().manual_seed(0))
    tokens_BT[[0, 2], lengths_B[[0, 2]] - 1] = parts.tokenizer.eos_token_id
    return tokens_BT, lengths_B


@torch.no_grad()
def scores_of(model: Any, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
    return model.eval()(tokens_BT, lengths_B)


def saved(parts: Parts, folder: Path, **info: Any) -> Any:
    model = build_reward_model(parts, seed=1)
    save(model, parts, folder, "# a card\n", {**STATISTICS, **info})
    return model


def one_line(name: str) -> str:
    with pytest.raises(UserError) as caught:
        load_reward_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_is_a_copy_and_the_head_is_seeded(kind: str) -> None:
    parts = language_of(kind)
    state = torch.get_rng_state()
    model = build_reward_model(parts, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    trunk = model.scorer.base_model.state_dict()
    for name, tensor in parts.model.base_model.state_dict().items():
        assert torch.equal(trunk[name], tensor)
        assert trunk[name].data_ptr() != tensor.data_ptr()
    head = model.scorer.score.weight
    assert head.shape == (1, 16)
    assert 0.1 < head.std() < 0.5  # 1/√17 = 0.24
    assert torch.equal(build_reward_model(parts, seed=1).scorer.score.weight, head)
    assert not torch.equal(build_reward_model(parts, seed=2).scorer.score.weight, head)
    assert parts.model.config.num_labels != 1  # the language model's settings are its own


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_that_of_the_text_alone(kind: str) -> None:
    """Neither the batch nor what stands in the padding changes it; the last token does."""
    parts = language_of(kind)
    model = build_reward_model(parts, seed=1)
    tokens_BT, lengths_B = ragged(parts)
    scores = scores_of(model, tokens_BT, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone = scores_of(model, tokens_BT[row : row + 1, :length], lengths_B[row : row + 1])
        torch.testing.assert_close(alone[0], scores[row], rtol=0, atol=1e-5)
        hidden = model.scorer.base_model(tokens_BT[row : row + 1, :length]).last_hidden_state
        by_hand = (hidden[0, -1] * model.scorer.score.weight[0]).sum()
        torch.testing.assert_close(scores[row], by_hand, rtol=0, atol=1e-5)
    changed = scores_of(model, tokens_BT, lengths_B - torch.tensor([1, 0, 1, 1]))
    assert ((changed - scores).abs() > 1e-3).tolist() == [True, False, True, True]


@pytest.mark.parametrize("end_pads", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_gives_the_same_scores(
    kind: str, end_pads: bool, tmp_path: Path
) -> None:
    parts = language_of(kind, end_pads=end_pads)
    model = saved(parts, tmp_path)
    tokens_BT, lengths_B = ragged(parts)
    scores = scores_of(model, tokens_BT, lengths_B)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("right", plain.config.pad_token_id)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    real_BT = torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]
    padded_BT = tokens_BT.where(real_BT, tokenizer.pad_token_id)
    with torch.no_grad():
        for mask in (None, real_BT.long()):
            found = plain(input_ids=padded_BT, attention_mask=mask).logits.squeeze(-1)
            torch.testing.assert_close(found, scores, rtol=0, atol=1e-5)
    loaded = load_reward_model(str(tmp_path))
    torch.testing.assert_close(scores_of(loaded.model, tokens_BT, lengths_B), scores)


def test_training_has_no_dropout() -> None:
    parts = language_of("gpt2")
    config = parts.model.config
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5  # what the copy is built with
    model = build_reward_model(parts, seed=1).train()
    tokens_BT, lengths_B = ragged(parts)
    assert torch.equal(model(tokens_BT, lengths_B), model(tokens_BT, lengths_B))


def test_the_language_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    parts = language_of("gpt2", end_pads=True)
    embeddings = parts.model.get_input_embeddings().num_embeddings
    saved(parts, tmp_path)
    assert parts.tokenizer.pad_token_id == parts.tokenizer.eos_token_id
    assert parts.model.get_input_embeddings().num_embeddings == embeddings


def test_files_in_the_folder(tmp_path: Path) -> None:
    saved(language_of("gpt2"), tmp_path / "model", trained_on="pairs")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "visgrpo.json",
    ]
    info = {"task": "reward", **STATISTICS, "trained_on": "pairs"}
    assert json.loads((tmp_path / "model" / "visgrpo.json").read_text()) == info
    of_run = load_reward_model(str(tmp_path))  # the run's folder
    assert of_run.info == info
    assert of_run.name == str(tmp_path / "model")


def test_it_learns_a_preference() -> None:
    """Texts with "a" are preferred to texts with "b"; the loss starts near log 2."""
    parts = language_of("gpt2")
    texts = ("cd", "e", "fgh", "dd", "hc", "ge")
    chosen, rejected = tuple(f"{t}a" for t in texts), tuple(f"b{t}" for t in texts)
    pairs = pair_table("pairs/train", ("c. ",) * 6, chosen, rejected)
    inputs = encode_pairs(pairs, parts.tokenizer, max_tokens=CONTEXT)
    model = build_reward_model(parts, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        scores_MS = model(inputs.inputs_M.flatten(0, 1), inputs.lengths_M.flatten()).view(-1, 2)
        loss = bradley_terry_loss(scores_MS[:, 0], scores_MS[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    reward = LearnedReward(Parts("toy", model, parts.tokenizer))
    found = reward(prompts=["d. "] * 2, completions=["ca", "bc"], completion_ids=[[1], [1]])
    assert found[0] > found[1] + 1


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_normalised_scores_of_what_pairs_are(kind: str, tmp_path: Path) -> None:
    """An ended and a cut-off completion are encoded as `encode_pairs` does."""
    parts = language_of(kind)
    model = saved(parts, tmp_path)
    columns = {"chosen_ended": [True, False], "rejected_ended": [False, True]}
    pairs = pair_table("p", ("ab", "c"), ("de", "fgh"), ("ha.", "e"), columns)
    inputs = encode_pairs(pairs, parts.tokenizer, max_tokens=CONTEXT)
    scores = scores_of(model, inputs.inputs_M.flatten(0, 1), inputs.lengths_M.flatten())
    expected = ((scores - 0.5) / 2.0).tolist()
    rows = {
        "prompts": ["ab", "ab", "c", "c"],
        "completions": ["de", "ha.", "fgh", "e"],
        "completion_ids": [[5, 1], [5, 6], [], [7, 1]],
        "category": ["a column", "of the", "data", "set"],
    }
    loaded = load_reward_model(str(tmp_path))
    found = LearnedReward(loaded, batch_size=3)(**rows)
    assert found == pytest.approx(expected, abs=1e-5)
    # Ids of another tokenizer, whose completions end with 6.
    other = LearnedReward(loaded, stop_tokens=[6])(**rows)
    assert other[1] != pytest.approx(expected[1], abs=1e-4)
    assert other[2] == pytest.approx(expected[2], abs=1e-5)


DRAWN = ([0xE2, 0x82, 0x41], [0xFF], [0x61, 0xC3], [])  # bytes; most are no UTF-8


def drawn_rows(policy: Any) -> tuple[dict[str, Any], list[list[int]]]:
    """Completions of bytes that are no text, the third one ended; and the ids of their bytes."""
    alphabet = bytes_to_unicode()
    ids = [[policy.convert_tokens_to_ids(alphabet[byte]) for byte in row] for row in DRAWN]
    ended = [[*row, policy.eos_token_id] if n == 2 else row for n, row in enumerate(ids)]
    rows = {
        "prompts": ["ab"] * 4,
        "completions": policy.batch_decode(ids),
        "completion_ids": ended,
    }
    return rows, ids


@pytest.mark.parametrize("end_pads", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_the_same_vocabulary_are_scored_as_they_were_drawn(
    kind: str, end_pads: bool, tmp_path: Path
) -> None:
    parts = language_of(kind, end_pads=end_pads)
    model, policy = saved(parts, tmp_path), parts.tokenizer
    rows, ids = drawn_rows(policy)
    again = policy(rows["completions"])["input_ids"]
    assert [len(row) for row in again] > [len(row) for row in ids]  # U+FFFD has three bytes
    prompt, end = policy("ab")["input_ids"], policy.eos_token_id
    expected = []
    for n, row in enumerate(ids):
        tokens = torch.tensor([[*prompt, *row, *([end] if n == 2 else [])]])
        score = scores_of(model, tokens, torch.tensor([tokens.shape[1]]))
        expected.append((score.item() - 0.5) / 2.0)
    loaded = load_reward_model(str(tmp_path))
    reward = LearnedReward(loaded, policy_tokenizer=policy)
    assert reward(**rows) == pytest.approx(expected, abs=1e-5)
    encoded_again = LearnedReward(loaded)(**rows)
    assert encoded_again[0] != pytest.approx(expected[0], abs=1e-4)
    assert encoded_again[3] == pytest.approx(expected[3], abs=1e-5)  # nothing was drawn


def test_what_has_no_text_is_not_scored(tmp_path: Path) -> None:
    """A policy may draw ids that its tokenizer lacks, and end with another token than pairs do."""
    parts = language_of("gpt2")
    saved(parts, tmp_path)
    policy = parts.tokenizer
    reward = LearnedReward(
        load_reward_model(str(tmp_path)),
        policy_tokenizer=policy,
        stop_tokens=[policy.eos_token_id, 999],
    )
    completion_ids = [[65, 66, policy.eos_token_id], [65, 500, 66, 999]]
    found = reward(prompts=["ab"] * 2, completions=["", ""], completion_ids=completion_ids)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_another_vocabulary_is_encoded_again(tmp_path: Path) -> None:
    saved(language_of("gpt2"), tmp_path)
    loaded = load_reward_model(str(tmp_path))
    rows = {"prompts": ["ab"], "completions": ["ba"], "completion_ids": [[3, 4, 9]]}
    expected = LearnedReward(loaded)(**rows)
    for policy in (
        make_tokenizer("char", ["abc"]),
        make_tokenizer("bpe", ["abab"], vocabulary=259),  # one token more
    ):
        assert LearnedReward(loaded, policy_tokenizer=policy)(**rows) == expected


def test_prompts_begin_as_the_tokenizer_begins_them(tmp_path: Path) -> None:
    parts = language_of("gpt2")
    saved(parts, tmp_path)
    loaded = load_reward_model(str(tmp_path))
    plain = LearnedReward(loaded)(prompts=["cab"], completions=["c"], completion_ids=[[]])
    loaded.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="c $A", special_tokens=[("c", loaded.tokenizer.convert_tokens_to_ids("c"))]
    )
    found = LearnedReward(loaded)(prompts=["ab"], completions=["c"], completion_ids=[[]])
    assert found == pytest.approx(plain, abs=1e-6)


def test_chat_messages(tmp_path: Path) -> None:
    parts = language_of("gpt2")
    parts.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}. {% endfor %}"
    saved(parts, tmp_path)
    reward = LearnedReward(load_reward_model(str(tmp_path)))
    chat = reward(
        prompts=[[{"role": "user", "content": "ab"}]],
        completions=[[{"role": "assistant", "content": "cd"}]],
        completion_ids=[[1]],
    )
    text = reward(prompts=["ab. "], completions=["cd"], completion_ids=[[1]])
    assert chat == pytest.approx(text)


def test_nothing_is_cut_silently(tmp_path: Path) -> None:
    saved(language_of("gpt2"), tmp_path)
    reward = LearnedReward(load_reward_model(str(tmp_path)))
    fits = {"prompts": ["a" * 20], "completions": ["bcd"], "completion_ids": [[3, 1]]}
    assert len(reward(**fits)) == 1  # 20 + 3 + the end
    for prompt, length in (("a" * 21, 25), ("", 0)):
        rows = {"prompts": ["a", prompt], "completions": ["b", "bcd" if prompt else ""]}
        with pytest.raises(UserError, match=f"Completion 1 has {length} tokens .* 1 to 24: gen"):
            reward(**rows, completion_ids=[[1], [1] if prompt else []])


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_reward_model_that_tells_nothing_apart(std: float, tmp_path: Path) -> None:
    saved(language_of("gpt2"), tmp_path, reward_std=std)
    said = (
        "NaN is not JSON" if std != std else f"have a std of {std:g}: it tells no completion from"
    )
    with pytest.raises(UserError, match=said):
        LearnedReward(load_reward_model(str(tmp_path)))


def test_a_model_from_elsewhere_is_not_normalised(tmp_path: Path) -> None:
    saved(language_of("gpt2"), tmp_path)
    (tmp_path / "visgrpo.json").unlink()
    loaded = load_reward_model(str(tmp_path))
    tokens = torch.tensor([loaded.tokenizer("abc")["input_ids"]])
    score = scores_of(loaded.model, tokens, torch.tensor([3])).item()
    found = LearnedReward(loaded)(prompts=["a"], completions=["bc"], completion_ids=[[]])
    assert found == pytest.approx([score], abs=1e-6)


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    parts = language_of("gpt2")
    save(parts.model, parts, tmp_path)
    assert one_line(str(tmp_path)) == (
        f'"{tmp_path}" is no reward model: it lacks score.weight. Train one with --method reward.'
    )


def test_a_trunk_that_is_not_whole(tmp_path: Path) -> None:
    saved(language_of("gpt2"), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.ln_f.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    assert "lacks 1 weight(s), such as transformer.ln_f.bias: they" in one_line(str(tmp_path))


def test_a_classifier_of_several_classes_is_no_reward_model(tmp_path: Path) -> None:
    parts = language_of("gpt2")
    config = parts.model.config
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    parts.tokenizer.save_pretrained(tmp_path)
    assert "is no reward model: it has 3 outputs." in one_line(str(tmp_path))


def test_a_missing_folder(tmp_path: Path) -> None:
    assert one_line(str(tmp_path / "nowhere")).endswith('nowhere" does not exist.')


def test_a_family_without_a_classifier() -> None:
    from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM

    parts = language_of("gpt2")
    config = GPTNeoXJapaneseConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    other = Parts("japanese", GPTNeoXJapaneseForCausalLM(config), parts.tokenizer)
    with pytest.raises(UserError, match='no reward model of the family of "japanese": start from'):
        build_reward_model(other, seed=0)
