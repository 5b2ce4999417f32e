"""`visgrpo vlm --task boxes` and points: both stages, evaluate and predict as they were learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from running import blank_plots, read_json

from visgrpo.cli import main
from visgrpo.data.worlds.boxes import box_splits

Capture = pytest.CaptureFixture[str]
MEASURES = {
    *("mean_iou", "found_50", "found_75", "ap50", "ap75", "ap", "unparsed", "format"),
    *("sampled_mean_iou", "sampled_format", "reward", "rewards/iou"),
}
QUICK = ("--sft-steps", "3", "--steps", "2", "--batch-size", "2", "--sft-batch-size", "2")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of the world, as a table."""
    folder = tmp_path_factory.mktemp("boxes")
    splits = box_splits(train=8, validation=4, test=4)
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        lines = []
        for row in range(len(part)):
            part.images[row][0].save(folder / f"{name}-{row}.png")
            line = {"image": f"{name}-{row}.png", "problem": part.questions[row]}
            lines.append(json.dumps({**line, "solution": json.loads(part.answers[row])}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def story(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("story") / "all"
    with blank_plots():
        command = ["vlm", "--task", "boxes", "--data", str(boxes), "--output", str(output)]
        main([*command, *QUICK, "--group-size", "2", "--box-noise", "0.2"])
    return output


def test_both_stages_measure_boxes_and_say_what_they_learned(story: Path) -> None:
    for name in ("sft", "grpo"):
        summary = read_json(story / name / "summary.json")
        for measures in (summary["before"], summary["after"]):
            assert measures.keys() >= MEASURES
            assert "accuracy" not in measures
        info = read_json(story / name / "model" / "visgrpo.json")
        assert (info["answers"], info["style"], info["coordinates"]) == (
            "boxes",
            "direct",
            "bins:56",
        )
        assert info["prompt"] == (
            "{question} Answer with the box as [left,top,right,bottom], each 0 to 56, in <answer> "
            "</answer>."
        )
    samples = (story / "grpo" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert "rewards" in json.loads(samples[0])


def test_pictures_of_answers_stand_on_the_page(story: Path) -> None:
    lines = (story / "grpo" / "segments.jsonl").read_text(encoding="utf-8").splitlines()
    line = json.loads(lines[0])
    assert len(lines) == 4
    assert line.keys() >= {"index", "image", "truth", "before", "after", "iou"}
    assert (story / "grpo" / line["after"]).exists()
    page = (story / "grpo" / "report.html").read_text(encoding="utf-8")
    assert ">Boxes</h2>" in page
    assert "Where is the" in page


def test_evaluate_and_predict_ask_as_it_was_learned(
    story: Path, boxes: Path, capsys: Capture, tmp_path: Path
) -> None:
    model, file = str(story / "grpo"), tmp_path / "result.json"
    main(["evaluate", model, "--data", str(boxes), "--json", str(file)])
    found, after = read_json(file)["model"], read_json(story / "grpo" / "summary.json")["after"]
    for name in ("mean_iou", "ap", "sampled_mean_iou", "unparsed"):
        assert found[name] == pytest.approx(after[name]), name
    assert "reward" not in found
    image = str(boxes / "test-0.png")
    main(["predict", model, image, "--ask", "Where is the red circle?"])
    assert image in capsys.readouterr().out


def test_points_and_a_prompt_of_ones_own(boxes: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "run"
    command = ["vlm", "--task", "points", "--data", str(boxes), "--output", str(output)]
    prompt = "Point at it: {question} <answer>"
    with blank_plots():
        main([*command, *QUICK, "--group-size", "2", "--prompt", prompt])
    after = read_json(output / "grpo" / "summary.json")["after"]
    assert after.keys() >= {"hit", "unparsed", "rewards/inside"}
    assert "mean_iou" not in after
    assert "% of inside are earned" in capsys.readouterr().err
    sample = json.loads((output / "grpo" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("user: Point at it: Where is the")


def test_a_few_traced_rows_and_answers_alone_in_one_command(
    boxes: Path, tmp_path: Path, capsys: Capture
) -> None:
    traced, splits = tmp_path / "data", box_splits(train=8, validation=4, test=4)
    shutil.copytree(boxes, traced)
    for name in ("train", "validation", "test"):
        file = traced / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        traces = getattr(splits, name).traces
        for place, row in enumerate(rows):
            row["reasoning"] = traces[place] if name != "train" or place < 3 else ""
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["vlm", "--task", "boxes", "--data", str(traced), "--group-size", "2"]
    command += [*QUICK, "--output"]
    with blank_plots():
        main([*command, str(tmp_path / "run"), "--sft-rows", "3"])
    runs = {name: read_json(tmp_path / "run" / name / "summary.json") for name in ("sft", "grpo")}
    assert {name: run["data"]["train"] for name, run in runs.items()} == {"sft": 3, "grpo": 5}
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "other"), "--sft-rows", "8"])
    assert "--sft-rows 8 leaves GRPO nothing" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    mixed = [*command[:5], "--method", "sft", "--steps", "2", "--batch-size", "4", "--output"]
    weighed = ["--answer-weight", "0.5"]
    with blank_plots():
        main([*mixed, str(tmp_path / "mixed"), "--style", "reasoning", *weighed])
        main([*mixed, str(tmp_path / "hidden"), *weighed, "--sft-rows", "2"])
    for name in ("mixed", "hidden"):
        assert read_json(tmp_path / name / "summary.json")["data"]["train"] == 8
    with pytest.raises(SystemExit):
        main([*mixed, str(tmp_path / "none"), *weighed, "--train-slice", ":3"])
    assert "every row of data/train has some; leave it out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*mixed, str(tmp_path / "none"), "--style", "reasoning"])
    assert "let such rows count by their answers with --answer-weight" in capsys.readouterr().err
    start = str(tmp_path / "run" / "sft")
    command = [
        "vlm",
        "--task",
        "boxes",
        "--data",
        str(traced),
        "--group-size",
        "2",
        "--model",
        start,
    ]
    command += ["--method", "rejection", "--steps", "1", "--batch-size", "2", "--train-slice", "3:"]
    with blank_plots():
        main([*command, "--output", str(tmp_path / "best")])
    assert read_json(Path(start) / "model" / "visgrpo.json")["style"] == "reasoning"
    assert read_json(tmp_path / "best" / "summary.json")["method"] == "rejection"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--box-noise", "0.7"], "--box-noise"),
        (["--coordinates", "inches"], "--coordinates inches: write pixels"),
        (["--prompt", "Where?"], '--prompt "Where?": write {question} where the question goes.'),
        (["--reward", "iou:7"], 'Reward "iou:7"'),
        (["--task", "counting", "--box-noise", "0.1"], "--box-noise is for --task boxes"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str], problem: str, boxes: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["vlm", "--task", "boxes", "--method", "grpo", "--data", str(boxes)]
    with pytest.raises(SystemExit) as exit:
        main([*command, *options, "--output", str(tmp_path / "run")])
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert problem in error
