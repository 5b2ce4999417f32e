"""`visgrpo representation` end to end: a small random backbone on a small picture folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import (
    head,
    metric_lines,
    read_json,
    read_lines,
    represent,
    same_tuned_run,
    training_lines,
    weights,
)
from safetensors.torch import load_file

from visgrpo.cli import main
from visgrpo.models.backbone import RepresentationClassifier
from visgrpo.models.load import load_representation

PROBES = ["--probe", "knn", "softmax-regression"]
LAST = ["--keep", "last"]
MEASURES = {"accuracy", "balanced_accuracy", "nll", "ece", "entropy", "kl", "per_class_accuracy"}
PROBED = {"knn", "softmax_regression", "alignment", "uniformity"}


@pytest.fixture(scope="module")
def run(vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with probes and page."""
    return represent(vit, pictures, tmp_path_factory.mktemp("whole") / "run", *LAST, *PROBES)


# What a run leaves


def test_everything_is_in_the_run_directory(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    files = {"config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html"}
    assert names == files | {"checkpoints", "samples", "model", "plots"}
    summary = read_json(run / "summary.json")
    assert (summary["recipe"], summary["method"], summary["steps"]) == (
        "representation",
        "grpo-rm",
        4,
    )
    assert {key: summary["data"][key] for key in ("train", "validation", "test", "classes")} == {
        "train": 48,
        "validation": 18,
        "test": 18,
        "classes": 3,
    }
    for part in ("before", "after"):
        assert set(summary[part]) >= MEASURES | PROBED
        assert set(summary[part]["knn"]) == {"1", "5", "20"}
        assert set(summary[part]["per_class_accuracy"]) == {"apple", "leaf", "sky"}
        assert np.sum(summary[part]["confusion"]) == 18
    assert not {"baseline", "retention", "shifts"} & set(summary)


def test_metrics_and_samples(run: Path) -> None:
    lines = read_lines(run / "metrics.jsonl")
    assert all(line["epoch"] == round(line["step"] / 6, 4) for line in lines)
    evaluated = [line["step"] for line in lines if "eval/accuracy" in line]
    assert evaluated == [0, 1, 2, 3, 4]
    trained = training_lines(run)
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    expected = {"reward", "rewards/hard/mean", "rewards/uniformity/mean", "accuracy", "grad_norm"}
    assert expected <= set(trained[0])
    samples = read_lines(run / "samples.jsonl")
    assert len(samples) == 16
    for sample in samples:
        assert (run / sample["image"]).is_file()
        assert sample["outputs"][0] == sample["label"]
        assert sorted(sample["outputs"]) == ["apple", "leaf", "sky"]
        assert sum(sample["probabilities"]) == pytest.approx(1, abs=1e-5)
        p_true = sample["probabilities"][0]
        assert sample["rewards"][0] == pytest.approx(1 - p_true, abs=1e-5)  # hard + uniformity
        assert np.mean(sample["advantages"]) == pytest.approx(0, abs=1e-5)  # a z-score
        assert np.std(sample["advantages"]) == pytest.approx(1, abs=1e-2)


def test_the_model_is_a_plain_transformers_one_with_a_head_beside_it(
    run: Path, vit: Path, pictures: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    plain = AutoModel.from_pretrained(run / "model").eval()
    processor = AutoImageProcessor.from_pretrained(run / "model", backend="pil")
    files = sorted((pictures / "test").glob("*/*.png"))
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    classifier, parts = load_representation(run / "model")
    assert isinstance(classifier, RepresentationClassifier)
    with torch.no_grad():
        tokens = plain(pixel_values=pixels).last_hidden_state[:, 0]
        ours = classifier.features(torch.stack([parts.preprocess(image) for image in images]))
        logits_NK = classifier(pixels)
    torch.testing.assert_close(ours, tokens, atol=1e-5, rtol=1e-5)
    after = read_json(run / "summary.json")["after"]
    labels = torch.tensor([("apple", "leaf", "sky").index(file.parent.name) for file in files])
    nll = torch.nn.functional.cross_entropy(logits_NK, labels).item()
    assert nll == pytest.approx(after["nll"], abs=1e-5)
    assert after["nll"] != pytest.approx(read_json(run / "summary.json")["before"]["nll"], abs=1e-5)
    # Frozen: the backbone is the one that the run began with.
    assert weights(run) == (vit / "model.safetensors").read_bytes()
    info = read_json(run / "model" / "visgrpo.json")
    assert (info["task"], info["pool"], info["hidden"]) == ("classification", "cls", 8)
    assert info["classes"] == ["apple", "leaf", "sky"]


def test_digits_run_out_of_the_box(vit: Path, tmp_path: Path, no_page: None) -> None:
    run = represent(vit, "digits", tmp_path / "run", "--steps", "2", "--train-slice", ":64")
    assert read_json(run / "summary.json")["data"]["classes"] == 10


def test_a_run_has_a_name_by_default(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_page: None
) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"representation --model {vit} --train-slice :32 --batch-size 8 --steps 1 --probe none"
    main([*words.split(), "--device", "cpu"])
    assert (tmp_path / "runs" / "representation-digits-grpo-rm" / "summary.json").is_file()


# Every option does something, and only what it says

WAYS = {
    "exact": "--estimator exact",
    "sampled": "--estimator sampled --group-size 4",
    "subset": "--class-subset 2",
    "accuracy alone": "--reward hard",
    "wrong classes": "--reward hard uniformity-wrong",
    "spread": "--reward hard spread",
    "top-k": "--reward top-k:2 uniformity",
    "no division": "--scale none",
    "weights": "--reward-weights 0.5 1",
    "features apart": "--feature-uniformity 0.5",
    "entropy": "--entropy-weight 0.5",
    "patches": "--pool mean",
    "both": "--pool both",
    "linear": "--hidden 0",
    "seed": "--seed 1",
    "passes": "--inner-passes 2",
    "minibatches": "--minibatches 2",
    "augmented": "--augment crop flip color",
    "supervised": "--method supervised",
    "last block": "--train last-blocks",
    "all": "--train full",
    "adapters": "--train lora --lora-rank 2",
}


@pytest.fixture(scope="module")
def ways(vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ways")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visgrpo.tasks.run.write_report", lambda path: path)
        return {"": represent(vit, pictures, folder / "plain", *LAST)} | {
            name: represent(vit, pictures, folder / name, *LAST, *way.split())
            for name, way in WAYS.items()
        }


def test_every_option_changes_the_head(ways: dict[str, Path], run: Path) -> None:
    assert len({head(place) for place in ways.values()}) == len(WAYS) + 1
    assert head(ways[""]) == head(run)  # probes only look


def test_only_what_should_train_does(ways: dict[str, Path], vit: Path) -> None:
    tuned = {name for name, run in ways.items() if weights(run) != weights(ways[""])}
    assert tuned == {"last block", "all", "adapters"}
    start = load_file(vit / "model.safetensors")
    moved = {
        name: {
            key
            for key, tensor in load_file(ways[name] / "model" / "model.safetensors").items()
            if not torch.equal(tensor, start[key])
        }
        for name in tuned
    }
    after_block_0 = {key for key in start if "layer.1." in key or key.startswith("layernorm")}
    assert moved["last block"] <= after_block_0
    assert "layernorm.weight" in moved["last block"]
    assert "embeddings.patch_embeddings.projection.weight" in moved["all"]
    linear = {key for key in start if "layer." in key and start[key].dim() == 2}
    assert moved["adapters"] <= linear
    assert moved["adapters"]


def test_samples_show_the_groups_that_were_used(ways: dict[str, Path]) -> None:
    for name, size in (("sampled", 4), ("subset", 2)):
        for line in read_lines(ways[name] / "samples.jsonl"):
            assert len(line["outputs"]) == len(line["rewards"]) == size
    for line in read_lines(ways["subset"] / "samples.jsonl"):
        assert line["label"] in line["outputs"]
    drawn = [line["outputs"] for line in read_lines(ways["sampled"] / "samples.jsonl")]
    assert len({tuple(drawn[step * 4]) for step in range(4)}) > 1


def test_a_backbone_that_trains_is_probed_again(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    options = [*LAST, *PROBES, "--train", "full", "--backbone-rate", "10"]
    summary = read_json(represent(vit, pictures, tmp_path / "run", *options) / "summary.json")
    assert summary["before"]["alignment"] != summary["after"]["alignment"]
    assert summary["before"]["uniformity"] != summary["after"]["uniformity"]


def test_adapters_are_merged(ways: dict[str, Path]) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(ways["adapters"] / "model")
    assert not any("lora" in name for name in model.state_dict())
    classifier, _ = load_representation(ways["adapters"] / "model")
    assert not classifier.backbone.has_adapter


def test_adapters_and_a_batch_norm_run(
    vit: Path, resnet: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    represent(vit, pictures, tmp_path / "lora", "--train", "lora")
    run = represent(resnet, pictures, tmp_path / "resnet", "--train", "full", *LAST)
    assert weights(run) != (resnet / "model.safetensors").read_bytes()


# Splitting the work changes nothing

SPLIT = {
    "plain": "",
    "supervised": "--method supervised",
    "sampled": "--estimator sampled",
    "subset": "--class-subset 2",
    "exact, passes": "--estimator exact --inner-passes 2",
    "minibatches, stale": "--minibatches 2 --inner-passes 2 --refresh-every epoch",
    "full": "--train full",
    "beta": "--beta 0.1",
}


@pytest.mark.parametrize("name", SPLIT)
def test_accumulation_changes_nothing(
    name: str, run: Path, vit: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    model = run / "model" if name == "beta" else vit
    options = [*LAST, *SPLIT[name].split()]
    whole = represent(model, pictures, tmp_path / "1", *options)
    split = represent(model, pictures, tmp_path / "4", *options, "--accumulation", "4")
    ours, theirs = (load_file(place / "model" / "head.safetensors") for place in (split, whole))
    for tensor in theirs:
        torch.testing.assert_close(ours[tensor], theirs[tensor], atol=1e-4, rtol=1e-3)
    for our, their in zip(training_lines(split), training_lines(whole), strict=True):
        # Clipping and the rest are of the same groups.
        assert our == pytest.approx(their, abs=1e-4, rel=1e-3)


# What else can be asked for


def test_the_supervised_baseline_is_the_supervised_run(
    vit: Path, pictures: Path, tmp_path: Path, ways: dict[str, Path], no_page: None
) -> None:
    options = [*LAST, "--baseline", "--feature-uniformity", "0.5"]
    run = represent(vit, pictures, tmp_path / "run", *options)
    assert same_tuned_run(run / "baseline", ways["supervised"])
    assert same_tuned_run(run, ways["features apart"])
    summary = read_json(run / "summary.json")
    assert summary["baseline"]["name"] == "supervised"
    assert summary["baseline"]["after"] == read_json(run / "baseline" / "summary.json")["after"]


def test_shifts(vit: Path, pictures: Path, tmp_path: Path, no_page: None) -> None:
    options = ["--shifts", "blur", "noise", "jpeg", "grey", "blur", "--learning-rate", "0.1", *LAST]
    kept = {}
    for train in ("frozen", "last-blocks"):
        run = represent(vit, pictures, tmp_path / train, *options, "--train", train)
        kept[train] = read_json(run / "summary.json")["shifts"]
        assert list(kept[train]) == ["blur", "noise", "jpeg", "grey"]
        for measures in kept[train].values():
            assert set(measures) == {"before", "after"}
            assert 0 <= measures["after"]["accuracy"] <= 1
    before = [{name: m["before"] for name, m in shifts.items()} for shifts in kept.values()]
    assert before[0] == before[1]  # cached features give what pixels give
    after = kept["frozen"]
    # The classes differ in colour alone: whoever learned that is at chance without it.
    assert after["blur"]["after"]["accuracy"] > after["grey"]["after"]["accuracy"]


def test_retention(vit: Path, pictures: Path, tmp_path: Path, no_page: None) -> None:
    options = ["--retention", "digits", "--train", "full", "--backbone-rate", "50", *LAST]
    retained = read_json(represent(vit, pictures, tmp_path / "run", *options) / "summary.json")
    assert list(retained["retention"]) == ["digits"]
    before, after = (retained["retention"]["digits"][when] for when in ("before", "after"))
    assert before > 0.2  # chance is 0.1
    assert before != after


def test_a_finished_run_goes_on_with_its_head(
    run: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: pytest.CaptureFixture[str]
) -> None:
    more = represent(run / "model", pictures, tmp_path / "more", "--beta", "0.5", *LAST)
    assert f"The head of {run / 'model'} is kept" in capsys.readouterr().err
    before, after = (read_json(more / "summary.json")[when] for when in ("before", "after"))
    assert before["nll"] == pytest.approx(read_json(run / "summary.json")["after"]["nll"], abs=1e-6)
    assert after["kl"] > before["kl"] == pytest.approx(0, abs=1e-7)
    kl = [line["kl"] for line in training_lines(more)]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > kl[0]
    strong = represent(run / "model", pictures, tmp_path / "strong", "--beta", "50", *LAST)
    assert read_json(strong / "summary.json")["after"]["kl"] < after["kl"]


def test_the_image_tower_of_a_clip_is_a_backbone(
    tiny_clip_folder: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    from transformers import AutoModel

    run = represent(tiny_clip_folder, pictures, tmp_path / "run", "--train", "full", *LAST)
    assert type(AutoModel.from_pretrained(run / "model")).__name__ == "CLIPVisionModel"
    more = represent(run / "model", pictures, tmp_path / "more", "--steps", "1")
    before, after = (read_json(place / "summary.json") for place in (more, run))
    assert before["before"]["nll"] == pytest.approx(after["after"]["nll"], abs=1e-5)


def test_a_head_of_other_width_is_replaced(
    run: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: pytest.CaptureFixture[str]
) -> None:
    represent(run / "model", pictures, tmp_path / "more", "--hidden", "4")
    assert "note: the head of" in capsys.readouterr().err


def test_keep_best_ends_with_the_best_weights(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    run = represent(vit, pictures, tmp_path / "run", "--learning-rate", "0.5", "--steps", "8")
    evaluated = {
        line["step"]: line["eval/accuracy"] for line in metric_lines(run) if "eval/accuracy" in line
    }
    best = read_json(run / "summary.json")["best_step"]
    assert evaluated[best] == max(evaluated.values())
