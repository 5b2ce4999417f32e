"""The rounds of `visgrpo feedback collect --learn`: `visgrpo clip` on a few judgements."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visgrpo.arguments import parse
from visgrpo.collecting import learning
from visgrpo.collecting.collector import Answers, Collector, Design, LearningState
from visgrpo.collecting.design import Answer, Ask
from visgrpo.collecting.learning import (
    VISGRPO,
    BackgroundLearner,
    ClipProcess,
    LearningFailed,
    LearningStopped,
    Training,
    clip_config,
    clip_words,
    photos_for_training,
)
from visgrpo.collecting.options import CollectConfig
from visgrpo.collecting.serve import add_learner
from visgrpo.collecting.store import Store
from visgrpo.collecting.tables import Drawn
from visgrpo.data.read import read_split
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.models.load import load_clip
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.task import train

CLASSES = ("cat", "dog", "apple")
TEMPLATES = ("a photo of a {}.",)


def config_of(model: Path | str, data: Path | str, **options: Any) -> CollectConfig:
    config = CollectConfig(model=str(model), data=str(data), device="cpu", **options)
    config.check()
    return config


def settings_file(folder: Path, text: str) -> str:
    (folder / "settings.yaml").write_text(text)
    return str(folder / "settings.yaml")


# ---- the command line ---------------------------------------------------------------------------


def test_it_is_one_of_visgrpo_clip(tmp_path: Path) -> None:
    config = config_of(
        "start", "photos", store=str(tmp_path / "f.db"), ask="rank", seed=3, learn=5,
        id_column="path", split="train[-20:]",
    )  # fmt: skip
    words = clip_words(config, ("a photo of a {}.", "{}"), images=40)
    learned = parse(ClipConfig, "clip", [*words, "--output", "out"])
    learned.check()
    assert (learned.model, learned.data, learned.output) == ("start", "photos", "out")
    assert learned.feedback == f"sqlite:///{tmp_path}/f.db?table=preferences"
    assert (learned.reward, learned.lora, learned.report) == (("preferences",), True, False)
    assert learned.templates == ("a photo of a {}.", "{}")
    assert (learned.seed, learned.id_column, learned.train_slice) == (3, "path", "-20:")
    assert (learned.estimator, learned.batch_size, learned.keep) == ("exact", 16, "last")


def test_positions_are_random_so_nothing_is_estimated_of_them() -> None:
    learned = clip_config(config_of("start", "photos", ask="click", learn=5))
    assert (learned.reward, learned.position_bias) == (("clicks",), "none")


def test_batches_follow_what_there_is() -> None:
    config = config_of("start", "photos", learn=5)
    for images, expected in ((0, 1), (1, 1), (7, 7), (16, 16), (500, 16)):
        learned = parse(ClipConfig, "clip", clip_words(config, TEMPLATES, images))
        assert learned.batch_size == expected


def test_the_file_s_options_come_first(tmp_path: Path) -> None:
    text = "batch-size: 4\nlora: false\nkeep: best\nepochs: 3\nreward: [clicks, hard]\n"
    config = config_of(
        "start", "photos", learn=5, learn_config=settings_file(tmp_path, text), seed=3
    )
    learned = parse(ClipConfig, "clip", clip_words(config, TEMPLATES, 16))
    assert (learned.batch_size, learned.lora, learned.keep) == (4, False, "best")
    assert (learned.epochs, learned.reward) == (3.0, ("clicks", "hard"))
    assert (learned.estimator, learned.seed) == ("exact", 3)  # not in the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", 'settings.yaml: unknown option "epoch". Did you mean "epochs"'),
        ("model: other", 'settings.yaml: leave out "model", which follows from what is collected'),
        ("train-slice: ':5'", 'leave out "train_slice"'),
        ("{", "settings.yaml is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of("start", "photos", learn=5, learn_config=settings_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: many", '--learn-config .*settings.yaml: --epochs takes a number, not "many"'),
        ("raters: dawid-skene", "--learn-config: --raters weighs votes"),
    ],
)
def test_what_training_would_refuse_is_refused_at_once(
    tmp_path: Path, text: str, message: str
) -> None:
    file = settings_file(tmp_path, text)
    with pytest.raises(UserError, match=message):
        clip_config(config_of("start", "photos", learn=5, learn_config=file))


@pytest.mark.parametrize(("judged", "left"), [(10, 7), (2, 0), (20, 14), (100, 72)])
def test_photos_that_are_left_to_train_on(judged: int, left: int) -> None:
    # A fifth for the test, then a tenth for validation, one at least: 10 - 2 - 1, 100 - 20 - 8.
    assert photos_for_training(judged, 0.1) == left


# ---- a round and its process ---------------------------------------------------------------------


def python(code: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-c", code]


def test_a_process_trains_into_the_run_it_is_given(tmp_path: Path) -> None:
    words = python("import sys, pathlib; print('hello'); pathlib.Path(sys.argv[2]).mkdir()")
    ClipProcess(words)(tmp_path / "0001")
    assert (tmp_path / "0001").is_dir()
    assert (tmp_path / "0001.log").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; print('x'); sys.exit('visgrpo: no such data\\n')",
            r"visgrpo: no such data \(",
        ),
        ("raise SystemExit(3)", r"It said nothing. \(exit code 3; all of it is in "),
    ],
)
def test_a_process_that_fails_says_its_last_line(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(LearningFailed, match=message):
        ClipProcess(python(code))(tmp_path / "0001")


def waiting(seconds: int) -> str:
    """Code that says it has begun, and takes that long to end, whoever asks."""
    return (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path(sys.argv[2] + '.begun').touch(); time.sleep({seconds})"
    )


def wait_for(path: Path, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists()


def test_a_round_that_is_ended_with_the_command_has_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_PATIENCE", 0.1)
    train = ClipProcess(python(waiting(60)))
    learner = background(tmp_path, train, every=1)
    learner.judged(1)
    wait_for(tmp_path / "f.db-learned" / "0001.begun")
    train.stop()
    learner.wait(10)
    assert "Training was ended" in learner.state.detail
    assert capsys.readouterr().err == ""
    with pytest.raises(LearningStopped, match="did not begin"):
        train(tmp_path / "0002")


_COLLECTOR = """
import sys, threading, time
from pathlib import Path
from visgrpo.collecting.learning import ClipProcess
output = Path(sys.argv[1])
train = ClipProcess(lambda: sys.argv[2:])
threading.Thread(target=train, args=(output,), daemon=True).start()
while train._process is None:
    time.sleep(0.01)
print(train._process.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_server_takes_its_training_with_it(tmp_path: Path) -> None:
    # What its training is begun with, but that it sleeps instead.
    python, option, code = VISGRPO
    begun, _, _ = code.rpartition("from visgrpo.cli")
    slept = f"{begun} import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); "
    command = [sys.executable, "-c", _COLLECTOR, str(tmp_path / "0001")]
    command += [python, option, slept + "time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        trained = int(server.stdout.readline())
        wait_for(tmp_path / "begun", seconds=120)
        server.kill()
    until = time.monotonic() + 60
    while is_running(trained) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(trained)


def is_running(process: int) -> bool:
    """Whether there is such a process, other than one that has ended and is not yet cleared."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def background(tmp_path: Path, train: Callable[[Path], None], every: int = 2) -> BackgroundLearner:
    return BackgroundLearner(every, tmp_path / "f.db-learned", train, lambda folder: None)


def test_rounds_begin_after_enough_judgements(tmp_path: Path) -> None:
    runs: list[Path] = []
    learner = background(tmp_path, runs.append)
    for judgements in (1, 2, 3, 4, 5):
        learner.judged(judgements)
        learner.wait()
    assert [run.name for run in runs] == ["0001", "0001"]  # neither made its folder
    assert learner.state == LearningState("idle", 2)


def test_judgements_during_a_round_count_for_the_next(tmp_path: Path) -> None:
    go, runs = Event(), []

    def slow(output: Path) -> None:
        runs.append(output)
        output.mkdir()
        go.wait(10)

    learner = background(tmp_path, slow)
    learner.judged(2)
    assert learner.state.state == "learning"
    learner.judged(5)
    go.set()
    learner.wait()
    learner.judged(6)
    learner.wait()
    assert [run.name for run in runs] == ["0001", "0002"]


def test_a_failed_round_is_said_and_collecting_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(output: Path) -> None:
        raise LearningFailed("CUDA out of \x1b[2Jmemory")

    learner = background(tmp_path, fail, every=1)
    learner.judged(1)
    learner.wait()
    assert learner.state == LearningState("failed", 0, r"CUDA out of \x1b[2Jmemory")
    assert "Learning failed: CUDA out of \\x1b[2Jmemory" in capsys.readouterr().err


def test_what_was_learned_is_swapped_in(tmp_path: Path) -> None:
    store, names = tmp_path / "f.db", ["a.png", "b.png"]
    images = [Image.new("RGB", (8, 8))] * 2
    with Store(store, names) as opened:
        start = Answers("start", np.full((2, 3), 1 / 3))
        collector = Collector(opened, names, images, CLASSES, start, Design(group_size=2))
        learner = add_learner(
            1,
            store,
            collector,
            lambda folder: Answers(folder, np.array([[0.1, 0.8, 0.1]] * 2)),
            lambda output: output.mkdir(),
        )
        offer = collector.next_offer("Ann")
        assert offer is not None
        collector.judge(offer.key, "Ann", [])
        learner.wait()
        offer = collector.next_offer("Ann")
    assert offer is not None
    assert offer.drawn.model == str(tmp_path / "f.db-learned" / "0001" / "model")
    assert offer.drawn.best == "dog"


# ---- whole rounds -------------------------------------------------------------------------------


def judge(store: Store, count: int, answers: dict[str, str], ask: Ask = "click") -> None:
    """Judge so many images, each by its own answer."""

    def draw(image: str, number: int) -> Drawn:
        return Drawn(CLASSES, (0.5, 0.25, 0.25), "cat", "start")

    for _ in range(count):
        offer = store.next_offer("Ann", ask, draw)
        assert offer is not None
        answer: Answer = [answers[offer.image]]
        store.judge(offer.key, "Ann", answer)


def changed(start: Path, run: Path) -> bool:
    before, after = load_clip(str(start)).model, load_clip(str(run / "model")).model
    return any(
        not np.array_equal(old.detach().numpy(), new.detach().numpy())
        for old, new in zip(before.parameters(), after.parameters(), strict=True)
    )


def test_ten_judged_photos_in_a_process_of_its_own(
    tmp_path: Path, tiny_clip_folder: Path, tiny_dataset: Table
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    answers = {}
    for row, image in enumerate(tiny_dataset.images):
        image.save(folder / f"{row:02}.png")
        answers[f"{row:02}.png"] = CLASSES[tiny_dataset.labels[row]]
    (folder / "broken.png").write_bytes(b"\x89PNG")
    config = config_of(
        tiny_clip_folder, folder, store=str(tmp_path / "f.db"), learn=10, classes=CLASSES
    )
    with Store(tmp_path / "f.db", list(answers)) as store:
        judge(store, 10, answers)
        judged = partial(store.judged_images, "click")
        training = Training(config, clip_config(config), TEMPLATES, judged)
        assert training.words()[:4] == [*VISGRPO, "clip"]
        ClipProcess(training.words)(tmp_path / "0001")
    assert changed(tiny_clip_folder, tmp_path / "0001")


@pytest.mark.parametrize(
    ("split", "judged", "ask"), [("train", 20, "click"), ("train[:60]", 12, "rank")]
)
def test_a_few_judged_rows_of_three_hundred(
    split: str,
    judged: int,
    ask: Ask,
    tmp_path: Path,
    tiny_clip_folder: Path,
    tiny_dataset: Table,
) -> None:
    data = write_rows(tmp_path / "data.parquet", tiny_dataset, 300)
    rows = read_split(data, split)
    names = [str(name) for name in rows.columns["image_id"]]
    answers = {name: CLASSES[label] for name, label in zip(names, rows.labels, strict=True)}
    settings = settings_file(tmp_path, "epochs: 1")
    config = config_of(
        tiny_clip_folder, data, store=str(tmp_path / "f.db"), ask=ask, split=split,
        learn=judged, learn_config=settings,
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(len(names))
    with Store(tmp_path / "f.db", [names[row] for row in order]) as store:
        judge(store, judged, answers, ask)
        images = partial(store.judged_images, ask)
        words = Training(config, clip_config(config), TEMPLATES, images).words()
    learned = parse(ClipConfig, "clip", [*words[4:], "--output", str(tmp_path / "run")])
    summary = train(learned)
    # Those that nobody judged are left out, and some that were are for validation.
    assert 5 <= summary["data"]["train"] < judged
    assert learned.batch_size == min(16, summary["data"]["train"])


def write_rows(path: Path, dataset: Table, rows: int) -> str:
    """Write the pictures of a data set, again and again, under numbers of their own."""
    files = []
    for image in dataset.images:
        buffer = io.BytesIO()
        image.save(buffer, "png")
        files.append({"bytes": buffer.getvalue(), "path": None})
    which = [row % len(files) for row in range(rows)]
    table = {
        "image": [files[row] for row in which],
        "label": [CLASSES[dataset.labels[row]] for row in which],
        "image_id": [1000 + row for row in range(rows)],
    }
    pq.write_table(pa.table(table), path)
    return str(path)
