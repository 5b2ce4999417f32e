"""Evaluation: numbers about a model, from tensors."""

from visgrpo.measures.calibration import Reliability, expected_calibration_error, reliability
from visgrpo.measures.classification import (
    evaluate_logits,
    scalar_measures,
    wilson_interval,
)
from visgrpo.measures.interpolation import interpolate

__all__ = [
    "Reliability",
    "evaluate_logits",
    "expected_calibration_error",
    "interpolate",
    "reliability",
    "scalar_measures",
    "wilson_interval",
]
