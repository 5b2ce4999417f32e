"""--patience: a run stops where evaluations bring nothing better."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import metric_lines, supervised, toy_trainer

from visgrpo.training.checkpoints import newest_good


@pytest.mark.parametrize(
    ("scores", "steps"),
    [
        ([0.1, 0.5, 0.5, 0.4], 3),  # as good as before is no better
        ([0.5, 0.1, 0.1], 2),  # never as good as the start
        ([0.1, 0.2, 0.1, 0.3, 0.1, 0.4, 0.1], 6),  # better often enough
    ],
)
def test_a_run_stops_after_so_many_evaluations_without_gain(
    scores: list[float], steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter(scores)
    options = {"eval_every": 1, "save_every": 6, "patience": 2}
    trainer = toy_trainer(
        tmp_path, supervised(), evaluate=lambda: {"accuracy": next(left)}, **options
    )
    result = trainer.train()
    assert (result.steps, result.examples) == (steps, 8 * steps)
    assert metric_lines(tmp_path)[-1]["step"] == steps
    assert ("2 evaluations in a row were no better" in capsys.readouterr().err) == (steps < 6)
    checkpoint = newest_good(tmp_path / "checkpoints")[0]
    assert checkpoint.state["step"] == steps
    # Resumed, it has stopped already: nothing is evaluated or trained again.
    again = toy_trainer(tmp_path, supervised(), evaluate=lambda: {"accuracy": 1.0}, **options)
    assert again.train(checkpoint).steps == steps
