"""A run made with the trainer alone, in a script: it is reported and compared like others."""

from __future__ import annotations

from pathlib import Path

import yaml
from toy import supervised, toy_dataset, toy_inputs, toy_model

from visgrpo.cli import main
from visgrpo.data.batches import BatchLoader, CachedInputs
from visgrpo.reporting import read_run
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import RunDirectory
from visgrpo.training.trainer import Trainer


def script(folder: str, *, summary: bool) -> None:
    """What a user's script does: a folder by its name, a trainer, and perhaps a summary."""
    run = RunDirectory(folder)
    accuracies = iter((0.25, 0.5, 0.75, 0.75))
    trainer = Trainer(
        toy_model(),
        supervised(),
        BatchLoader(toy_dataset(), CachedInputs(toy_inputs()), batch_size=8, seed=0),
        TrainingOptions(steps=2, batch_size=8, learning_rate=0.05, log_every=1, eval_every=1),
        processes=Processes("cpu"),
        run=run,
        evaluate=lambda: {"accuracy": next(accuracies)},
        title="mine",
    )
    trainer.train()
    if summary:
        run.write_summary({"before": {"accuracy": 0.25}, "after": {"accuracy": 0.75}})


def test_a_scripts_run_is_reported_and_compared(tmp_path: Path) -> None:
    done, begun = str(tmp_path / "runs" / "done"), str(tmp_path / "begun")
    script(done, summary=True)
    script(begun, summary=False)
    for folder in (done, begun):
        main(["report", folder])
    page = Path(done, "report.html").read_text(encoding="utf-8")
    assert "Accuracy 25.0 % → 75.0 % (+50.0 points)" in page
    assert "does not record its recipe" in page
    assert "Unfinished." in Path(begun, "report.html").read_text(encoding="utf-8")
    main(["compare", done, begun, "--output", str(tmp_path / "compare.html")])
    together = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "Unfinished:</strong> begun" in together
    run = read_run(done)
    assert (run.method, run.config["learning_rate"], run.steps) == ("mine", 0.05, 2)


def test_a_config_that_is_there_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.create("clip", {"seed": 3})
    run.ensure({"seed": 4})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 3
    RunDirectory(tmp_path / "not-mine", writes=False).ensure({"seed": 4})
    assert not (tmp_path / "not-mine").exists()
