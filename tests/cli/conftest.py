"""Picture folders, small backbones, and a CLIP pre-trained for a few steps, made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import (
    PRETRAINED,
    PROBES,
    RESNET,
    SMALL,
    VIT,
    Words,
    language_words,
    save_seer,
    save_small_backbone,
    speak,
    vlm_words,
    words,
)

from making import write_counts, write_masks, write_pictures, write_text
from visgrpo.cli import main


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the features of frozen backbones out of the home directory."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISGRPO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; 16 training, 6 validation and 6 test pictures of each."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A background and two classes; 24 training, 8 validation and 9 test pictures with masks."""
    return write_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv2 of two blocks, 4 × 4 patches and no head."""
    return save_small_backbone(tmp_path_factory.mktemp("backbones") / "vit", VIT)


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet of two stages and no head."""
    return save_small_backbone(tmp_path_factory.mktemp("backbones") / "resnet", RESNET)


@pytest.fixture(scope="session")
def start_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that pre-trained the start; with its page and plots."""
    folder = tmp_path_factory.mktemp("start") / "run"
    main(
        f"pretrain clip --data {pictures} --output {folder} --steps 12 --batch-size 16 "
        "--image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2 --features 16 "
        "--vocabulary 300 --keep last --device cpu".split()
    )
    return folder


@pytest.fixture(scope="session")
def start(start_run: Path) -> Path:
    """The folder of a small CLIP that is not good yet."""
    return start_run / "model"


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100 paragraphs of Python's documentation; a tenth each for validation and test."""
    return write_text(tmp_path_factory.mktemp("text") / "short.txt")


@pytest.fixture(scope="session")
def stages(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs, one stage after the other: sft, pairs and reward."""
    folder = tmp_path_factory.mktemp("stages")
    start = speak("sft", None, short_text, folder / "sft", "--steps", 30)
    speak("preferences", start, short_text, folder / "pairs")
    speak("reward", start, short_text, folder / "reward", "--steps", 6)
    return folder


@pytest.fixture(scope="session")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 60 pictures with up to four red squares, and the steps of counting them."""
    return write_counts(tmp_path_factory.mktemp("counts"))


@pytest.fixture(scope="session")
def other_counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 10 pictures with blue squares."""
    return write_counts(tmp_path_factory.mktemp("others"), rows=10, colour="blue", seed=1)


@pytest.fixture(scope="session")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vision-language model of two layers, to which a picture is four tokens."""
    return save_seer(tmp_path_factory.mktemp("seer") / "model")


@pytest.fixture(scope="session")
def words_of(
    start: Path,
    vit: Path,
    resnet: Path,
    seer: Path,
    stages: Path,
    pictures: Path,
    masks: Path,
    counts: Path,
    short_text: Path,
) -> Words:
    """The words of a job and its options, without a page: drawing its plots takes longer."""

    def of(job: str, output: Path, options: str = "") -> list[str]:
        name, _, kind = job.partition(" ")
        given = options.split()
        if name == "clip":
            steps = [] if "--steps" in given else ["--steps", "4"]
            paths = ["--model", str(start), "--data", str(pictures), "--output", str(output)]
            return ["clip", *paths, *SMALL, *steps, *given, "--no-report"]
        if name == "pretrain":
            sizes = f"--image-size 16 --patch-size 8 {PRETRAINED[kind]}".split()
            paths = ["--data", str(pictures), "--output", str(output), "--no-report"]
            return [name, kind, *paths, *SMALL, "--steps", "4", *sizes, *given]
        if name == "language":
            init = None if kind == "sft" else stages / "sft"
            data = stages / "pairs" / "pairs.jsonl" if kind == "reward" else short_text
            return language_words(kind, init, data, output, *given)
        if name == "vlm":
            return vlm_words(kind, seer, counts, output, *given)
        if name == "representation" and "--probe" not in given:
            given += PROBES
        data = pictures if name == "representation" else masks
        model = resnet if kind == "resnet" else vit
        return words(name, model, data, output, *given, "--no-report")  # type: ignore[arg-type]

    return of


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page: drawing its plots takes longer than the run."""
    for place in ("tasks.run", "reporting.page"):
        monkeypatch.setattr(f"visgrpo.{place}.write_report", lambda path: path)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a model is loaded."""

    def loaded(name: str) -> None:
        pytest.fail(f"{name} was loaded before cheap checks were done")

    for recipe in ("clip.train", "clip.use"):
        monkeypatch.setattr(f"visgrpo.tasks.{recipe}.load_clip", loaded)
    for place in ("pretrain.build_small_clip", "backbone.shared.load_backbone"):
        monkeypatch.setattr(f"visgrpo.tasks.{place}", loaded)


@pytest.fixture(scope="session")
def environment(feature_cache: Path) -> dict[str, str]:
    """For subprocesses: this source tree, one thread, offline."""
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def kill_runs(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[dict[str, Any]]], None]:
    """Start runs and kill them where they say; see killed_runs.py."""

    def kill(runs: list[dict[str, Any]]) -> None:
        file = tmp_path_factory.mktemp("kills") / "runs.json"
        file.write_text(json.dumps(runs))
        script = Path(__file__).with_name("killed_runs.py")
        subprocess.run([sys.executable, str(script), str(file)], env=environment, check=True)

    return kill


@pytest.fixture(scope="session")
def on_two_processes(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[list[str]], str]]:
    """Run a command on two processes, which must end well, and return what they printed."""
    script = Path(__file__).with_name("paired_runs.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(words: list[str]) -> str:
            folder = tmp_path_factory.mktemp("printed")
            server.stdin.write(json.dumps({"words": words, "folder": str(folder)}) + "\n")
            code = server.stdout.readline().strip()
            assert code == "0", (folder / "stderr.txt").read_text()[-3000:]
            return (folder / "stdout.txt").read_text()

        yield run
        server.stdin.close()
