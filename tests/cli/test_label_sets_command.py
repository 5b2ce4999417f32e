"""`visgrpo representation --label-sets` from the command line, and use of what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from running import read_json, refused, represent, words

from making import CLASSES, picture
from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]
DRAWN = ["--label-sets", "--estimator", "sampled", "--group-size", "16", "--reward", "f1"]


def write_sets(folder: Path, **labels: Any) -> Path:
    """Pictures of one class, which are all called "shape" besides; some have no label at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 48), ("validation", 12), ("test", 12)):
        sets = [[CLASSES[i % 3], "shape"] if i % 4 else [] for i in range(count)]
        images = [picture(i % 3, i) for i in range(count)]
        rows = {"image": images, "labels": labels.get(split, sets)}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def test_sets_are_learned_measured_and_predicted(
    vit: Path, sets: Path, tmp_path: Path, capsys: Capture, no_page: None
) -> None:
    long = ["--steps", "40", "--learning-rate", "0.02", "--eval-every", "20", "--train", "full"]
    run = represent(vit, sets, tmp_path / "run", *DRAWN, *long, "--baseline", "--loss", "smooth")
    summary = read_json(run / "summary.json")
    before, after = summary["before"], summary["after"]
    assert after["reward"] == pytest.approx(after["f1"], abs=1e-6)
    assert after["f1"] > before["f1"] + 0.1
    assert {"jaccard", "macro_f1", "whole_sets", "nll"} <= after.keys()
    assert summary["baseline"]["after"]["f1"] > before["f1"]
    assert summary["data"] | {"name": ""} == {
        "name": "",
        "train": 48,
        "validation": 12,
        "test": 12,
        "classes": 4,
    }
    found = tmp_path / "measures.json"
    options = ["--data", str(sets), "--device", "cpu", "--start", str(run / "baseline")]
    main(["evaluate", str(run), *options, "--json", str(found)])
    measured = read_json(found)
    assert measured["model"]["f1"] == pytest.approx(after["f1"])
    assert measured["start"]["nll"] == pytest.approx(summary["baseline"]["after"]["nll"], rel=1e-5)
    picture(0, 1).save(tmp_path / "one.png")
    answers = tmp_path / "answers.json"
    asked = [str(tmp_path / "one.png"), "--device", "cpu", "--json", str(answers)]
    main(["predict", str(run), *asked])
    [answer] = read_json(answers)
    assert sorted(answer["classes"]) == sorted([*CLASSES, "shape"])
    likely = zip(answer["classes"], answer["probabilities"], strict=True)
    assert sorted(answer["answer"]) == sorted(name for name, p in likely if p > 0.5)


def test_everything_trains_from_pixels_and_custom_rewards_count(
    vit: Path, sets: Path, tmp_path: Path, no_page: None
) -> None:
    (tmp_path / "mine.py").write_text(
        "def small(sets, *, label, classes, **_):\n"
        "    assert sets.shape[2:] == (1, len(classes)) == label.shape[1:]\n"
        "    return -sets.flatten(2).sum(2).float()\n"
        "small.scope = 'mask'\n"
    )
    options = ["--label-sets", "--estimator", "sampled", "--reward", f"{tmp_path}/mine.py:small"]
    run = represent(vit, sets, tmp_path / "run", *options, "--train", "full", "--augment", "flip")
    assert read_json(run / "summary.json")["after"]["reward"] <= 0


REFUSED = {
    "--label-sets": "--label-sets draws whole sets: add --estimator sampled",
    "--label-sets --estimator sampled": "takes rewards of whole sets: add --reward f1",
    "--label-sets --estimator sampled --reward hard": '"hard" is of single labels, and whole masks',
    "--reward f1 --estimator exact": 'column "labels" holds List',
    "--label-sets --method supervised --shifts blur": "--shifts is of images with one label each",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused(options: str, vit: Path, sets: Path, tmp_path: Path, capsys: Capture) -> None:
    given = words("representation", vit, sets, tmp_path / "run", *options.split())
    assert REFUSED[options] in refused(capsys, given, notes=True)


def test_bad_sets(vit: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    sound = [["shape", "red"], ["blue"]] * 24
    bad = {
        'row 1 has label "shap", which no row of train has. Did you mean "shape"?': {
            "train": sound,
            "test": [["shape"], ["shap"]] * 6,
        },
        "has a label without a name": {"train": [[None, "shape"], ["blue"]] * 24},
        "is no list of labels; write one": {"train": ["shape", "blue"] * 24},
    }
    for i, (problem, labels) in enumerate(bad.items()):
        held_out = {name: labels.get(name, [["shape"]] * 12) for name in ("validation", "test")}
        if isinstance(labels["train"][0], str):
            held_out = {name: ["shape"] * 12 for name in held_out}
        data = write_sets(tmp_path / str(i), train=labels["train"], **held_out)
        given = words("representation", vit, data, tmp_path / "run", *DRAWN)
        assert problem in refused(capsys, given, notes=True)
