"""What `from visgrpo import …` offers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import visgrpo


@pytest.mark.parametrize("name", visgrpo.__all__)
def test_every_public_name_imports(name: str) -> None:
    value = getattr(visgrpo, name)
    assert value is not None
    assert getattr(value, "__name__", name) == name  # not another object under this name


def test_dir_lists_the_public_names() -> None:
    assert dir(visgrpo) == sorted(visgrpo.__all__)
    assert len(set(visgrpo.__all__)) == len(visgrpo.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train_clpi'"):
        _ = visgrpo.train_clpi


@pytest.mark.parametrize("module", ["visgrpo", "visgrpo.cli", "visgrpo.tasks.options"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "matplotlib"}
    assert heavy & set(loaded) == set()
