"""Every command end to end on a small picture folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from running import (
    clip,
    metric_lines,
    read_json,
    read_lines,
    same_run,
    training_lines,
    weights,
)

from making import CLASSES
from visgrpo.cli import main
from visgrpo.models.load import load_clip

MEASURES = {"accuracy", "ece", "kl", "entropy", "nll", "per_class_accuracy", "confusion"}


@pytest.fixture(scope="module")
def grpo_run(start: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GRPO run with its page; log lines and evaluations at every step."""
    return clip(start, pictures, tmp_path_factory.mktemp("runs") / "grpo", "--keep", "last")


@pytest.fixture(scope="module")
def supervised_run(start: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "supervised"
    with pytest.MonkeyPatch.context() as patch:  # drawing the page takes longer than the run
        patch.setattr("visgrpo.tasks.run.write_report", lambda path: path)
        return clip(start, pictures, folder, "--method", "supervised", "--keep", "last")


# What a run leaves


def test_pretraining_leaves_a_whole_run(start_run: Path) -> None:
    names = {path.name for path in start_run.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "model"}
    assert expected | {"report.html", "plots"} <= names
    summary = read_json(start_run / "summary.json")
    assert summary["recipe"] == "pretrain clip"
    assert summary["data"] == {
        "name": yaml.safe_load((start_run / "config.yaml").read_text())["data"],
        "train": 48,
        "validation": 18,
        "test": 18,
        "classes": 3,
    }
    assert read_json(start_run / "model" / "visgrpo.json")["classes"] == list(CLASSES)


def test_a_run_leaves_what_the_contract_says(grpo_run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html"):
        assert (grpo_run / name).stat().st_size > 0
    for name in ("reward", "kl", "entropy", "eval_accuracy"):
        assert (grpo_run / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    steps = sorted(path.name for path in (grpo_run / "checkpoints").iterdir())
    assert steps == ["best", "step-000003", "step-000004"]
    assert not list(grpo_run.rglob("*.tmp"))
    assert not list(grpo_run.rglob("*.bin"))


def test_the_summary_has_the_keys_of_the_contract(grpo_run: Path) -> None:
    summary = read_json(grpo_run / "summary.json")
    assert summary["recipe"] == "clip"
    assert summary["method"] == "grpo"
    assert summary["steps"] == 4
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 1e8
    examples = 4 * 8 / summary["seconds"]
    assert summary["examples_per_second"] == pytest.approx(examples, rel=0.02)
    for side in ("before", "after"):
        assert set(summary[side]) >= MEASURES
        assert list(summary[side]["per_class_accuracy"]) == list(CLASSES)
        assert np.array(summary[side]["confusion"]).sum() == 18
    assert summary["before"]["kl"] == 0
    assert summary["after"]["kl"] > 0
    assert isinstance(summary["best_step"], int)


def test_metrics_have_trl_names(grpo_run: Path) -> None:
    names = set().union(*training_lines(grpo_run))
    assert names >= {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/hard/mean",
        "kl",
        "entropy",
        "entropy_normalized",
        "loss",
        "accuracy",
        "clip_ratio/region_mean",
        "grad_norm",
        "learning_rate",
    }
    lines = read_lines(grpo_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all({"step", "epoch", "seconds"} <= set(line) for line in lines)
    assert all("step_time" in line for line in lines if "loss" in line)
    assert {"eval/accuracy", "eval/ece", "eval/kl", "eval/entropy", "eval/nll"} <= set(lines[0])


def test_samples_are_groups_with_their_pictures(grpo_run: Path) -> None:
    samples = read_lines(grpo_run / "samples.jsonl")
    assert samples
    for sample in samples:
        assert (grpo_run / sample["image"]).is_file()
        assert sample["label"] in CLASSES
        assert set(sample["outputs"]) <= set(CLASSES)
        assert len(sample["outputs"]) == len(sample["rewards"]) == len(sample["advantages"]) == 8
        right = [output == sample["label"] for output in sample["outputs"]]
        assert sample["rewards"] == [float(hit) for hit in right]
        assert all(0 < p <= 1 for p in sample["probabilities"])


def test_the_model_loads_with_plain_transformers(grpo_run: Path, start: Path) -> None:
    from transformers import CLIPModel

    tuned = CLIPModel.from_pretrained(grpo_run / "model").state_dict()
    before = CLIPModel.from_pretrained(start).state_dict()
    changed = {name for name in tuned if not torch.equal(tuned[name], before[name])}
    assert changed
    assert all(name.startswith(("vision_model.", "visual_projection")) for name in changed)
    card = (grpo_run / "model" / "README.md").read_text()
    accuracy = read_json(grpo_run / "summary.json")["after"]["accuracy"]
    assert f"{accuracy:.3f}" in card


def test_another_seed_is_another_run(grpo_run: Path, tmp_path: Path, no_page: None) -> None:
    main(f"clip --config {grpo_run}/config.yaml --output {tmp_path}/other --seed 1".split())
    assert weights(tmp_path / "other") != weights(grpo_run)


# Every way of training runs, and trains


WAYS = {
    "dr-grpo": "--method dr-grpo",
    "dapo": "--method dapo",
    "gspo": "--method gspo",
    "cispo": "--method cispo",
    "sapo": "--method sapo",
    "rloo": "--method rloo",
    "reinforce": "--method reinforce",
    "exact": "--estimator exact",
    "uniform": "--estimator uniform",
    "inner passes": "--inner-passes 2 --minibatches 2 --refresh-every 2",
    "accumulation": "--accumulation 4",
    "augment": "--augment crop flip color",
    "live reference": "--reference live",
    "no reference": "--beta 0",
    "entropy": "--entropy-weight 0.1 --temperature 2",
    "lora": "--train lora",
    "lora and last block": "--train lora --last-blocks 1",
    "lora, augment": "--train lora --augment flip",
    "text": "--train text",
    "full": "--train full --logit-scale clamped",
    "projections": "--train projections",
    "last block": "--last-blocks 1",
    "trainable scale": "--logit-scale trainable",
    "soft": "--method reinforce --reward hard soft --reward-weights 1 0.5",
    "top-k": "--reward top-k:2",
    "warm start": "--warm-start 2",
    "labelled": "--supervised-weight 1 --labelled-fraction 0.25",
    "supervised labelled": "--method supervised --labelled-fraction 0.5",
    "linear": "--schedule linear --warmup 0.5 --weight-decay 0.1 --final-learning-rate 0.1",
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training(
    way: str, start: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    run = clip(start, pictures, tmp_path / "run", "--keep", "last", *WAYS[way].split())
    losses = [line["loss"] for line in training_lines(run)]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert weights(run) != (start / "model.safetensors").read_bytes()
    load_clip(str(run / "model"))


def test_several_templates(start: Path, pictures: Path, tmp_path: Path, no_page: None) -> None:
    templates = ["a photo of a {}.", "{}"]
    run = clip(start, pictures, tmp_path / "run", "--templates", *templates)
    assert read_json(run / "model" / "visgrpo.json")["templates"] == templates


def test_a_reward_of_the_users_own(
    start: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def near(outputs, label, file, **columns):\n"
        "    splits = {name.split('/')[0] for name in file}\n"
        "    assert len(splits) == 1 and len(file) == len(outputs)\n"
        "    return 1 - (outputs - label[:, None]).abs() / 2\n"
    )
    run = clip(start, pictures, tmp_path / "run", "--reward", f"{file}:near")
    line = training_lines(run)[0]
    assert line["rewards/near/mean"] == pytest.approx(line["reward"])


def test_costs_from_a_table(start: Path, pictures: Path, tmp_path: Path, no_page: None) -> None:
    table = tmp_path / "costs.csv"
    table.write_text(",apple,leaf,sky\napple,0,1,2\nleaf,1,0,2\nsky,3,3,0\n")
    run = clip(start, pictures, tmp_path / "run", "--reward", f"cost:{table}")
    assert all(line["reward"] <= 0 for line in training_lines(run))


def test_warm_start_switches_to_grpo(
    start: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    run = clip(start, pictures, tmp_path / "run", "--warm-start", "2")
    assert ["reward_std" in line for line in training_lines(run)] == [False, False, True, True]


def test_an_adapter_is_saved_beside_the_merged_model(
    start: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = clip(start, pictures, tmp_path / "run", "--train", "lora", "--keep", "last")
    capsys.readouterr()
    for name in ("model", "adapter"):
        main(
            ["evaluate", str(run / name), "--data", str(pictures), "--json", "-", "--device", "cpu"]
        )
    text = capsys.readouterr().out
    decoder = json.JSONDecoder()
    merged, end = decoder.raw_decode(text)
    adapter, _ = decoder.raw_decode(text[end:].lstrip())
    assert adapter["model"]["nll"] == pytest.approx(merged["model"]["nll"], abs=1e-5)
    summary = read_json(run / "summary.json")
    assert merged["model"]["nll"] == pytest.approx(summary["after"]["nll"], abs=1e-5)


def test_retention_and_baseline(start: Path, pictures: Path, tmp_path: Path, no_page: None) -> None:
    run = clip(
        start, pictures, tmp_path / "run", "--baseline", "--retention", "digits", "--keep", "last"
    )
    summary = read_json(run / "summary.json")
    assert set(summary["retention"]["digits"]) == {"before", "after"}
    assert summary["baseline"]["name"] == "supervised"
    baseline = read_json(run / "baseline" / "summary.json")
    assert baseline["method"] == "supervised"
    assert baseline["after"] == summary["baseline"]["after"]
    assert baseline["before"] == summary["before"]


def test_digits_with_a_slice(start: Path, tmp_path: Path, no_page: None) -> None:
    run = clip(start, "digits", tmp_path / "run", "--train-slice", ":40", "--steps", "2")
    assert read_json(run / "summary.json")["data"]["train"] == 40


def test_bad_images_are_left_out_counted_and_listed(
    start: Path,
    broken_pictures: Path,
    tmp_path: Path,
    no_page: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = clip(start, broken_pictures, tmp_path / "run", "--skip-bad-images")
    messages = capsys.readouterr().err
    assert "left out 1 unreadable image(s)" in messages
    assert "train/leaf/000.png" in messages
    assert read_json(run / "summary.json")["data"]["train"] == 47


@pytest.fixture
def broken_pictures(pictures: Path, tmp_path: Path) -> Path:
    """A copy whose first training leaf is cut off."""
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(pictures, folder)
    file = folder / "train" / "leaf" / "000.png"
    file.write_bytes(file.read_bytes()[:200])
    return folder


# After training


def test_evaluate_gives_the_numbers_of_the_summary(
    grpo_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "numbers.json"
    main(["evaluate", str(grpo_run / "model"), "--data", str(pictures), "--json", str(out)])
    table = capsys.readouterr().out
    after = read_json(grpo_run / "summary.json")["after"]
    measured = read_json(out)["model"]
    for name in ("accuracy", "ece", "nll", "entropy"):
        assert measured[name] == pytest.approx(after[name], abs=1e-6)
    assert f"{after['accuracy']:.3f}" in table
    assert "Weakest classes" in table


def test_evaluate_between_start_and_model(
    grpo_run: Path, start: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["evaluate", str(grpo_run / "model"), "--data", str(pictures), "--start", str(start)]
    main([*words, "--alpha", "0", "0.5", "1", "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["start", "model", "alpha=0", "alpha=0.5", "alpha=1"]
    assert found["alpha=0"] == found["start"]
    assert found["alpha=1"] == found["model"]
    assert 0 < found["alpha=0.5"]["kl"] < found["model"]["kl"]


@pytest.mark.parametrize(
    ("split", "examples"), [("train", 48), ("validation", 18), ("train[:5]", 5)]
)
def test_evaluate_another_split(
    grpo_run: Path,
    pictures: Path,
    split: str,
    examples: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    words = ["evaluate", str(grpo_run / "model"), "--data", str(pictures), "--split", split]
    main([*words, "--json", "-"])
    assert json.loads(capsys.readouterr().out)["model"]["examples"] == examples


def test_predict_tells_the_top_classes_of_every_image(
    grpo_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(pictures / "test" / name / "000.png") for name in CLASSES]
    capsys.readouterr()
    main(["predict", str(grpo_run / "model"), *images, "--json", "-"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["image"] for answer in answers] == images
    for answer in answers:
        assert sorted(answer["classes"]) == sorted(CLASSES)
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert answer["probabilities"] == sorted(answer["probabilities"], reverse=True)
    main(["predict", str(grpo_run / "model"), *images[:1], "--top-k", "1"])
    table = capsys.readouterr().out
    assert images[0] in table.replace("\n", "")
    assert answers[0]["classes"][0] in table


def test_predict_with_classes_of_ones_own(
    start: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(pictures / "test" / "sky" / "000.png")
    capsys.readouterr()
    main(["predict", str(start), image, "--classes", "sea", "land", "--json", "-"])
    assert sorted(json.loads(capsys.readouterr().out)[0]["classes"]) == ["land", "sea"]


def test_report_writes_the_page_again(grpo_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = grpo_run / "report.html"
    page.unlink()
    capsys.readouterr()
    main(["report", str(grpo_run)])
    assert capsys.readouterr().out.strip() == str(page)
    assert "http" not in page.read_text().split("<body")[1].split("src=")[0]


def test_compare_puts_runs_on_one_page(
    grpo_run: Path, supervised_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "both.html"
    words = f"compare {grpo_run} {supervised_run} --metric reward --metric kl --output {page}"
    main(words.split())
    assert str(page) in capsys.readouterr().out.replace("\n", "")
    text = page.read_text()
    assert "grpo" in text
    assert "supervised" in text


def test_two_equal_runs_have_equal_lines(
    start: Path, pictures: Path, tmp_path: Path, no_page: None
) -> None:
    options = (
        "--augment",
        "crop",
        "flip",
        "--train",
        "lora",
        "--keep",
        "last",
    )
    first, second = (clip(start, pictures, tmp_path / name, *options) for name in ("a", "b"))
    assert same_run(first, second)
    assert len(metric_lines(first)) == 9
