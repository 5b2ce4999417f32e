"""`visgrpo vlm`: both stages, what they leave, and options that must not change the numbers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from running import blank_plots, metric_lines, read_json, read_lines, see, training_lines
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]
HELD_OUT = {
    *("accuracy", "accuracy_low", "accuracy_high", "unparsed", "majority", "format"),
    *("sampled_accuracy", "sampled_format", "reward", "length"),
}
OF_GRPO = {
    *("reward", "reward_std", "frac_reward_zero_std", "rewards/format/mean", "rewards/exact/mean"),
    *("kl", "entropy", "clip_ratio/region_mean", "completions/mean_length", "grad_norm"),
    *("completions/clipped_ratio", "step_time", "sampled_tokens"),
}


@pytest.fixture(scope="module")
def story(counts: Path, other_counts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `--method all` from a new tiny model."""
    output = tmp_path_factory.mktemp("story") / "all"
    return see("all", None, counts, output, "--shifts", other_counts, "--preset", "tiny")


def test_both_stages_leave_their_runs(story: Path) -> None:
    for name in ("sft", "grpo"):
        summary = read_json(story / name / "summary.json")
        assert (summary["recipe"], summary["method"]) == ("vlm", name)
        assert {"config.yaml", "metrics.jsonl", "checkpoints", "model"} <= {
            path.name for path in (story / name).iterdir()
        }
        for measures in (summary["before"], summary["after"]):
            assert measures.keys() >= HELD_OUT
        out = summary["shifts"]["out"]
        assert out["before"].keys() >= HELD_OUT
        assert out["after"]["examples"] == 6
        assert summary["confusion"].keys() == {"in", "out"}
        # Every held-out row is in the table of counts once.
        assert sum(map(sum, summary["confusion"]["in"]["rows"])) == 6
        assert summary["memory"]["policy_bytes"] > 0
        assert summary["data"]["unit"] == "images"
    assert read_json(story / "sft" / "summary.json")["after"]["nll"] > 0
    whole = read_json(story / "summary.json")
    assert (whole["recipe"], whole["method"]) == ("vlm", "all")
    assert list(whole["stages"]) == ["sft", "grpo"]


def test_grpo_starts_where_sft_ended(story: Path) -> None:
    sft, grpo = (read_json(story / name / "summary.json") for name in ("sft", "grpo"))
    for name in ("accuracy", "sampled_accuracy", "reward", "length", "examples"):
        assert grpo["before"][name] == pytest.approx(sft["after"][name]), name
    assert grpo["before"]["kl"] == pytest.approx(0, abs=1e-5)
    assert grpo["sampled_tokens"] > 0
    assert grpo["memory"]["reference_bytes"] > 0  # a frozen copy, since everything trains


def test_metrics_have_their_names(story: Path) -> None:
    sft, grpo = (training_lines(story / name) for name in ("sft", "grpo"))
    assert len(sft) == len(grpo) == 3
    assert sft[0].keys() >= {"loss", "nll", "grad_norm"}
    times = {"step_time"}  # which these lines leave out
    assert grpo[0].keys() >= OF_GRPO - times
    evaluations = [line for line in metric_lines(story / "sft") if "eval/nll" in line]
    assert [line["step"] for line in evaluations] == [0, 3]
    assert evaluations[0].keys() >= {"eval/accuracy", "eval/sampled_accuracy"}


def test_samples_show_image_question_and_answers(story: Path) -> None:
    samples = read_lines(story / "grpo" / "samples.jsonl")
    first = samples[0]
    assert "How many squares" in first["prompt"]
    assert len(first["outputs"]) == len(first["rewards"]) == len(first["advantages"]) == 3
    assert (story / "grpo" / first["image"]).exists()


def test_the_model_loads_with_plain_transformers(story: Path) -> None:
    for name in ("sft", "grpo"):
        folder = story / name / "model"
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        end = AutoTokenizer.from_pretrained(folder).eos_token_id
        assert end == model.generation_config.eos_token_id
        AutoImageProcessor.from_pretrained(folder, backend="pil")
        info = read_json(folder / "visgrpo.json")
        assert (info["task"], info["style"]) == ("vision-language", "reasoning")
        assert info["preset"] == "tiny"
        card = (folder / "README.md").read_text()
        assert "AutoModelForImageTextToText" in card
        assert "| accuracy |" in card


@pytest.mark.slow
def test_a_finished_stage_is_not_run_again(story: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(story, again)
    shutil.rmtree(again / "grpo")
    before = (again / "sft" / "metrics.jsonl").stat().st_mtime_ns
    main(["vlm", "--output", str(again), "--resume"])
    assert (again / "sft" / "metrics.jsonl").stat().st_mtime_ns == before
    ours, theirs = (load_file(run / "grpo/model/model.safetensors") for run in (again, story))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_pages_of_a_story(seer: Path, counts: Path, tmp_path: Path, capsys: Capture) -> None:
    with blank_plots():
        run = see("all", seer, counts, tmp_path / "run", "--report")
    for page in (run / "sft" / "report.html", run / "grpo" / "report.html", run / "compare.html"):
        text = page.read_text()
        assert "<img" in text
        assert 'src="http' not in text
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\x1b" not in text
        assert "Warning" not in text
    assert "[2/2] grpo\n" in captured.err
    assert f"Page: {run / 'compare.html'}" in captured.err


def test_the_table_says_what_trains(
    seer: Path, counts: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--train", "merger-last", "embeddings", "layers:0"]
    see("sft", seer, counts, tmp_path / "run", *options)
    printed = capsys.readouterr()
    lines = [line.split("│")[1:-1] for line in printed.err.splitlines() if line.startswith("│")]
    table = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    # Four neighbours of width 16 make one state of 64, which the last layer brings to 16.
    assert table["merger"][:2] == ["2", f"{64 * 16 + 16:,}"]
    assert table["tower"][:2] == ["0", "0"]
    assert table["embeddings"][-1] == "100.0%"
    assert table["layers:0-1"][0] == "12"
    start = load_file(seer / "model.safetensors")
    end = load_file(tmp_path / "run" / "checkpoints" / "step-000003" / "model.safetensors")
    changed = {name.removeprefix("lm.") for name in end}
    assert any("layers.0." in name for name in changed)
    assert not any("layers.1." in name or "blocks" in name for name in changed)
    assert len(changed) < len(start)
    for row in ("start", "sft"):
        assert f"│ {row} " in printed.out


@pytest.mark.parametrize("stage", ["dr-grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce"])
def test_every_method_takes_a_step(stage: str, seer: Path, counts: Path, tmp_path: Path) -> None:
    reward = ["--reward", "random"]  # a small model earns nothing else yet
    run = see(stage, seer, counts, tmp_path / "run", "--steps", 1, "--eval-every", 1, *reward)
    (line,) = training_lines(run)
    assert math.isfinite(line["loss"])
    assert line["grad_norm"] > 0


def test_the_truth_stands_in_groups_that_are_all_wrong(
    seer: Path, counts: Path, tmp_path: Path
) -> None:
    """An untrained model is never right: every group is told the truth, and learns from it."""
    reward = ["--reward", "exact", "--style", "direct", "--redraws", 1, "--steps", 1]
    run = see("grpo", seer, counts, tmp_path / "run", *reward, "--insert-truth")
    (line,) = training_lines(run)
    assert (line["told"], line["draws"]) == (1, 2)
    assert line["reward"] == pytest.approx(1 / 3)
    assert line["frac_reward_zero_std"] == 0
    assert line["grad_norm"] > 0


def test_engines_agree(seer: Path, counts: Path, tmp_path: Path) -> None:
    options = ["--reward", "random", "--learning-rate", "1e-2"]
    shared = see("grpo", seer, counts, tmp_path / "shared", *options)
    plain = see("grpo", seer, counts, tmp_path / "plain", *options, "--engine", "plain")
    for ours, theirs in zip(training_lines(shared), training_lines(plain), strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("engine", ["sft", "shared", "plain"])
def test_checkpointing_changes_no_number(
    engine: str, seer: Path, counts: Path, tmp_path: Path
) -> None:
    stage = "sft" if engine == "sft" else "grpo"
    options = ["--engine", engine, "--reward", "random"] if stage == "grpo" else []
    usual = see(stage, seer, counts, tmp_path / "usual", *options)
    again = see(stage, seer, counts, tmp_path / "again", *options, "--gradient-checkpointing")
    for ours, theirs in zip(training_lines(again), training_lines(usual), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-7)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_kept_features_change_no_number(seer: Path, counts: Path, tmp_path: Path) -> None:
    options = ["--train", "merger", "language", "--reward", "random"]
    kept = see("grpo", seer, counts, tmp_path / "kept", *options)
    made = see("grpo", seer, counts, tmp_path / "made", *options, "--vision-cache", 0)
    for ours, theirs in zip(training_lines(kept), training_lines(made), strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_adapters_alone_leave_an_adapter_and_need_no_copy(
    seer: Path, counts: Path, tmp_path: Path
) -> None:
    run = see("grpo", seer, counts, tmp_path / "run", "--train", "lora")
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert "reference_bytes" not in read_json(run / "summary.json")["memory"]
    beside = see("grpo", seer, counts, tmp_path / "beside", "--train", "lora", "merger-last")
    assert not (beside / "adapter").exists()
    assert read_json(beside / "summary.json")["memory"]["reference_bytes"] > 0


def test_no_kl_keeps_no_copy(seer: Path, counts: Path, tmp_path: Path) -> None:
    run = see("grpo", seer, counts, tmp_path / "run", "--beta", 0, "--no-track-kl")
    summary = read_json(run / "summary.json")
    assert "reference_bytes" not in summary["memory"]
    assert "kl" not in summary["after"]


def test_a_weak_start_is_said_once_and_grpo_goes_on(
    seer: Path, counts: Path, tmp_path: Path, capsys: Capture
) -> None:
    see("grpo", seer, counts, tmp_path / "run")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "sampled answers" in line]
    assert len(warnings) == 1
    assert "0% are right and 0% in the format; below 30% or 90%" in warnings[0]


def test_grpo_from_scratch(counts: Path, tmp_path: Path) -> None:
    run = see("grpo", None, counts, tmp_path / "run", "--steps", 1, "--eval-every", 1)
    assert read_json(run / "summary.json")["model"] == "tiny Qwen2.5-VL"


def test_a_reward_in_python_gets_the_rows_columns(seer: Path, counts: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def near(prompts, completions, answer, **columns):\n"
        "    assert all(1 <= len(text) for text in answer)\n"
        "    assert all(message[0]['role'] == 'assistant' for message in completions)\n"
        "    return [float(len(c[0]['content']) % 3) for c in completions]\n"
    )
    run = see("grpo", seer, counts, tmp_path / "run", "--reward", f"{file}:near")
    assert "rewards/near/mean" in training_lines(run)[0]


def test_direct_answers_need_no_traces(seer: Path, counts: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(counts.parent, plain)
    lines = (plain / counts.name).read_text().replace('"thinking"', '"notes"')
    (plain / counts.name).write_text(lines)
    run = see("sft", seer, plain / counts.name, tmp_path / "run", "--style", "direct")
    assert read_json(run / "model" / "visgrpo.json")["style"] == "direct"
    assert read_json(run / "summary.json")["after"]["nll"] > 0


def test_a_large_image_is_made_smaller_and_said_once(
    seer: Path, counts: Path, tmp_path: Path, capsys: Capture
) -> None:
    see("sft", seer, counts, tmp_path / "run", "--max-pixels", 28 * 28)
    notes = [line for line in capsys.readouterr().err.splitlines() if "made smaller" in line]
    assert len(notes) == 1
    assert "an image of 56 × 56 pixels is made smaller" in notes[0]


@pytest.mark.slow
def test_workers_change_nothing(seer: Path, counts: Path, tmp_path: Path) -> None:
    none = see("sft", seer, counts, tmp_path / "none")
    two = see("sft", seer, counts, tmp_path / "two", "--workers", 2)
    assert training_lines(none) == training_lines(two)
