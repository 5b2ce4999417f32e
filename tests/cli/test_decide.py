"""`evaluate` and `predict` with `--decide` and `--fit-biases`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import read_json, refused, represent, segment

from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]


def evaluated(model: Path, data: Path, tmp_path: Path, *options: str) -> dict[str, dict]:
    file = tmp_path / "numbers.json"
    main(["evaluate", str(model), "--data", str(data), "--json", str(file), *options])
    return read_json(file)


def test_rules_have_rows_of_their_own(
    vit: Path, pictures: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    run = represent(vit, pictures, tmp_path / "run", "--method", "supervised")
    classes = read_json(run / "model" / "visgrpo.json")["classes"]
    table = tmp_path / "costs.csv"
    rows = [
        [0 if i == j else 1 + 9 * (i == 0) for j in range(len(classes))]
        for i in range(len(classes))
    ]
    lines = [",".join(["", *classes])]
    lines += [",".join([name, *map(str, row)]) for name, row in zip(classes, rows, strict=True)]
    table.write_text("\n".join(lines))
    cost = f"cost:{table}"
    found = evaluated(run / "model", pictures, tmp_path, "--decide", cost, "--fit-biases")
    assert set(found) == {"model", f"model, {cost}", "model, biases"}
    counts = found["model"]["confusion"]
    K = range(len(classes))
    total = sum(map(sum, counts))
    argmax = sum(counts[i][j] * rows[i][j] for i in K for j in K) / total
    assert found["model"]["cost"] == pytest.approx(argmax)
    assert found[f"model, {cost}"]["cost"] <= argmax + 1
    assert "balanced_accuracy" in found["model, biases"]
    assert "cost" in capsys.readouterr().out
    found = evaluated(run / "model", pictures, tmp_path, "--decide", "threshold:0.5")
    assert 0 <= found["model, threshold:0.5"]["answered"] <= 1

    picture = next(file for file in pictures.rglob("*.png"))
    capsys.readouterr()
    main(["predict", str(run / "model"), str(picture), "--decide", "threshold:1", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["answer"] is None
    main(["predict", str(run / "model"), str(picture), "--decide", cost])
    assert "Answer: " in capsys.readouterr().out
    words = ["evaluate", run / "model", "--data", pictures, "--decide", "best"]
    assert '--decide "best" is no rule' in refused(capsys, words)


def test_biases_of_masks(
    vit: Path, masks: Path, tmp_path: Path, no_page: None, capsys: Capture
) -> None:
    options = ["--method", "supervised", "--steps", "20", "--learning-rate", "0.02"]
    run = segment(vit, masks, tmp_path / "run", *options)
    found = evaluated(run / "model", masks, tmp_path, "--fit-biases")
    assert set(found) == {"model", "model, biases"}
    assert found["model, biases"]["miou"] > found["model"]["miou"] - 0.05
    assert found["model, biases"]["nll"] != found["model"]["nll"]
    words = ["evaluate", run / "model", "--data", masks, "--fit-biases", "--split", "validation"]
    assert "--fit-biases learns from the validation rows" in refused(capsys, words)
