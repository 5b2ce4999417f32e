"""A model that sees as a policy, against transformers' own forward of one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vision_models import (
    TRAINED,
    Answer,
    Scene,
    answer_of,
    differences,
    logits_of_each,
    qwen,
    scene,
    seeing,
    truth_of,
)

from visgrpo.errors import UserError
from visgrpo.models import prompt_reading
from visgrpo.models.language import LanguageModel
from visgrpo.models.token_cache import shared_prefix
from visgrpo.models.vision_families import QwenVision
from visgrpo.objectives.token_distribution import TokenDistribution

# Norms and rotations are of float32 whatever the weights are.
CLOSE = 1e-5
SCENES: dict[str, dict[str, Any]] = {
    "ragged": {},
    "one token": {"length": 1},
    "one completion": {"group_size": 1},
    "equal lengths": {"sizes_N": [[(24, 16)], [(24, 16)]], "ragged": False},
    "no image": {"sizes_N": [[], []]},
    "padding nobody needs": {"sizes_N": [[], [(16, 24)]], "padding": 3},
}


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", TRAINED)
def test_scores_and_gradients_are_those_of_single_sequences(train: str, engine: Any) -> None:
    """Prompts with one, two and no image, twice: from frozen parts that are kept the second time."""
    seen, model = scene(), seeing(train, engine).double()
    expected = truth_of(model, seen)
    for _ in range(2):
        assert max(differences(answer_of(model, seen.batch()), expected)) < CLOSE


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("name", list(SCENES)[1:])
def test_batches_of_other_shapes(name: str, engine: Any) -> None:
    seen, model = scene(**SCENES[name]), seeing("all", engine).double()
    assert max(differences(answer_of(model, seen.batch()), truth_of(model, seen))) < CLOSE
