"""Evaluation: numbers about a model, from tensors."""

from visgrpo.evaluation.calibration import Reliability, expected_calibration_error, reliability
from visgrpo.evaluation.classification import (
    evaluate_logits,
    scalar_measures,
    wilson_interval,
)
from visgrpo.evaluation.interpolation import interpolate

__all__ = [
    "Reliability",
    "evaluate_logits",
    "expected_calibration_error",
    "interpolate",
    "reliability",
    "scalar_measures",
    "wilson_interval",
]
