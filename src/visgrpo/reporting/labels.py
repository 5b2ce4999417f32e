"""What each metric is called, its unit, and how its values and changes are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from visgrpo.reporting.answer_labels import ANSWER_ORDER, ANSWERS
from visgrpo.reporting.language_labels import LANGUAGE, LANGUAGE_ORDER, PAIRS
from visgrpo.reporting.metric import Metric as Metric
from visgrpo.reporting.metric import number as number
from visgrpo.reporting.metric import signed as signed
from visgrpo.reporting.people_labels import PEOPLE, PEOPLE_ORDER

Subject = Literal["images", "tokens", "pairs", "answers"]
"""What a run is measured on: it decides what "accuracy" is a share of."""

_METRICS = {
    "accuracy": Metric(
        "Accuracy",
        "share of images",
        "higher",
        True,
        about="share of images whose likeliest class is right",
    ),
    "ece": Metric(
        "Calibration error (ECE)",
        "ECE",
        "lower",
        about="mean gap between confidence and accuracy; 0 is calibrated",
        short="ECE",
    ),
    "nll": Metric(
        "Negative log-likelihood",
        "nats",
        "lower",
        about="mean −log p of the right class",
        short="NLL",
    ),
    "kl": Metric(
        "KL to the start", "nats", about="how far the policy has moved from its start", short="KL"
    ),
    "entropy": Metric("Entropy", "nats", about="how undecided the policy is"),
    "entropy_normalized": Metric("Entropy, share of the maximum", "share of log K", is_share=True),
    "reward": Metric("Reward", "mean reward", "higher"),
    "loss": Metric("Loss", "loss"),
    "frac_reward_zero_std": Metric(
        "Groups without a signal",
        "share of groups",
        is_share=True,
        about="groups whose rewards are all equal teach nothing",
    ),
    "clip_ratio/region_mean": Metric("Clipped ratios", "share of outputs", is_share=True),
    "grad_norm": Metric("Gradient norm", "norm before clipping"),
    "learning_rate": Metric("Learning rate", "learning rate"),
    "step_time": Metric("Time of a step", "seconds", "lower"),
    "balanced_accuracy": Metric("Balanced accuracy", "mean over classes", "higher", True),
    "top5_accuracy": Metric("Top-5 accuracy", "share of images", "higher", True),
    "advantage_abs": Metric("Size of the advantages", "mean |A|"),
    "ratio_mean": Metric("Probability ratio to the old policy", "mean ratio"),
    "supervised_loss": Metric("Cross-entropy term", "nats"),
    "miou": Metric(
        "Mean IoU",
        "mean IoU over classes",
        "higher",
        True,
        about="intersection over union, averaged over the classes in the truth or the answers",
    ),
    "pixel_accuracy": Metric("Pixel accuracy", "share of labelled pixels", "higher", True),
    "mean_class_accuracy": Metric(
        "Mean class accuracy", "mean over classes of pixel accuracy", "higher", True
    ),
    "iou": Metric("IoU", "intersection over union", "higher", True),
    "knn": Metric("kNN accuracy", "share of images", "higher", True),
    "softmax_regression": Metric(
        "Softmax regression",
        "share of images",
        "higher",
        True,
        about="accuracy of a linear classifier fitted to the backbone's features",
    ),
    # Either alone is best for features of no use: all alike, or without any order.
    "alignment": Metric(
        "Alignment",
        "mean squared distance",
        about="squared distance between features of one class; 0 where they coincide",
    ),
    "uniformity": Metric(
        "Uniformity",
        "log mean potential",
        about="lower where features spread more evenly over the sphere",
    ),
    "feature_uniformity": Metric("Feature uniformity", "log mean potential"),
}

ORDER = (
    "miou",
    "pixel_accuracy",
    "mean_class_accuracy",
    "accuracy",
    "softmax_regression",
    "knn",
    "alignment",
    "uniformity",
    "ece",
    "nll",
    "kl",
    "entropy",
    *PEOPLE_ORDER,
    "reward",
    "loss",
    "frac_reward_zero_std",
    "clip_ratio/region_mean",
    "grad_norm",
    "learning_rate",
)


_OF_SUBJECT: dict[Subject, dict[str, Metric]] = {
    "images": PEOPLE,
    "tokens": LANGUAGE,
    "pairs": LANGUAGE | PAIRS,
    "answers": ANSWERS,
}
_ORDER_OF_SUBJECT: dict[Subject, tuple[str, ...]] = {
    "images": ORDER,
    "tokens": LANGUAGE_ORDER,
    "pairs": LANGUAGE_ORDER,
    "answers": ANSWER_ORDER,
}


def metric(key: str, subject: Subject = "images") -> Metric:
    """Return the label of a metric key; a key that is not known is its own title.

    A few have a unit of their own during evaluation: "eval/kl" of a completion, "kl" of a token.
    """
    name = key.removeprefix("eval/")
    special = _OF_SUBJECT[subject]
    for known in (special.get(key), special.get(name), _METRICS.get(name)):
        if known is not None:
            return known
    if name.startswith("accuracy/"):
        accuracy, data = metric("accuracy", subject), name.removeprefix("accuracy/")
        return replace(accuracy, title=f"{accuracy.title}, {data}")
    if name.startswith("knn/"):
        neighbours = f"k = {name.removeprefix('knn/')}"
        knn = _METRICS["knn"]
        return replace(knn, title=f"{knn.title}, {neighbours}", short=f"kNN, {neighbours}")
    if name.startswith("rewards/"):
        reward = name.removeprefix("rewards/").removesuffix("/mean")
        return Metric(f"Reward: {reward}", "mean reward", "higher")
    return Metric(name, name)


def ordered(keys: Sequence[str], subject: Subject = "images") -> list[str]:
    """Sort metric keys: the known ones in reading order, then the others as they came."""
    order = _ORDER_OF_SUBJECT[subject]
    known = {key: place for place, key in enumerate(order)}

    def place(key: str) -> int:
        name = key.removeprefix("eval/")
        return known.get(name, known.get(name.split("/")[0], len(order)))

    return sorted(keys, key=place)


def describe_gain(before: float, after: float, key: str = "accuracy") -> str:
    """Write a change in one phrase: "81.0 % → 84.2 % (+3.2 points)"."""
    label = metric(key)
    return f"{label.text(before)} → {label.text(after)} ({label.change(before, after)})"


def duration(seconds: float) -> str:
    """Write seconds as "42 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def count(value: float) -> str:
    """Write a whole number with its thousands apart: "1,048,576"."""
    return f"{value:,.0f}"


def memory(size: float) -> str:
    """Write bytes as "96 KiB", "812 MiB" or "3.4 GiB"."""
    mebibytes = size / 2**20
    if mebibytes < 1:
        return f"{size / 1024:.0f} KiB"
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
