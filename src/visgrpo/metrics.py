"""What every metric is called, its unit, which way is better, how it is written, where it is shown.

One row is one metric. The bar of a running command, the tables on the terminal, model cards, pages,
comparisons and sweeps all read this table and nothing else: a new metric is a new row. A job with
metrics of its own brings their rows with `add`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeGuard

Subject = Literal["images", "tokens", "pairs", "answers", "any"]
"""What a run is measured on: it decides what "accuracy" is a share of. "any" is not to know."""
MINUS = "−"
EVERYWHERE = "bar validation console card compare sweep"


@dataclass(frozen=True)
class Metric:
    """One metric as people read it.

    Attributes:
        key: as it is logged, without "eval/" unless the unit is another one there. A "*" stands for
            any text, which then takes the place of the "*" in the titles.
        title: "KL to the start".
        unit: label of the value axis, "nats".
        better: which direction is a gain; "neither" where that depends on the user's aim.
        is_share: a number in [0, 1] that is written in per cent.
        short: title where there is little room; the title itself if empty.
        word: title within a line of the terminal and on a model card: the heading if empty.
        about: one phrase for readers who do not know the metric.
        of: the only subject that this row is about; any if empty.
        shown: where besides the page of a run, separated by spaces: "bar" (of training batches),
            "validation" (the bar, of evaluations), "console", "card", "compare", "sweep".
        hidden: "page" or "curve", where the number is none to be shown by itself there.
        table: title of the table on the page, where it is not the main one.
        main: a run is judged by it; where it has several of them, by the first.
    """

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower", "neither"] = "neither"
    is_share: bool = False
    short: str = ""
    word: str = ""
    about: str = ""
    of: str = ""
    shown: str = ""
    hidden: str = ""
    table: str = ""
    main: bool = False

    @property
    def heading(self) -> str:
        return self.short or self.title

    @property
    def in_a_line(self) -> str:
        """The title as a word among others: "Accuracy" is "accuracy", "ECE" stays."""
        heading = self.heading
        return self.word or (
            heading if heading[1:2].isupper() else heading[0].lower() + heading[1:]
        )

    def is_shown(self, place: str) -> bool:
        return place in self.shown.split()

    def is_hidden(self, place: str) -> bool:
        return place in self.hidden.split()

    def text(self, value: float) -> str:
        """Write a value: ``0.8125`` as "81.2 %" for shares, else four significant figures."""
        return signed(f"{100 * value:.1f} %") if self.is_share else number(value)

    def change(self, before: float, after: float) -> str:
        """Write a change with its sign: "+3.2 points" for shares, else "−0.012"."""
        delta = after - before
        if self.is_share:
            return signed(f"{100 * delta:+.1f} points")
        return f"+{number(delta)}" if delta > 0 else number(delta)

    def verdict(self, before: float, after: float) -> Literal["gain", "loss", "same"]:
        """Say whether the change is a gain; "same" where neither direction is one."""
        if self.better == "neither" or after == before:
            return "same"
        return "gain" if (after > before) == (self.better == "higher") else "loss"


UP: Final = "higher"
DOWN: Final = "lower"
SAME: Final = "neither"
SHARE = True
FEATURES = "Features of the backbone"
BOTH = "page curve"

# In the reading order of a page about images. Below the line pages show them as they were logged.
# fmt: off
_IN_ORDER: tuple[Metric, ...] = (
    Metric("miou", "Mean IoU", "mean IoU over classes", UP, SHARE, word="mIoU", main=True,
           shown="validation console card compare",
           about="intersection over union, averaged over the classes in the truth or the answers"),
    Metric("pixel_accuracy", "Pixel accuracy", "share of labelled pixels", UP, SHARE,
           shown="console card compare"),
    Metric("mean_class_accuracy", "Mean class accuracy", "mean over classes of pixel accuracy",
           UP, SHARE, word="class accuracy", shown="console compare"),
    Metric("accuracy", "Accuracy", "share of images", UP, SHARE, main=True,
           shown="bar validation console card compare",
           about="share of images whose likeliest class is right"),
    Metric("f1", "F1 of sets", "mean over images", UP, SHARE, short="F1", word="F1", main=True,
           shown="validation console card compare",
           about="overlap of answered and true labels of an image, 2 |A ∩ B| / (|A| + |B|)"),
    Metric("jaccard", "Jaccard index of sets", "mean over images", UP, SHARE, short="Jaccard",
           word="Jaccard",
           shown="console compare"),
    Metric("whole_sets", "Whole sets", "share of images", UP, SHARE, word="whole sets",
           shown="console compare", about="share of images whose labels are all right"),
    Metric("match_rate", "Match rate", "share of the batch", UP, SHARE, shown="bar",
           about="share of a training batch whose likeliest match in it is the right one"),
    Metric("softmax_regression", "Softmax regression", "share of images", UP, SHARE, table=FEATURES,
           shown="console card compare",
           about="accuracy of a linear classifier fitted to the backbone's features"),
    Metric("knn", "kNN accuracy", "share of images", UP, SHARE, word="kNN", main=True,
           table=FEATURES, shown="validation"),
    Metric("knn/*", "kNN accuracy, k = *", "share of images", UP, SHARE, short="kNN, k = *",
           word="kNN *", table=FEATURES, shown="console compare"),
    Metric("knn_weighted/*", "Weighted kNN accuracy, k = *", "share of images", UP, SHARE,
           short="weighted kNN, k = *", word="weighted kNN *", table=FEATURES,
           shown="console compare", about="votes weigh exp(similarity / 0.07)"),
    # Either alone is best for features of no use: all alike, or without any order.
    Metric("alignment", "Alignment", "mean squared distance", table=FEATURES, shown="compare",
           about="squared distance between features of one class; 0 where they coincide"),
    Metric("uniformity", "Uniformity", "log mean potential", table=FEATURES, shown="compare",
           about="lower where features spread more evenly over the sphere"),
    Metric("ece", "Calibration error (ECE)", "ECE", DOWN, short="ECE", shown="console card compare",
           about="mean gap between confidence and accuracy; 0 is calibrated"),
    Metric("nll", "Negative log-likelihood", "nats", DOWN, short="NLL",
           shown="console card compare", about="mean −log p of the right class"),
    Metric("kl", "KL to the start", "nats", short="KL", shown="bar console card compare",
           about="how far the policy has moved from its start"),
    Metric("entropy", "Entropy", "nats", shown="bar console compare",
           about="how undecided the policy is"),
    Metric("people_kl", "KL from people's votes", "nats", DOWN, short="KL from people",
           shown="console",
           about="KL(votes ‖ policy); 0 where the policy is people's own distribution"),
    Metric("people_cross_entropy", "Negative log-likelihood of people's votes", "nats", DOWN,
           word="people's NLL", shown="console"),
    Metric("people_accuracy", "People's answer", "share of images", UP, SHARE, shown="console",
           about="share of images whose likeliest class has the most votes"),
    Metric("disagreed_accuracy", "Accuracy where people disagree", "share of those images",
           UP, SHARE, word="disagreed", shown="console",
           about="on images whose commonest answer has less than 90 % of the votes"),
    Metric("disagreed", "Images on which people disagree", "share of images", SAME, SHARE),
    Metric("objective", "Objective", "reward", UP,
           about="E[reward] + α·entropy − β·KL to the start"),
    Metric("feedback/coverage", "Judged by people", "share of the policy", SAME, SHARE,
           about="the policy's probability of labels that feedback is known of"),
    Metric("reward", "Reward", "mean reward", UP, shown="bar validation console"),
    Metric("answered", "Answered", "share of images", SAME, SHARE, word="answered", shown="console",
           about="share of images whose likeliest class is sure enough for an answer"),
    Metric("answered_accuracy", "Accuracy of answers", "share of answers", UP, SHARE,
           word="accuracy of answers", shown="console"),
    Metric("cost", "Cost of the answers", "mean cost", DOWN, word="cost",
           shown="validation console card compare", about="what the answers cost in the mean"),
    Metric("loss", "Loss", "loss", shown="bar"),
    Metric("frac_reward_zero_std", "Groups without a signal", "share of groups", SAME, SHARE,
           about="groups whose rewards are all equal teach nothing"),
    Metric("clip_ratio/region_mean", "Clipped ratios", "share of outputs", SAME, SHARE),
    Metric("grad_norm", "Gradient norm", "norm before clipping"),
    Metric("learning_rate", "Learning rate", "learning rate"),
)
_AS_LOGGED: tuple[Metric, ...] = (
    Metric("balanced_accuracy", "Balanced accuracy", "mean over classes", UP, SHARE),
    Metric("macro_f1", "Macro F1", "mean over classes", UP, SHARE),
    Metric("top5_accuracy", "Top-5 accuracy", "share of images", UP, SHARE),
    Metric("advantage_abs", "Size of the advantages", "mean |A|"),
    Metric("ratio_mean", "Probability ratio to the old policy", "mean ratio"),
    Metric("supervised_loss", "Cross-entropy term", "nats"),
    Metric("feature_uniformity", "Feature uniformity", "log mean potential"),
    Metric("iou", "IoU", "intersection over union", UP, SHARE),
    Metric("rewards/*/mean", "Reward: *", "mean reward", UP),
    Metric("rewards/*", "Reward: *", "mean reward", UP),
    # Drawn as the band of "reward"; about speed, not learning; or the same curve as another one:
    # entropy over log K, and the two parts of clip_ratio/region_mean.
    Metric("reward_std", "Spread of a group's rewards", "standard deviation", hidden="curve"),
    Metric("step_time", "Time of a step", "seconds", DOWN, hidden="curve"),
    Metric("entropy_normalized", "Entropy, share of the maximum", "share of log K", SAME, SHARE,
           hidden=BOTH),
    Metric("clip_ratio/low_mean", "Ratios clipped from below", "share of outputs", SAME, SHARE,
           hidden="curve"),
    Metric("clip_ratio/high_mean", "Ratios clipped from above", "share of outputs", SAME, SHARE,
           hidden="curve"),
    # Said in words, and the same at every evaluation.
    Metric("accuracy_low", "Accuracy, lower end", "share", UP, SHARE, hidden=BOTH),
    Metric("accuracy_high", "Accuracy, upper end", "share", UP, SHARE, hidden=BOTH),
    Metric("majority", "Always the commonest answer", "share of questions", SAME, SHARE,
           word="majority", shown="console", hidden=BOTH),
    *(Metric(key, key.capitalize(), key, hidden=BOTH)
      for key in ("examples", "pixels", "tokens", "pairs", "prompts")),

    # Of completions. A few have a unit of their own during evaluation.
    Metric("gold_reward", "Gold reward", "mean gold reward", UP, short="gold", word="gold reward",
           of="tokens", shown="validation console compare",
           about="what the judge says whom the reward model imitates; nothing is trained on it"),
    Metric("eval/reward", "Reward", "mean reward", UP, of="tokens",
           shown="validation console compare", about="the reward that is trained on, the proxy"),
    Metric("eval/kl", "KL to the start", "nats per completion", short="KL", of="tokens",
           shown="console compare",
           about="how far the policy has moved from its start, in nats per completion"),
    Metric("kl", "KL to the start", "nats per token", short="KL", of="tokens", shown="bar"),
    Metric("kl_per_token", "KL to the start, per token", "nats per token", short="KL per token",
           of="tokens"),
    Metric("entropy", "Entropy", "nats per token", of="tokens", shown="bar console compare",
           about="how undecided the policy is about a token"),
    Metric("accuracy", "Accuracy", "share of tokens", UP, SHARE, of="tokens",
           shown="bar validation console compare",
           about="share of tokens that the model holds likeliest"),
    Metric("nll", "Negative log-likelihood", "nats per token", DOWN, short="NLL", of="tokens",
           shown="console compare", about="mean −log p of the next token"),
    Metric("perplexity", "Perplexity", "e to the NLL", DOWN, of="tokens",
           shown="validation console compare"),
    Metric("bits_per_byte", "Bits per byte", "bits", DOWN, of="tokens", shown="console compare",
           about="comparable across tokenizers"),
    Metric("length", "Length of completions", "tokens", short="length", of="tokens",
           shown="console compare"),
    Metric("completions/mean_length", "Length of completions", "tokens", short="length",
           of="tokens"),
    Metric("ended", "Completions that end", "share of completions", SAME, SHARE, short="ended",
           of="tokens", about="share of completions that end before the limit"),
    Metric("completions/clipped_ratio", "Completions cut off", "share of completions", SAME, SHARE,
           short="cut off", of="tokens"),
    Metric("clip_ratio/region_mean", "Clipped ratios", "share of tokens", SAME, SHARE, of="tokens"),
    Metric("draws", "Draws of a group", "times", DOWN, of="tokens"),
    Metric("told", "Groups told the truth", "share of groups", DOWN, SHARE, of="tokens"),
    Metric("off_policy_ratio", "Masked as off policy", "share of tokens", SAME, SHARE, of="tokens"),
    Metric("value_loss", "Value loss", "squared error", DOWN, of="tokens"),
    Metric("explained_variance", "Explained variance of the critic", "1 − residual / variance",
           of="tokens"),
    Metric("value_clip_ratio", "Clipped values", "share of tokens", SAME, SHARE, of="tokens"),
    Metric("kl_coefficient", "KL coefficient", "weight of the KL", of="tokens"),
    Metric("tokens_per_second", "Tokens per second", "tokens per second", UP, of="tokens",
           hidden="curve"),
    Metric("sampled_tokens", "Sampled tokens", "tokens", of="tokens", hidden="curve"),

    # Of a reward model.
    Metric("accuracy", "Accuracy", "share of pairs", UP, SHARE, of="pairs",
           shown="bar validation console compare",
           about="share of pairs whose preferred text has the higher score"),
    Metric("nll", "Negative log-likelihood", "nats per pair", DOWN, short="NLL", of="pairs",
           shown="console compare", about="mean −log p that the preferred text wins"),
    Metric("margin", "Margin", "mean difference of scores", UP, of="tokens",
           shown="console compare"),

    # Of answers to questions.
    Metric("mean_iou", "Mean IoU", "intersection over union", UP, of="answers", main=True,
           word="mean IoU", shown="bar validation console compare",
           about="overlap of answered and true boxes, 0 without an answer"),
    Metric("sampled_mean_iou", "Sampled IoU", "intersection over union", UP, short="sampled",
           of="answers", shown="validation console compare",
           about="overlap of sampled answers"),
    Metric("found_50", "Found at IoU .5", "share of true boxes", UP, SHARE, short="IoU ≥ .5",
           word="IoU ≥ .5",
           of="answers", shown="console compare",
           about="share of true boxes that an answer overlaps by half or more"),
    Metric("found_75", "Found at IoU .75", "share of true boxes", UP, SHARE, short="IoU ≥ .75",
           word="IoU ≥ .75",
           of="answers", shown="console compare",
           about="share of true boxes that an answer overlaps by three quarters or more"),
    Metric("sampled_found_75", "Found at IoU .75, sampled", "share of true boxes", UP, SHARE,
           of="answers"),
    Metric("ap50", "AP50", "average precision", UP, of="answers", shown="compare",
           about="COCO's average precision at an IoU of .5"),
    Metric("ap75", "AP75", "average precision", UP, of="answers", shown="compare",
           about="COCO's average precision at an IoU of .75"),
    Metric("ap", "AP", "average precision", UP, of="answers", shown="console compare",
           about="COCO's average precision, mean over IoUs of .5 to .95"),
    Metric("hit", "Hits", "share of questions", UP, SHARE, of="answers", main=True,
           shown="bar validation console compare",
           about="share of answered points that lie in the true box"),
    Metric("sampled_hit", "Sampled hits", "share of completions", UP, SHARE, short="sampled",
           of="answers", shown="validation console compare"),
    Metric("distance", "Distance", "units of the answers", DOWN, of="answers",
           shown="console compare",
           about="how far answered points are from the middle of the true box"),
    Metric("sampled_distance", "Distance, sampled", "units of the answers", DOWN, of="answers"),
    Metric("accuracy", "Accuracy", "share of questions", UP, SHARE, of="answers",
           shown="bar validation console compare",
           about="share of questions that the likeliest completion answers right"),
    Metric("sampled_accuracy", "Sampled accuracy", "share of completions", UP, SHARE,
           short="sampled", of="answers", shown="validation console compare",
           about="share of sampled completions that are right"),
    Metric("pass@*", "Pass@*", "share of questions", UP, SHARE, short="pass@*", of="answers",
           shown="console compare", about="chance that one of so many sampled answers is right"),
    Metric("mean_absolute_error", "Mean absolute error", "mean |error|", DOWN, short="error",
           word="mean error", of="answers", shown="console compare",
           about="how far off the answers are that can be read"),
    Metric("unparsed", "Without an answer", "share of completions", DOWN, SHARE, short="no answer",
           word="unparsed", of="answers", shown="console compare",
           about="share of completions from which no answer can be read"),
    Metric("sampled_unparsed", "Without an answer, sampled", "share of completions", DOWN, SHARE,
           of="answers"),
    Metric("format", "Right format", "share of completions", UP, SHARE, short="format",
           of="answers", shown="console compare",
           about="share of completions of the form that was asked for"),
    Metric("sampled_format", "Right format, sampled", "share of completions", UP, SHARE,
           of="answers"),
    Metric("eval/reward", "Reward", "mean reward", UP, of="answers",
           shown="validation console compare"),
    Metric("nll", "Negative log-likelihood", "nats per token", DOWN, short="NLL", of="answers",
           shown="console compare", about="mean −log p of the tokens to imitate"),
)
# fmt: on

_LOOKED_UP: dict[str, tuple[str, ...]] = {
    "images": ("",),
    "tokens": ("tokens", ""),
    "pairs": ("pairs", "tokens", ""),
    "answers": ("answers", "tokens", ""),
    "any": ("", "tokens", "pairs", "answers"),
}
# Where it is another one than that of the rows.
_READ: dict[str, str] = {
    "tokens": """
        gold_reward reward accuracy nll perplexity bits_per_byte ece margin kl kl_per_token entropy
        length completions/mean_length ended completions/clipped_ratio loss value_loss
        explained_variance frac_reward_zero_std advantage_abs ratio_mean clip_ratio/region_mean
        off_policy_ratio draws told value_clip_ratio kl_coefficient grad_norm learning_rate""",
    "answers": """
        accuracy sampled_accuracy mean_iou sampled_mean_iou found_50 found_75 sampled_found_75 ap50
        ap75 ap hit sampled_hit distance sampled_distance mean_absolute_error unparsed
        sampled_unparsed format sampled_format""",
    "console": """
        accuracy mean_iou found_50 found_75 ap hit distance sampled_accuracy sampled_mean_iou
        sampled_hit answered answered_accuracy reward cost ece nll entropy kl people_kl
        people_cross_entropy people_accuracy disagreed_accuracy softmax_regression knn miou
        pixel_accuracy mean_class_accuracy gold_reward length perplexity bits_per_byte margin format
        unparsed mean_absolute_error majority""",
    "bar": """
        reward loss kl entropy accuracy eval/reward eval/accuracy eval/sampled_accuracy eval/miou
        eval/knn eval/perplexity eval/gold_reward""",
}
_ORDERS: dict[str, list[str]] = {
    "images": [row.key for row in _IN_ORDER],
    **{of: keys.split() for of, keys in _READ.items()},
    "pairs": _READ["tokens"].split(),
    "answers": list(dict.fromkeys(f"{_READ['answers']} {_READ['tokens']}".split())),
}
_ADDED: list[str] = []
_ROWS: dict[tuple[str, str], Metric] = {}


def add(*rows: Metric) -> None:
    """Add rows to the table, or replace those of the same key and subject.

    Where they are shown they come first: runs that have them are about them.
    """
    for row in rows:
        _ROWS[row.of, row.key] = row
        if row.key not in _ADDED:
            _ADDED.append(row.key)


def remove(*keys: str) -> None:
    """Take added rows out again."""
    for key in keys:
        _ADDED.remove(key)
        for place in [place for place in _ROWS if place[1] == key]:
            del _ROWS[place]


def metric(key: str, subject: Subject = "images") -> Metric:
    """Return the row of a metric key; a key that is not known is its own title."""
    name = key.removeprefix("eval/")
    for of in _LOOKED_UP[subject]:
        for known in (_ROWS.get((of, key)), _ROWS.get((of, name))):
            if known is not None:
                return known
    # A number of another subject keeps its title; no table of this subject expects it.
    for (_, each), row in _ROWS.items():
        if each == name:
            return replace(row, shown="")
    for row in _ROWS.values():
        if (text := _matched(row.key, name)) is not None:
            titles = {part: getattr(row, part).replace("*", text) for part in _TITLES}
            return replace(row, key=name, **titles)
    head, _, rest = name.partition("/")
    if rest and any(each == head for _, each in _ROWS):
        whole = metric(head, subject)
        return replace(whole, key=name, title=f"{whole.title}, {rest}")
    return Metric(name, name, name)


def ordered(keys: Iterable[str], order: str = "images") -> list[str]:
    """Sort metric keys: the known ones in reading order, then the others as they came.

    Args:
        order: a subject, "console" or "bar".
    """
    known = {key: place for place, key in enumerate([*_ADDED, *_ORDERS[order]])}

    def place(key: str) -> int:
        name = key.removeprefix("eval/")
        found = (known.get(each) for each in (key, name, name.split("/")[0]))
        return next((place for place in found if place is not None), len(known))

    return sorted(keys, key=place)


def added(place: str) -> list[str]:
    """Return the keys of added rows that are shown somewhere."""
    return [key for key in _ADDED if metric(key, "any").is_shown(place)]


def main_keys() -> list[str]:
    """Return the keys that runs are judged by, the first that a run has before the others."""
    return ordered(dict.fromkeys(row.key for row in _ROWS.values() if row.main))


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of an evaluation that are one number; kNN's for each k as "knn/5"."""
    nested = {name: values.get(name) for name in ("knn", "knn_weighted")}
    flat = {
        f"{name}/{k}": value
        for name, by_k in nested.items()
        if isinstance(by_k, dict)
        for k, value in by_k.items()
    }
    return {key: float(value) for key, value in {**values, **flat}.items() if is_number(value)}


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value of a JSON file is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe_gain(before: float, after: float, key: str = "accuracy") -> str:
    """Write a change in one phrase: "81.0 % → 84.2 % (+3.2 points)"."""
    row = metric(key)
    return f"{row.text(before)} → {row.text(after)} ({row.change(before, after)})"


def number(value: float) -> str:
    """Write a number with four significant figures, without a needless exponent."""
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e5:
        decimals = 3 if size < 10 else 1 if size < 1000 else 0
        return signed(f"{value:.{decimals}f}")
    return signed(f"{value:.2e}")


def signed(text: str) -> str:
    """Use the true minus sign, so that columns of signed numbers align; no sign before zero."""
    if text[:1] in "+-" and not any(digit in text for digit in "123456789"):
        text = text[1:]
    return text.replace("-", MINUS)


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


_TITLES = ("title", "short", "word")


def _matched(pattern: str, name: str) -> str | None:
    """Return the text that "*" stands for in a key, None where the pattern does not fit."""
    head, star, tail = pattern.partition("*")
    fits = star and name.startswith(head) and name.endswith(tail) and len(name) >= len(pattern) - 1
    return name[len(head) : len(name) - len(tail)] if fits else None


_ROWS.update(((row.of, row.key), row) for row in (*_IN_ORDER, *_AS_LOGGED))
