"""Lines of progress where stderr is no terminal."""

from __future__ import annotations

import pytest

from visgrpo.training.progress import ProgressDisplay


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0004, "0.000"), (-0.0, "0.000"), (-0.0006, "-0.001"), (1.5, "1.500")]
)
def test_zero_has_no_sign(value: float, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("train", 4) as display:
        display.log(4, {"loss": value, "not shown": 1.0})
    assert capsys.readouterr().err == f"train 4/4  loss {text}\n"
