"""`visgrpo clip --feedback` from the command line: runs, their ends, and photos without labels."""

from __future__ import annotations

import csv
import json
import re
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import clip, metric_lines, read_json, refused, same_run, training_lines, weights

from making import CLASSES, picture
from visgrpo.cli import main
from visgrpo.training.trainer import Trainer

Capture = pytest.CaptureFixture[str]


def files_of(folder: Path) -> list[str]:
    """Every picture as the data names it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/*/*.png"))


def write_table(file: Path, header: str, rows: list[tuple[Any, ...]]) -> str:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header.split())
        writer.writerows(rows)
    return str(file)


def write_clicks(folder: Path, file: Path, *, every: int = 1) -> str:
    """Twelve impressions each of every so many pictures, of labels drawn with their propensities;
    people click on the label after the true one."""
    rng = np.random.default_rng(0)
    rows = []
    for image in files_of(folder)[::every]:
        liked = (CLASSES.index(Path(image).parent.name) + 1) % 3
        p_K = np.array([0.5, 0.3, 0.2])[rng.permutation(3)]
        for k in rng.choice(3, size=12, p=p_K):
            clicked = int(rng.random() < (0.9 if k == liked else 0.1))
            rows.append((image, CLASSES[k], clicked, p_K[k]))
    return write_table(file, "image label clicked propensity", rows)


@pytest.fixture(scope="module")
def clicks(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clicks(pictures, tmp_path_factory.mktemp("clicks") / "clicks.csv")


@pytest.fixture(scope="module")
def votes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(1)
    rows = []
    for image in files_of(pictures):
        truth = CLASSES.index(Path(image).parent.name)
        shares = np.full(3, 0.15) + 0.55 * np.eye(3)[truth]
        rows += zip([image] * 3, CLASSES, rng.multinomial(20, shares).tolist(), strict=True)
    return write_table(tmp_path_factory.mktemp("votes") / "votes.csv", "image label votes", rows)


@pytest.fixture(autouse=True)
def plain(no_page: None) -> None:
    """Pages are tested elsewhere."""


CLICKS = ["--reward", "clicks", "--estimator", "exact", "--keep", "last", "--beta", "0"]


@pytest.fixture(scope="module")
def clicked(
    start: Path, pictures: Path, clicks: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visgrpo.tasks.run.write_report", lambda path: path)
        return clip(
            start,
            pictures,
            tmp_path_factory.mktemp("clicked") / "run",
            "--feedback",
            clicks,
            *CLICKS,
            "--unknown",
            "predict",
        )


def test_a_run_learns_what_people_click(clicked: Path, clicks: str) -> None:
    summary = read_json(clicked / "summary.json")
    assert summary["after"]["reward"] > summary["before"]["reward"]
    said = summary["feedback"]
    rows = 12 * 3 * (16 + 6 + 6)
    assert (said["kind"], said["events"], said["matched"]) == ("impressions", rows, rows)
    assert (said["unmatched_images"], said["images_with_feedback"]) == (0, 48)
    assert 0.8 < said["coverage"] < 1
    assert (said["source"], said["unknown"]) == (Path(clicks).name, "predict")
    assert -1 < said["clicks_predicted_r2"] < 1
    for line in training_lines(clicked):
        assert 0 < line["feedback/coverage"] <= 1
        assert line["reward"] == pytest.approx(line["rewards/clicks/mean"], rel=1e-6)
    evaluated = [line["eval/reward"] for line in metric_lines(clicked) if "eval/reward" in line]
    assert evaluated[-1] > evaluated[0]
    assert "feedback: " in (clicked / "config.yaml").read_text()


def test_a_stopped_run_goes_on_and_repeats_to_the_bit(
    clicked: Path,
    start: Path,
    pictures: Path,
    clicks: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Predictions are made of the start's features again, and not of the checkpoint's."""
    update = Trainer._update

    def interrupted(self: Trainer, *arguments: object) -> object:
        if self._step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    run, options = tmp_path / "run", ["--feedback", clicks, *CLICKS, "--unknown", "predict"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        with pytest.raises(SystemExit) as caught:
            clip(start, pictures, run, *options)
    assert caught.value.code == 130
    assert not (run / "summary.json").exists()
    settings = (run / "config.yaml").read_text()  # of a version without one of the options
    (run / "config.yaml").write_text(settings.replace("drop_duplicates: false\n", ""))
    main(["clip", "--resume", "--output", str(run)])
    assert same_run(run, clicked)
    ours, theirs = (read_json(each / "summary.json")["feedback"] for each in (run, clicked))
    assert ours == theirs
    line = refused(capsys, ["clip", "--resume", "--output", str(run), "--unknown", "mask"])
    assert "unknown was 'predict', now 'mask'" in line
    kept = read_json(run / "feedback.json")
    (run / "feedback.json").write_text(json.dumps(kept | {"fingerprint": "of another table"}))
    line = refused(capsys, ["clip", "--resume", "--output", str(run)], notes=True)
    assert "clicks.csv has changed since" in line
    for damage in (b"", b"null", b"{}", b"[" * 10**5, b"\xff"):
        (run / "feedback.json").write_bytes(damage)
        line = refused(capsys, ["clip", "--resume", "--output", str(run)], notes=True)
        assert re.search(r"feedback\.json (is damaged|cannot be read)", line)


@pytest.mark.parametrize("correction", ["ratio", "doubly-robust"])
def test_learning_from_the_log_itself(
    correction: str, start_run: Path, pictures: Path, clicks: str, tmp_path: Path
) -> None:
    options = ["--feedback", clicks, *CLICKS, "--off-policy", correction]
    run = clip(start_run, pictures, tmp_path / "run", *options)
    summary = read_json(run / "summary.json")
    said = summary["feedback"]
    assert 0.05 < said["effective_share"] < 1
    assert said["effective_samples"] == pytest.approx(said["effective_share"] * 12 * 48)
    assert summary["after"]["reward"] > summary["before"]["reward"]
    # Only where ratios are to the log does the first pass clip any.
    assert (training_lines(run)[0]["clip_ratio/region_mean"] > 0.1) == (correction == "ratio")


def test_sparse_clicks_beside_labels(start: Path, pictures: Path, tmp_path: Path) -> None:
    sparse = write_clicks(pictures, tmp_path / "sparse.csv", every=4)
    words = ["--feedback", sparse, *CLICKS, "--supervised-weight", "0.5", "--steps", "3"]
    still = ["--batch-size", "48", "--learning-rate", "1e-12", "--supervised-schedule", "linear"]
    run = clip(start, pictures, tmp_path / "mixed", *words, *still)
    summary = read_json(run / "summary.json")
    assert summary["data"]["train"] == 48
    assert summary["feedback"]["images_with_feedback"] == 12
    lines = training_lines(run)
    falling = [line["supervised_loss"] / lines[0]["supervised_loss"] for line in lines]
    assert falling == pytest.approx([1, 2 / 3, 1 / 3], rel=1e-4)
    left = clip(start, pictures, tmp_path / "left", "--feedback", sparse, *CLICKS, "--steps", "1")
    assert read_json(left / "summary.json")["data"]["train"] == 12


def test_votes_and_agreement_with_people(
    start: Path, pictures: Path, votes: str, tmp_path: Path, capsys: Capture
) -> None:
    options = "--reward log-votes --estimator exact --scale none --entropy-weight 1 --beta 0"
    words = ["--feedback", votes, *options.split(), "--baseline", "--steps", "6"]
    run = clip(start, pictures, tmp_path / "run", *words)
    assert "KL from" in capsys.readouterr().out
    summary = read_json(run / "summary.json")
    assert summary["after"]["people_kl"] < summary["before"]["people_kl"]
    assert "people_kl" in summary["baseline"]["after"]
    assert summary["feedback"]["coverage"] == 1.0
    measures = tmp_path / "measures.json"
    words = ["evaluate", str(run / "model"), "--data", str(pictures), "--votes", votes]
    main([*words, "--device", "cpu", "--json", str(measures)])
    assert "not in the data as loaded; left out" in capsys.readouterr().err  # the other splits'
    measured = read_json(measures)["model"]
    for name in ("people_kl", "people_cross_entropy", "people_accuracy", "disagreed"):
        assert measured[name] == pytest.approx(summary["after"][name], rel=1e-4), name


def test_the_supervised_rival_learns_what_people_liked_best(
    start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The same pictures under the labels that people like teach the same; some were never liked."""
    rows, moved = [], tmp_path / "moved"
    for number, file in enumerate(files_of(pictures)):
        split, name, picture_name = file.split("/")
        of_training = split == "train"
        true = CLASSES.index(name)
        liked = (true + 1) % 3
        disliked = of_training and number % 6 == 0
        shown = [true] if disliked else range(3)
        rows += [(file, CLASSES[k], 5, 5 * (k == liked)) for k in shown]
        if not disliked:
            place = moved / split / (CLASSES[liked] if of_training else name)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}-{picture_name}").write_bytes((pictures / file).read_bytes())
    table = write_table(tmp_path / "clicks.csv", "image label shown clicked", rows)
    words = ["--feedback", table, *CLICKS, "--steps", "30", "--batch-size", "40"]
    run = clip(start, pictures, tmp_path / "run", *words, "--baseline")
    assert "people liked best, of 40 of 48" in capsys.readouterr().err.replace("\n", " ")
    options = ["--method", "supervised", *words[-4:]]
    plain = clip(start, moved, tmp_path / "plain", *options, "--keep", "last", "--beta", "0")
    rival = read_json(run / "summary.json")["baseline"]["after"]
    assert rival["nll"] == pytest.approx(
        read_json(plain / "summary.json")["after"]["nll"], rel=1e-3
    )
    assert rival["accuracy"] == 0.0


# Photos without labels


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos in one folder, four of which nobody judged."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        picture(number % 3, number).save(folder / f"{number:02}.png")
    return folder


def judged(file: Path, labels: tuple[str, ...] = CLASSES) -> str:
    rows = [
        (f"{number:02}.png", label, 4, 4 if k == number % 3 else 0)
        for number in range(36)
        for k, label in enumerate(labels)
    ]
    rows.append(("elsewhere.png", labels[0], 1, 1))
    return write_table(file, "image label shown clicked", rows)


def test_photos_have_the_labels_that_people_liked_best(
    start: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = clip(start, photos, tmp_path / "run", "--feedback", judged(tmp_path / "log.csv"), *CLICKS)
    said = capsys.readouterr().err
    assert "has no labels: 36 of 40 photos have feedback" in said
    assert said.count("not in the data as loaded") == 1
    summary = read_json(run / "summary.json")
    counts = [summary["data"][name] for name in ("train", "validation", "test", "classes")]
    assert sum(counts[:3]) == 36
    assert counts[3] == 3
    assert read_json(run / "model" / "visgrpo.json")["classes"] == sorted(CLASSES)
    # Where clicks are certain, the reward and the accuracy of the best answer say the same.
    assert 0 <= summary["after"]["accuracy"] <= 1
    assert summary["feedback"]["images_with_feedback"] == counts[0]


def test_photos_need_feedback_about_two_labels(
    photos: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    one = judged(tmp_path / "one.csv", ("apple",))
    words = ["clip", "--data", photos, "--output", tmp_path / "run", "--device", "cpu"]
    line = refused(capsys, [*words, "--feedback", one, "--reward", "clicks"])
    assert 'has only the label "apple"' in line
    assert "no class folders" in refused(capsys, words)
    assert not (tmp_path / "run").exists()


# Mistakes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("feedback", 'Say what to do: "visgrpo feedback summarize"'),
        ("feedback sumarize log.csv", 'Say what to do: "visgrpo feedback summarize"'),
        ("fedback", 'Unknown command "fedback". Did you mean "feedback'),
        ("clip --reward clicks", "name it with --feedback"),
        ("clip --feedback log.csv", "--feedback needs a --reward that is made of it"),
        ("clip --feedback nowhere.csv --reward clicks", "nowhere.csv"),
        ("clip --unknown prior", "--unknown is about feedback"),
        ("clip --feedback l.csv --reward clicks --off-policy ratio", "add --estimator exact"),
        ("clip --reward click", 'Unknown reward "click"'),
    ],
)
def test_words(
    words: str,
    expected: str,
    tmp_path: Path,
    pictures: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--data", str(pictures), "--device", "cpu"] if words.startswith("clip") else []
    assert expected in refused(capsys, [*words.split(), *more])
    assert not list(tmp_path.iterdir())


def test_people_who_voted_once_cannot_be_told_apart(
    pictures: Path, tmp_path: Path, no_model: None, capsys: Capture
) -> None:
    rows = [(name, Path(name).parent.name, 1, name) for name in files_of(pictures)]
    votes = write_table(tmp_path / "votes.csv", "image label votes user", rows)
    words = ["clip", "--data", pictures, "--feedback", votes, "--reward", "votes"]
    line = refused(capsys, [*words, "--raters", "dawid-skene", "--device", "cpu"])
    assert f"None of {len(rows)} people answers better than by chance" in line


@pytest.mark.parametrize(
    ("numbers", "said", "doubted"),
    [
        ((0, 1, 2), "0 = apple, 1 = leaf, 2 = sky", False),
        ((0, 2), "0 = apple, 2 = sky", False),
        ((1, 2), "1 = leaf, 2 = sky. None of them is 0: if they count from 1", True),
        ((1, 2, 3), 'label "3" is no number of a class: these are 0 to 2. If they count', True),
    ],
)
def test_labels_that_are_numbers_of_classes(
    numbers: tuple[int, ...], said: str, doubted: bool, pictures: Path, tmp_path: Path,
    capsys: Capture,
) -> None:  # fmt: skip
    rows = [(name, number, 1) for name in files_of(pictures) for number in numbers]
    log = write_table(tmp_path / "log.csv", "image label clicked", rows)
    with pytest.raises(SystemExit) if 3 in numbers else nullcontext():
        main(["feedback", "summarize", log, "--data", str(pictures)])
    printed = capsys.readouterr()
    told = " ".join((printed.out + printed.err).split())
    assert said in told
    assert ("count from 1" in told) == doubted


def test_votes_are_for_clip_models(vit: Path, pictures: Path, votes: str, capsys: Capture) -> None:
    words = ["evaluate", vit, "--data", pictures, "--votes", votes, "--device", "cpu"]
    assert "--votes" in refused(capsys, words)


def test_same_table_elsewhere_gives_the_same_run(
    clicked: Path, start: Path, pictures: Path, clicks: str, tmp_path: Path
) -> None:
    """Rows in another order, in another format: the same weights to the bit."""
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.csv.read_csv(clicks)
    order = np.random.default_rng(0).permutation(table.num_rows)
    pyarrow.parquet.write_table(table.take(order), tmp_path / "clicks.parquet")
    options = ["--feedback", str(tmp_path / "clicks.parquet"), *CLICKS, "--unknown", "predict"]
    run = clip(start, pictures, tmp_path / "run", *options)
    assert weights(run) == weights(clicked)
