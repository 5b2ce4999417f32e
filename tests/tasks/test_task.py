"""A job of a few lines, known to the house by `register` alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from visgrpo.cli import main
from visgrpo.data.batches import Batch, CachedInputs
from visgrpo.data.roles import block_table
from visgrpo.methods.method import LossResult, WithoutGroups
from visgrpo.options import option
from visgrpo.tasks.run import Job, Seen, Session
from visgrpo.tasks.task import TASKS, Kind, Task, register
from visgrpo.tasks.use import most_probable
from visgrpo.tasks.use_options import EvaluateConfig, PredictConfig
from visgrpo.training.options import Loop

END = "# What the house makes of it"
FOLDERS = ("whole", "stopped")


# The whole job


@dataclass(frozen=True)
class BrighterConfig(Loop):
    """Say which of two images is brighter."""

    rows: int = option(512, "How many pairs to learn from.", within="> 0")


class Logistic(WithoutGroups):
    def loss(self, model: nn.Module, batch: Batch, groups: None, step: int) -> LossResult:
        return LossResult(cross_entropy(two_sided(model, batch.inputs), batch.labels_N), {})


class Saved:
    """Evaluates and predicts; it is given options first, and more that it does not need."""

    title = "pairs, 32 test rows"

    def __init__(self, config: EvaluateConfig | PredictConfig, *_: Any) -> None:
        self.model = nn.Linear(2 * 16, 1)
        self.model.load_state_dict(load_file(Path(config.model, "model.safetensors")))

    def measures(self, row: str, name: str) -> dict[str, Any]:
        return {row: accuracy(self.model, pairs_of(32, 2))}

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        halves = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32) / 255)
        return most_probable(two_sided(self.model, halves[None]), ("right", "left"), 2)


class Brighter(Task):
    name, about, options = "brighter", "which of two images is brighter", BrighterConfig
    kinds: ClassVar = {"brighter": Kind("a comparer", Saved, Saved)}

    def set_up(self, options: BrighterConfig, session: Session) -> Job:
        torch.manual_seed(options.seed)
        sizes = {"train": options.rows, "validation": 32, "test": 32}
        pairs = {name: pairs_of(rows, seed) for seed, (name, rows) in enumerate(sizes.items())}
        model = nn.Linear(2 * 16, 1).to(session.processes.device)

        def save(summary: Any) -> None:
            folder = session.run.path / "model"
            folder.mkdir(exist_ok=True)
            save_file(model.state_dict(), folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
            (folder / "visgrpo.json").write_text('{"task": "brighter"}')

        return Job(
            model=model,
            method=Logistic(),
            rows=block_table("pairs", options.rows),
            inputs=pairs["train"],
            training=options.resolved(options.steps or 30, 0.1, batch_size=16),
            validate=lambda: accuracy(model, pairs["validation"]),
            look=lambda moment: Seen(accuracy(model, pairs["test"])),
            save=save,
            data={"name": "pairs", **sizes, "unit": "pairs"},
            start="a new model",
            chosen_method="logistic",
        )


def two_sided(model: nn.Module, images_N2P: Tensor) -> Tensor:
    return torch.nn.functional.pad(model(images_N2P.flatten(1)), (1, 0))


@torch.no_grad()
def accuracy(model: nn.Module, pairs: CachedInputs) -> dict[str, float]:
    said_N = two_sided(model, pairs.inputs_M).argmax(dim=1)
    return {"accuracy": float((said_N == pairs.labels_M).float().mean())}


def pairs_of(rows: int, seed: int) -> CachedInputs:
    images: Tensor = torch.rand((rows, 2, 16), generator=torch.Generator().manual_seed(seed))
    first, second = images.mean(dim=-1).unbind(1)
    return CachedInputs(images, (first > second).long())


# What the house makes of it


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    register(Brighter())
    yield
    del TASKS["brighter"]


def run(folder: Path, *words: str) -> dict[str, Any]:
    main(["brighter", "--output", str(folder), "--device", "cpu", *words])
    return json.loads((folder / "summary.json").read_text())


def test_it_is_a_command_that_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(tmp_path / "run")
    assert summary["after"]["accuracy"] > max(0.8, summary["before"]["accuracy"])
    assert (summary["recipe"], summary["method"]) == ("brighter", "logistic")
    assert "pairs, 32 held-out pairs" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    main(["--help"])
    assert "which of two images is brighter" in capsys.readouterr().out


def test_its_option_is_one_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Help, parser, range, settings of a run and what may change on resuming know it by itself."""
    with pytest.raises(SystemExit):
        main(["brighter", "--help"])
    said = capsys.readouterr().out
    assert "--rows" in said
    assert "How many pairs to learn from." in said
    folder = tmp_path / "run"
    summary = run(folder, "--rows", "64", "--no-report")
    assert summary["data"]["train"] == 64
    assert "rows: 64\n" in (folder / "config.yaml").read_text()
    (tmp_path / "more.yaml").write_text("rows: 32\nreport: false\n")
    given = run(tmp_path / "other", "--config", str(tmp_path / "more.yaml"))
    assert given["data"]["train"] == 32
    for words, problem in (
        (["--rows", "0"], "--rows must be above 0, not 0."),
        (["--rows", "many"], "--rows takes a whole number"),
        (["--row", "3"], "Did you mean --rows?"),
        (["--output", str(folder), "--resume", "--rows", "9"], "rows was 64, now 9"),
    ):
        with pytest.raises(SystemExit):
            main(["brighter", *words])
        assert problem in capsys.readouterr().err


def test_it_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / FOLDERS[0])
    loss = Logistic.loss

    def stopping(self: Logistic, model: nn.Module, batch: Batch, groups: None, step: int) -> Any:
        if step == 12:
            signal.raise_signal(signal.SIGTERM)
        return loss(self, model, batch, groups, step)

    monkeypatch.setattr(Logistic, "loss", stopping)
    with pytest.raises(SystemExit):
        run(tmp_path / FOLDERS[1])
    monkeypatch.undo()
    resumed = run(tmp_path / FOLDERS[1], "--resume")
    assert (resumed["after"], resumed["validation"]) == (whole["after"], whole["validation"])
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in FOLDERS]
    assert torch.equal(weights[0]["weight"], weights[1]["weight"])


def test_it_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text("device: cpu\nsteps: 8\nsweep: {rows: [16, 64]}\n")
    plan, output = str(tmp_path / "plan.yaml"), str(tmp_path / "sweep")
    main(["sweep", "brighter", "--config", plan, "--seeds", "2", "--output", output])
    assert "rows" in capsys.readouterr().out
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [set(row["measures"]) for row in rows] == [{"accuracy"}] * 2


def test_its_model_is_evaluated_and_predicted_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tmp_path / "run")
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), "--json", "-", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert found == {"model": {"accuracy": summary["after"]["accuracy"]}}
    pixels = np.repeat([[250], [5]], 16, axis=1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "left.png")
    main(["predict", str(tmp_path / "run"), str(tmp_path / "left.png"), "--json", "-"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["classes"] == ["left", "right"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run"), "--templates", "a {}"])
    assert "--templates does not go with" in capsys.readouterr().err


def test_its_runs_are_reported_and_compared(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        run(tmp_path / seed, "--seed", seed, "--no-report")
    main(["report", str(tmp_path / "0")])
    assert "a new model" in (tmp_path / "0" / "report.html").read_text()
    page = tmp_path / "compare.html"
    main(["compare", str(tmp_path / "0"), str(tmp_path / "1"), "--output", str(page)])
    assert page.exists()


def test_it_is_short() -> None:
    lines = Path(__file__).read_text().splitlines()
    assert lines.index(END) - lines.index("# The whole job") <= 80
