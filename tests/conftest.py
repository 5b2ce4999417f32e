"""Fixtures that several rooms share: tiny random checkpoints on disk, and a tiny data set."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: several tests may run at once

import numpy as np
import pytest
import torch
from PIL import Image

from skips import pytest_make_collect_report as pytest_make_collect_report
from skips import pytest_runtest_makereport as pytest_runtest_makereport
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.models.save import save
from visgrpo.models.small import SmallClip, build_small_clip

CLASSES = ("cat", "dog", "apple")
CAPTIONS = ("a photo of a cat.", "a photo of a dog.", "a photo of an apple.", "a drawing of a cat.")
IMAGE_SIZE = 16
SIZES = SmallClip(
    image_size=IMAGE_SIZE, patch_size=8, width=32, layers=2, heads=2, features=16, vocabulary=300
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    # peft asks transformers for an attribute by its old name.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of two blocks a tower, with tokenizer and image processor."""
    folder = tmp_path_factory.mktemp("tiny") / "clip"
    parts = build_small_clip(SIZES, CAPTIONS, seed=0)
    save(parts.model, parts, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP of two blocks a tower, with a scale and a bias as after training."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    folder = tmp_path_factory.mktemp("tiny") / "siglip"
    tokenizer = build_small_clip(SIZES, CAPTIONS, seed=0).tokenizer
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "projection_size": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SiglipModel(SiglipConfig(text_config=tower | text, vision_config=tower | vision))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-5.0)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    for part in (model, tokenizer, SiglipImageProcessorPil(size=size)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset() -> Table:
    """24 noisy pictures of 3 colours, one colour a class, with two more columns."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % len(CLASSES)
    pictures = rng.integers(0, 120, (24, IMAGE_SIZE, IMAGE_SIZE, 3))
    pictures[np.arange(24), :, :, labels] += 120
    return image_table(
        name="tiny/train",
        classes=CLASSES,
        labels=labels,
        images=[Image.fromarray(picture.astype(np.uint8)) for picture in pictures],
        columns={
            "caption": [CAPTIONS[label] for label in labels],
            "price": [float(row) for row in range(24)],
        },
    )
