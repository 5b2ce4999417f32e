"""`visgrpo clip --reward agreement`: a label earns what a frozen judge believes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from running import clip, clip_words, read_json, refused

from visgrpo.data.inputs import augment
from visgrpo.data.read import read_split
from visgrpo.models.clip import DEFAULT_TEMPLATES, ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.tasks.clip.agreement import VIEWS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_page(no_page: None) -> None:
    """Pages are tested elsewhere."""


@pytest.mark.parametrize("own", [True, False], ids=["views of its own", "another model"])
def test_what_images_earn_by_hand(
    own: bool, tiny_clip_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    reward = "agreement" if own else f"agreement:{tiny_clip_folder}"
    data = ["--estimator", "exact", "--seed", "3", "--reward", reward]
    run = clip(tiny_clip_folder, "digits", tmp_path / "run", *data)
    summary = read_json(run / "summary.json")

    parts, rows = load_clip(str(tiny_clip_folder)), read_split("digits", "test", seed=3)
    model = ClipClassifier(parts.model, parts.tokenizer, rows.classes, DEFAULT_TEMPLATES).eval()

    def believed(view: int | None) -> torch.Tensor:
        images = list(rows.images)
        if view is not None:
            draws = (np.random.default_rng([3, view, m]) for m in range(len(images)))
            images = [augment(i, r, ("crop", "flip")) for i, r in zip(images, draws, strict=True)]
        with torch.no_grad():
            return model(torch.stack([parts.preprocess(image) for image in images])).softmax(1)

    q_MK = torch.stack([believed(view) for view in (range(VIEWS) if own else [None])]).mean(0)
    expected = (believed(None) * q_MK).sum(dim=1).mean().item()
    assert summary["before"]["reward"] == pytest.approx(expected, abs=1e-5)
    assert summary["after"]["reward"] > summary["before"]["reward"]
    assert "its likeliest label has a probability of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (["agreement", "agreement:other"], 'Two rewards are called "agreement": name one judge.'),
        (["agreement:nowhere/at-all"], "nowhere/at-all"),
        (["agreement:"], 'Reward "agreement:": name a CLIP after the colon, or write "agreement".'),
        (["agrement"], 'Unknown reward "agrement". Did you mean "agreement"?'),
    ],
)
def test_judges_that_cannot_be(
    rewards: list[str], message: str, tiny_clip_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = clip_words(tiny_clip_folder, "digits", tmp_path / "run", "--reward", *rewards)
    assert message in refused(capsys, words, notes=True)
    assert not (tmp_path / "run").exists()
