"""Evaluation: numbers about a model, from tensors."""

from visgrpo.measures.classification import (
    Reliability,
    evaluate_logits,
    expected_calibration_error,
    reliability,
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
