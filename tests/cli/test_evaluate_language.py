"""`visgrpo evaluate` on language models and reward models, and what `predict` says of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from running import read_json, refused
from sklearn.metrics import log_loss
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from visgrpo.cli import main
from visgrpo.errors import UserError
from visgrpo.models.options import Adapt
from visgrpo.models.parts import Parts
from visgrpo.models.reward_model import build_reward_model
from visgrpo.models.save import save
from visgrpo.models.small import build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.models.trains import adapt
from visgrpo.tasks.use import kind_of

Capture = pytest.CaptureFixture[str]
CONTEXT = 24
DOCUMENTS = [f"{number} little birds sat on a wire.\nÉ{'!' * number}" for number in range(40)]
INFO = {"validation_fraction": 0.1, "seed": 3}  # 4 documents each for validation and test


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "birds.txt"
    file.write_text("\n\n".join(DOCUMENTS))
    return file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in two splits; a validation split is the test split of one that has none."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 30), ("validation", 8)):
        rows = [
            {"prompt": f"{i} birds", "chosen": " sat" * (1 + i % 3), "rejected": f" fl{i}!"}
            for i in range(count)
        ]
        rows = [{**row, "chosen_ended": i > 0} for i, row in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def language(seed: int) -> Parts:
    """A random model whose logits differ from each other."""
    tokenizer = make_tokenizer("char", DOCUMENTS)
    model = build_language(
        tokenizer, architecture="gpt2", layers=1, width=16, heads=2, context=CONTEXT, seed=seed
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return Parts("random", model, tokenizer)


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that says that its model was trained on the text."""
    folder, parts = tmp_path_factory.mktemp("runs") / "sft", language(0)
    info = {**INFO, "data": str(text)}
    save(parts.model, parts, folder / "model", "", info)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another language model, of which nothing is known."""
    folder, parts = tmp_path_factory.mktemp("models") / "start", language(1)
    save(parts.model, parts, folder)
    (folder / "visgrpo.json").unlink()
    return folder


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reward model, in the folder of its run."""
    folder, parts = tmp_path_factory.mktemp("runs") / "reward", language(2)
    model = build_reward_model(parts, seed=0)
    save(model, parts, folder / "model", "", INFO)
    return folder


def evaluate(capsys: Capture, model: Path, data: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    words = ["evaluate", str(model), "--data", str(data), "--json", "-", "--device", "cpu"]
    main([*words, *options])
    return json.loads(capsys.readouterr().out)


@torch.no_grad()
def by_hand(folder: Path, documents: list[str], block: int = CONTEXT) -> dict[str, float]:
    """Plain transformers, block by block."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [i for text in documents for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    nll, right, count, size = 0.0, 0, 0, 0
    for begin in range(0, len(ids) - block, block + 1):
        row = torch.tensor(ids[begin : begin + block + 1])
        logits = model(row[None, :-1]).logits[0]
        nll += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
        right += int((logits.argmax(-1) == row[1:]).sum())
        count += block
        size += len(tokenizer.decode(row[1:], skip_special_tokens=True).encode())
    return {
        "nll": nll / count,
        "perplexity": math.exp(nll / count),
        "accuracy": right / count,
        "bits_per_byte": nll / math.log(2) / size,
    }


def test_a_language_model_on_the_test_split_of_its_run(
    run: Path, text: Path, capsys: Capture
) -> None:
    expected = by_hand(run / "model", DOCUMENTS[-4:])
    for folder in (run, run / "model"):
        found = evaluate(capsys, folder, text)
        assert found == {"model": pytest.approx(expected, rel=1e-5)}


def test_the_start_is_measured_beside(
    run: Path, start: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "numbers.json"
    words = ["evaluate", run, "--data", text, "--start", start, "--json", file, "--device", "cpu"]
    main([str(word) for word in words])
    shown = capsys.readouterr().out
    assert shown.startswith("birds/test, 4 documents in blocks of 24 tokens")
    for word in ("start", "model", "perplexity", "bits per byte"):
        assert word in shown
    found = read_json(file)
    assert found["start"] == pytest.approx(by_hand(start, DOCUMENTS[-4:]), rel=1e-5)
    assert found["model"] == pytest.approx(by_hand(run / "model", DOCUMENTS[-4:]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "documents", "block"),
    [
        ("--split validation", DOCUMENTS[-8:-4], CONTEXT),
        ("--split train[:3]", DOCUMENTS[:3], CONTEXT),
        ("--context 7", DOCUMENTS[-4:], 7),
        ("--validation-fraction 0.2", DOCUMENTS[-8:], CONTEXT),
    ],
)
def test_rows_and_blocks(
    options: str, documents: list[str], block: int, run: Path, text: Path, capsys: Capture
) -> None:
    found = evaluate(capsys, run, text, *options.split())["model"]
    assert found == pytest.approx(by_hand(run / "model", documents, block), rel=1e-5)


def test_other_text_is_divided_by_default(
    run: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The run's share belongs to the run's text; else 5 % are set apart."""
    elsewhere = Path(shutil.copy(text, tmp_path / "other.txt"))
    found = evaluate(capsys, run, elsewhere)["model"]
    assert found == pytest.approx(by_hand(run / "model", DOCUMENTS[-2:]), rel=1e-5)


def test_a_column_of_a_table(run: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "birds.jsonl"
    table.write_text("\n".join(json.dumps({"verse": each}) for each in DOCUMENTS))
    found = evaluate(capsys, run, table, "--text-column", "verse")["model"]
    assert found == pytest.approx(by_hand(run / "model", DOCUMENTS[-2:]), rel=1e-5)


def test_the_shorter_context_decides(
    run: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    tokenizer = make_tokenizer("char", DOCUMENTS)
    wide = build_language(
        tokenizer, architecture="gpt2", layers=1, width=16, heads=2, context=2 * CONTEXT, seed=5
    )
    save(wide, Parts("", None, tokenizer), tmp_path)
    found = evaluate(capsys, run, text, "--start", str(tmp_path))
    assert found["start"] == pytest.approx(by_hand(tmp_path, DOCUMENTS[-4:]), rel=1e-5)


def test_an_adapter_is_of_its_bases_kind(
    start: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Saved by peft alone; as it starts, it changes nothing."""
    model = AutoModelForCausalLM.from_pretrained(start)
    adapter = tmp_path / "adapter"
    adapt(model, ["lora"], Adapt(2, 4.0)).save_pretrained(adapter)
    expected = evaluate(capsys, start, text)["model"]
    assert evaluate(capsys, adapter, text)["model"] == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def margins_by_hand(folder: Path, file: Path) -> torch.Tensor:
    """Plain transformers, text by text: the differences (M,) of the scores."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(text: str, ended: bool) -> torch.Tensor:
        ids = [*tokenizer(text)["input_ids"], *([tokenizer.eos_token_id] if ended else [])]
        row_1T = torch.tensor([ids])
        return model(row_1T, attention_mask=torch.ones_like(row_1T)).logits.squeeze()

    margins = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        chosen = score(row["prompt"] + row["chosen"], row["chosen_ended"])
        margins.append(chosen - score(row["prompt"] + row["rejected"], True))
    return torch.stack(margins).double()


def test_a_reward_model_on_its_test_pairs(reward: Path, pairs: Path, capsys: Capture) -> None:
    margins_M = margins_by_hand(reward / "model", pairs / "validation.jsonl")
    share_M = margins_M.sigmoid()
    for folder in (reward, reward / "model"):
        found = evaluate(capsys, folder, pairs)["model"]
        assert found["accuracy"] == (margins_M > 0).double().mean()
        assert found["margin"] == pytest.approx(margins_M.mean().item(), abs=1e-5)
        nll = log_loss([1] * 8, share_M.numpy(), labels=[0, 1])
        assert found["nll"] == pytest.approx(nll, abs=1e-5)
        assert 0 <= found["ece"] <= 1
    two = evaluate(capsys, reward, pairs, "--split", "test[:2]", "--seed", "1")["model"]
    assert two["margin"] == pytest.approx(margins_M[:2].mean().item(), abs=1e-5)


def test_a_reward_model_from_elsewhere_and_its_start(
    reward: Path, pairs: Path, tmp_path: Path, capsys: Capture
) -> None:
    parts = language(3)
    save(build_reward_model(parts, seed=1), parts, tmp_path)
    (tmp_path / "visgrpo.json").unlink()
    found = evaluate(capsys, tmp_path, pairs, "--start", str(reward))
    assert found["start"] == evaluate(capsys, reward, pairs)["model"]
    assert found["model"] == evaluate(capsys, tmp_path, pairs)["model"] != found["start"]


REFUSED = {
    "no text": ("RUN", "is a language model: name a text, such as topics or a .txt file, with"),
    "no pairs": ("REWARD", "is a reward model: name a table of preference pairs, such as"),
    "text for pairs": ("REWARD --data TEXT", "birds.txt is text and holds no pairs: name a table"),
    "another split": ("RUN --data TEXT --split tset", 'Did you mean "test"?'),
    "all rows": ("RUN --data TEXT --split all", "--split all: name train, validation or test."),
    "no rows": ("RUN --data TEXT --split test[9:]", "holds no rows"),
    "all pairs": ("REWARD --data PAIRS --split all", "--split all: name train, validation or"),
    "no pair": ("REWARD --data PAIRS --split test[9:]", "holds no rows"),
    "wide": ("RUN --data TEXT --context 25", "--context 25: the model sees 24 tokens at once."),
    "no width": ("RUN --data TEXT --context 0", "--context must be above 0"),
    "other start": ("RUN --data TEXT --start REWARD", "is a reward model: give a language model"),
    "templates": ("RUN --data TEXT --templates a", "a language model. It is for a CLIP or SigLIP"),
    "probe": ("REWARD --data PAIRS --probe knn", "--probe does not go with"),
    "batch": ("RUN --data TEXT --batch-size 8", "a language model. It is for a CLIP or SigLIP mod"),
    "image column": ("RUN --data TEXT --image-column i", "--image-column does not go with"),
    "seed": ("RUN --data TEXT --seed 1", "or a vision-language model."),
    "context of pairs": ("REWARD --data PAIRS --context 8", "It is for a language model."),
    "column of pairs": ("REWARD --data PAIRS --text-column t", "It is for a language model."),
    "damaged": ("CHECKPOINT --data TEXT", "is damaged; what could run code is not read."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together(
    name: str, run: Path, reward: Path, text: Path, pairs: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"PK")
    places = {"RUN": run, "REWARD": reward, "TEXT": text, "PAIRS": pairs, "CHECKPOINT": tmp_path}
    words, expected = REFUSED[name]
    line = [str(places.get(word, word)) for word in words.split()]
    assert expected in refused(capsys, ["evaluate", *line], notes=True)


KINDS = {
    "Qwen2ForCausalLM": "language",
    "GPT2LMHeadModel": "language",
    "Qwen2ForSequenceClassification": "reward",
}


@pytest.mark.parametrize("architecture", KINDS)
def test_models_from_elsewhere_are_known_by_their_class(architecture: str, tmp_path: Path) -> None:
    family = "gpt2" if architecture.startswith("GPT2") else "qwen2"
    settings = {"model_type": family, "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert kind_of(str(tmp_path)) == KINDS[architecture]


def test_a_model_that_nothing_takes_is_named(tmp_path: Path) -> None:
    settings = {"model_type": "qwen2", "architectures": ["Qwen2Model"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"is a qwen2 model \(Qwen2Model\), which nothing here"):
        kind_of(str(tmp_path))


def test_context_does_not_go_with_images(tiny_clip_folder: Path, capsys: Capture) -> None:
    line = refused(capsys, ["evaluate", tiny_clip_folder, "--context", 8])
    assert "--context does not go with" in line
    assert line.endswith("a CLIP or SigLIP model. It is for a language model.")


def test_predict_names_what_to_do_instead(run: Path, reward: Path, capsys: Capture) -> None:
    line = refused(capsys, ["predict", run, "photo.jpg"])
    assert "is a language model and sees no images: visgrpo generate MODEL PROMPT" in line
    assert "visgrpo generate takes language models" in refused(capsys, ["predict", reward, "x"])
