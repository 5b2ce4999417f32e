"""Metrics of runs that learn from people's behaviour, as people read them."""

from __future__ import annotations

from typing import Any

from visgrpo.reporting.metric import Metric

PEOPLE = {
    "people_kl": Metric(
        "KL from people's votes",
        "nats",
        "lower",
        about="KL(votes ‖ policy); 0 where the policy is people's own distribution",
        short="KL from people",
    ),
    "people_cross_entropy": Metric("Negative log-likelihood of people's votes", "nats", "lower"),
    "people_accuracy": Metric(
        "People's answer",
        "share of images",
        "higher",
        True,
        about="share of images whose likeliest class has the most votes",
    ),
    "disagreed_accuracy": Metric(
        "Accuracy where people disagree",
        "share of those images",
        "higher",
        True,
        about="on images whose commonest answer has less than 90 % of the votes",
    ),
    "disagreed": Metric("Images on which people disagree", "share of images", is_share=True),
    "objective": Metric(
        "Objective", "reward", "higher", about="E[reward] + α·entropy − β·KL to the start"
    ),
    "feedback/coverage": Metric(
        "Judged by people",
        "share of the policy",
        is_share=True,
        about="the policy's probability of labels that feedback is known of",
    ),
}

PEOPLE_ORDER = tuple(PEOPLE)


def feedback_facts(feedback: dict[str, Any] | None) -> dict[str, str]:
    """Return what a page says of the feedback that a run learned from."""
    if not feedback:
        return {}
    coverage = f"{feedback['coverage']:.1%} of the labels of training images"
    return {
        "Feedback": f"{feedback['matched']:,} {feedback['kind']} from {feedback['source']}",
        "Seen by people": f"{coverage}; the others: {feedback['unknown']}",
    }
