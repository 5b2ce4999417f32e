"""Metrics of language runs: what they are called, and in which order they are read."""

from __future__ import annotations

from visgrpo.reporting.metric import Metric

LANGUAGE = {
    "gold_reward": Metric(
        "Gold reward",
        "mean gold reward",
        "higher",
        about="what the judge says whom the reward model imitates; nothing is trained on it",
        short="gold",
    ),
    "eval/reward": Metric(
        "Reward", "mean reward", "higher", about="the reward that is trained on, the proxy"
    ),
    "eval/kl": Metric(
        "KL to the start",
        "nats per completion",
        about="how far the policy has moved from its start, in nats per completion",
        short="KL",
    ),
    "kl": Metric("KL to the start", "nats per token", short="KL"),
    "kl_per_token": Metric("KL to the start, per token", "nats per token", short="KL per token"),
    "entropy": Metric(
        "Entropy", "nats per token", about="how undecided the policy is about a token"
    ),
    "accuracy": Metric(
        "Accuracy",
        "share of tokens",
        "higher",
        True,
        about="share of tokens that the model holds likeliest",
    ),
    "nll": Metric(
        "Negative log-likelihood",
        "nats per token",
        "lower",
        about="mean −log p of the next token",
        short="NLL",
    ),
    "perplexity": Metric("Perplexity", "e to the NLL", "lower"),
    "bits_per_byte": Metric("Bits per byte", "bits", "lower", about="comparable across tokenizers"),
    "length": Metric("Length of completions", "tokens", short="length"),
    "completions/mean_length": Metric("Length of completions", "tokens", short="length"),
    "ended": Metric(
        "Completions that end",
        "share of completions",
        is_share=True,
        about="share of completions that end before the limit",
        short="ended",
    ),
    "completions/clipped_ratio": Metric(
        "Completions cut off", "share of completions", is_share=True, short="cut off"
    ),
    "frac_reward_zero_std": Metric("Groups without a signal", "share of groups", is_share=True),
    "clip_ratio/region_mean": Metric("Clipped ratios", "share of tokens", is_share=True),
    "value_loss": Metric("Value loss", "squared error", "lower"),
    "explained_variance": Metric("Explained variance of the critic", "1 − residual / variance"),
    "value_clip_ratio": Metric("Clipped values", "share of tokens", is_share=True),
    "kl_coefficient": Metric("KL coefficient", "weight of the KL"),
    "tokens_per_second": Metric("Tokens per second", "tokens per second", "higher"),
    "sampled_tokens": Metric("Sampled tokens", "tokens"),
}

PAIRS = {
    "accuracy": Metric(
        "Accuracy",
        "share of pairs",
        "higher",
        True,
        about="share of pairs whose preferred text has the higher score",
    ),
    "nll": Metric(
        "Negative log-likelihood",
        "nats per pair",
        "lower",
        about="mean −log p that the preferred text wins",
        short="NLL",
    ),
    "margin": Metric("Margin", "mean difference of scores", "higher"),
}
"""Of a reward model, where they differ from those of a language model."""

LANGUAGE_ORDER = (
    "gold_reward",
    "reward",
    "accuracy",
    "nll",
    "perplexity",
    "bits_per_byte",
    "ece",
    "margin",
    "kl",
    "kl_per_token",
    "entropy",
    "length",
    "completions/mean_length",
    "ended",
    "completions/clipped_ratio",
    "loss",
    "value_loss",
    "explained_variance",
    "frac_reward_zero_std",
    "advantage_abs",
    "ratio_mean",
    "clip_ratio/region_mean",
    "value_clip_ratio",
    "kl_coefficient",
    "grad_norm",
    "learning_rate",
)
