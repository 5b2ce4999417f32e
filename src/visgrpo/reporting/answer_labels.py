"""Metrics of runs that answer questions about images: what they are called, and their order."""

from __future__ import annotations

from visgrpo.reporting.language_labels import LANGUAGE, LANGUAGE_ORDER
from visgrpo.reporting.metric import Metric

ANSWERS = LANGUAGE | {
    "accuracy": Metric(
        "Accuracy",
        "share of questions",
        "higher",
        True,
        about="share of questions that the likeliest completion answers right",
    ),
    "sampled_accuracy": Metric(
        "Sampled accuracy",
        "share of completions",
        "higher",
        True,
        about="share of sampled completions that are right",
        short="sampled",
    ),
    "unparsed": Metric(
        "Without an answer",
        "share of completions",
        "lower",
        True,
        about="share of completions from which no answer can be read",
        short="no answer",
    ),
    "sampled_unparsed": Metric("Without an answer, sampled", "share of completions", "lower", True),
    "mean_absolute_error": Metric(
        "Mean absolute error",
        "mean |error|",
        "lower",
        about="how far off the answers are that can be read",
        short="error",
    ),
    "format": Metric(
        "Right format",
        "share of completions",
        "higher",
        True,
        about="share of completions of the form that was asked for",
        short="format",
    ),
    "sampled_format": Metric("Right format, sampled", "share of completions", "higher", True),
    "eval/reward": Metric("Reward", "mean reward", "higher"),
    "nll": Metric(
        "Negative log-likelihood",
        "nats per token",
        "lower",
        about="mean −log p of the tokens to imitate",
        short="NLL",
    ),
}

ANSWER_ORDER = (
    "accuracy",
    "sampled_accuracy",
    "mean_absolute_error",
    "unparsed",
    "sampled_unparsed",
    "format",
    "sampled_format",
    *(name for name in LANGUAGE_ORDER if name != "accuracy"),
)
