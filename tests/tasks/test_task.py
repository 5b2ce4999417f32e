"""A job of a few lines, known to the house by `register` alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from visgrpo.cli import main
from visgrpo.data.batches import Batch, CachedInputs
from visgrpo.data.token_blocks import BlockDataset
from visgrpo.tasks.configs import LoopConfig
from visgrpo.tasks.run import Job, Seen
from visgrpo.tasks.session import Session, loop_options
from visgrpo.tasks.task import TASKS, Task, register

FOLDERS = ("whole", "stopped")


@dataclass(frozen=True)
class BrighterConfig(LoopConfig):
    """Say which of two images is brighter."""

    rows: int = 512
    """How many pairs to learn from."""


class Logistic:
    """The method: cross-entropy, without groups."""

    def rollout(self, old_model: Any, batch: Batch, step: int, *, chunk: int) -> None: ...

    def loss(self, model: nn.Module, batch: Batch, groups: None, step: int) -> SimpleNamespace:
        logits_N = model(batch.inputs.flatten(1)).squeeze(1)
        loss = binary_cross_entropy_with_logits(logits_N, batch.labels_N.float())
        return SimpleNamespace(loss=loss, metrics={}, groups=None)

    def samples(self, groups: None, rows: int) -> list[dict[str, Any]]:
        return []


class Brighter(Task):
    name, about, options = "brighter", "which of two images is brighter", BrighterConfig

    def set_up(self, options: BrighterConfig, session: Session) -> Job:
        sizes = {"train": options.rows, "validation": 32, "test": 32}
        pairs = {name: pairs_of(rows, seed) for seed, (name, rows) in enumerate(sizes.items())}
        torch.manual_seed(options.seed)
        model = nn.Linear(2 * 16, 1).to(session.processes.device)

        def accuracy(split: str) -> dict[str, float]:
            inputs, labels = pairs[split].inputs_M, pairs[split].labels_M
            with torch.no_grad():
                said = model(inputs.flatten(1)).squeeze(1) > 0
            return {"accuracy": float((said == (labels == 1)).float().mean())}

        def save(summary: Any) -> None:
            (session.run.path / "model").mkdir()
            torch.save(model.state_dict(), session.run.path / "model" / "weights.pt")

        return Job(
            model=model,
            method=Logistic(),
            rows=BlockDataset("pairs", options.rows),
            inputs=pairs["train"],
            training=loop_options(options, options.steps or 30, 16, options.learning_rate or 0.1),
            validate=lambda: accuracy("validation"),
            look=lambda moment: Seen(accuracy("test")),
            save=save,
            data={"name": "pairs", **sizes, "unit": "pairs"},
            start="a new model",
            chosen_method="logistic",
        )


def pairs_of(rows: int, seed: int) -> CachedInputs:
    images: Tensor = torch.rand((rows, 2, 16), generator=torch.Generator().manual_seed(seed))
    first, second = images.mean(dim=-1).unbind(1)
    return CachedInputs(images, (first > second).long())


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
    weights = [
        torch.load(tmp_path / name / "model" / "weights.pt") for name in ("whole", "stopped")
    ]
    assert torch.equal(weights[0]["weight"], weights[1]["weight"])


def test_it_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text("device: cpu\nsteps: 8\nsweep: {rows: [16, 64]}\n")
    plan, output = str(tmp_path / "plan.yaml"), str(tmp_path / "sweep")
    main(["sweep", "brighter", "--config", plan, "--seeds", "2", "--output", output])
    assert "rows" in capsys.readouterr().out
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [set(row["measures"]) for row in rows] == [{"accuracy"}] * 2
