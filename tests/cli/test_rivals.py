"""`--loss`, rates of the baseline, `--tune`, `--select`, and costs that are measured as costs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import (
    clip,
    head,
    metric_lines,
    read_json,
    refused,
    represent,
    segment,
    weights,
    words,
)

from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]
SUPERVISED = ["--method", "supervised", "--keep", "last"]
LOSSES = ("ce", "gce", "weighted", "balanced", "smooth", "dice", "jaccard", "lovasz", "ce dice")


@pytest.fixture(autouse=True)
def _no_page(no_page: None) -> None:
    """Pages are tested elsewhere."""


def test_every_loss_trains_clip_in_its_own_way(start: Path, pictures: Path, tmp_path: Path) -> None:
    losses = [loss for loss in LOSSES if loss not in ("weighted", "balanced")]  # classes are even
    made = {
        loss: clip(start, pictures, tmp_path / str(i), *SUPERVISED, "--loss", *loss.split())
        for i, loss in enumerate(losses)
    }
    assert len({weights(place) for place in made.values()}) == len(losses)
    own = ["--baseline", "--loss", "gce", "--group-size", "2", "--keep", "last"]
    run = clip(start, pictures, tmp_path / "run", *own)
    assert weights(run / "baseline") == weights(made["gce"])


@pytest.mark.parametrize("job", ["segmentation", "representation"])
def test_every_loss_trains_in_its_own_way(
    job: str, vit: Path, masks: Path, pictures: Path, tmp_path: Path
) -> None:
    run, data = (segment, masks) if job == "segmentation" else (represent, pictures)
    made = {
        loss: run(vit, data, tmp_path / str(i), *SUPERVISED, "--loss", *loss.split())
        for i, loss in enumerate(LOSSES)
    }
    assert len({head(place) for place in made.values()}) == len(LOSSES)


def test_the_baseline_has_a_rate_and_a_loss_of_its_own(
    vit: Path, pictures: Path, tmp_path: Path
) -> None:
    own = ["--baseline-learning-rate", "0.01", "--loss", "gce"]
    run = represent(vit, pictures, tmp_path / "run", "--baseline", *own, "--keep", "last")
    rival = represent(
        vit, pictures, tmp_path / "rival", *SUPERVISED, "--loss", "gce", "--learning-rate", "0.01"
    )
    assert head(run / "baseline") == head(rival)


def test_tuning_takes_the_best_rate_on_validation_data(
    vit: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--baseline", "--tune", "3", "--learning-rate", "0.01", "--keep", "last"]
    run = represent(vit, pictures, tmp_path / "run", *options)
    for place in (run, run / "baseline"):
        summary = read_json(place / "summary.json")
        tried = summary["tuned"]["tried"]
        assert list(tried) == ["0.00333", "0.01", "0.03"]
        best = summary["tuned"]["learning_rate"]
        assert tried[f"{best:.3g}"] == max(tried.values()) == summary["validation"]
        inner = read_json(place / "tune" / f"{best:.3g}" / "summary.json")
        assert inner["after"] == summary["after"]
    assert "is the best of 0.00333 (" in capsys.readouterr().err


@pytest.mark.parametrize("select", ["reward", "accuracy", "nll"])
def test_what_decides_the_best_step(select: str, vit: Path, pictures: Path, tmp_path: Path) -> None:
    options = ["--reward", "hard", "--estimator", "exact", "--eval-every", "1"]
    run = represent(vit, pictures, tmp_path / "run", *options, "--select", select)
    seen = [line[f"eval/{select}"] for line in metric_lines(run) if f"eval/{select}" in line]
    best = min(seen) if select == "nll" else max(seen)
    assert read_json(run / "summary.json")["validation"] == pytest.approx(best)


def test_masks_are_selected_by_what_is_trained(vit: Path, masks: Path, tmp_path: Path) -> None:
    options = ["--reward", "dice", "--estimator", "exact", "--eval-every", "1"]
    run = segment(vit, masks, tmp_path / "run", *options, "--select", "reward")
    after = read_json(run / "summary.json")["after"]
    iou = [value for value in after["per_class_iou"].values() if value is not None]
    dice = sum(2 * value / (1 + value) for value in iou) / len(iou)
    assert after["reward"] == pytest.approx(dice)
    seen = [line["eval/reward"] for line in metric_lines(run) if "eval/reward" in line]
    assert read_json(run / "summary.json")["validation"] == pytest.approx(max(seen))


def test_costs_are_measured_as_costs(vit: Path, pictures: Path, tmp_path: Path) -> None:
    run = represent(vit, pictures, tmp_path / "plain", "--method", "supervised")
    after = read_json(run / "summary.json")["after"]
    classes = list(after["per_class_accuracy"])
    table = tmp_path / "costs.csv"
    rows = [[10 * (i != j) + 3 * (i < j) for j in range(len(classes))] for i in range(len(classes))]
    table.write_text(
        "\n".join(
            [",".join(["", *classes])]
            + [",".join([name, *map(str, row)]) for name, row in zip(classes, rows, strict=True)]
        )
    )
    options = ["--reward", f"cost:{table}", "--estimator", "exact", "--eval-every", "1"]
    run = represent(vit, pictures, tmp_path / "run", *options, "--baseline")
    summary = read_json(run / "summary.json")
    for measures in (summary["after"], summary["baseline"]["after"]):
        counts = measures["confusion"]
        total = sum(map(sum, counts))
        cost = sum(counts[i][j] * rows[i][j] for i in range(len(rows)) for j in range(len(rows)))
        assert measures["cost"] == pytest.approx(cost / total)
    seen = [line["eval/reward"] for line in metric_lines(run) if "eval/reward" in line]
    assert summary["validation"] == pytest.approx(max(seen))  # what it is trained for decides


REFUSED = {
    "--loss dice": "--loss is for --method supervised, or the --baseline",
    "--method supervised --loss lovasz --accumulation 2": "--loss lovasz is of a whole batch",
    "--baseline-learning-rate 0.1": "--baseline-learning-rate is of --baseline",
    "--select reward": "--select reward: uniformity is paid for how unsure",
    "--method supervised --loss focal": "focal",
    "--tune 0": "--tune must be above 0, not 0",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused(options: str, vit: Path, masks: Path, tmp_path: Path, capsys: Capture) -> None:
    given = words("segmentation", vit, masks, tmp_path / "run", *options.split())
    assert REFUSED[options] in refused(capsys, given, notes=True)


@pytest.mark.parametrize("job", ["representation", "clip"])
def test_abstaining_is_an_output_with_a_reward_of_its_own(
    job: str, vit: Path, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, model = (represent, vit) if job == "representation" else (clip, start)
    paid = ["--reward", "hard", "abstain:2", "--estimator", "exact", "--scale", "none"]
    options = [*paid, "--steps", "12", "--learning-rate", "0.01", "--keep", "last"]
    made = run(model, pictures, tmp_path / "run", *options)
    after = read_json(made / "summary.json")["after"]
    counts = after["confusion"]
    total, silent = sum(map(sum, counts)), sum(row[3] for row in counts)
    assert counts[3] == [0, 0, 0, 0]
    assert after["answered"] == pytest.approx(1 - silent / total)
    before = read_json(made / "summary.json")["before"]
    assert after["reward"] > before["reward"]  # 2 for no answer is more than any answer earns
    assert after["answered"] < before["answered"]
    json = tmp_path / "measures.json"
    main(["evaluate", str(made), "--data", str(pictures), "--device", "cpu", "--json", str(json)])
    measured = read_json(json)["model"]
    assert measured["answered"] == after["answered"]
    assert measured["accuracy"] == after["accuracy"]
    picture = next((pictures / "test").glob("*/*.png"))
    capsys.readouterr()
    main(["predict", str(made), str(picture), "--device", "cpu", "--top-k", "4"])
    assert "no answer" in capsys.readouterr().out


def test_abstaining_is_for_images_with_other_classes(
    vit: Path, masks: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = words("segmentation", vit, masks, tmp_path / "run", "--reward", "abstain:0.5")
    assert "is of whole images" in refused(capsys, given, notes=True)
    given = words("representation", vit, pictures, tmp_path / "run", "--reward", "abstain:lots")
    assert "write what no answer earns" in refused(capsys, given, notes=True)
    named = tmp_path / "named"
    shutil.copytree(pictures, named)
    for split in ("train", "val", "test"):
        folder = next((named / split).iterdir())
        folder.rename(named / split / "no answer")
    given = words("representation", vit, named, tmp_path / "run", "--reward", "abstain:1")
    assert 'has a class "no answer"' in refused(capsys, given, notes=True)
