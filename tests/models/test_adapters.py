"""What an adapter may not be is said in one line, whatever kind of model it was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backbones import encoder_of
from language_models import saved_language
from safetensors.torch import load_file, save_file
from test_load import saved_backbone
from vision_folders import saved_vision

from visgrpo.errors import UserError
from visgrpo.models.load import (
    load_backbone,
    load_clip,
    load_language,
    load_reward_model,
    load_vision_language,
)
from visgrpo.models.options import Adapt
from visgrpo.models.reward_model import build_reward_model
from visgrpo.models.save import save
from visgrpo.models.trains import linear_layers, wrap_in_adapters
from visgrpo.tasks.use import kind_of

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
LOADERS: dict[str, Callable[[str], Any]] = {
    "clip": load_clip,
    "backbone": load_backbone,
    "language": load_language,
    "vision-language": load_vision_language,
    "reward": load_reward_model,
    "evaluate": kind_of,
}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("starts")
    language = saved_language(root / "language")
    parts = load_language(str(language))
    save(build_reward_model(parts, seed=0), parts, root / "reward")
    found = {
        "clip": tiny_clip_folder,
        "backbone": saved_backbone(root / "backbone", "dinov2"),
        "language": language,
        "vision-language": saved_vision(root / "vision"),
        "reward": root / "reward",
    }
    return found | {"evaluate": language}


@pytest.fixture(params=LOADERS)
def case(request: pytest.FixtureRequest, starts: dict[str, Path], tmp_path: Path) -> Any:
    """A loader, a start, and an adapter on it."""
    kind = request.param
    model = LOADERS["language" if kind == "evaluate" else kind](str(starts[kind])).model
    model = getattr(model, "scorer", model)
    targets = [name for name in linear_layers(model) if name.endswith(("c_attn", "q_proj"))]
    adapter = tmp_path / "adapter"
    wrap_in_adapters(model, targets, Adapt(2, 4.0)).save_pretrained(adapter)
    edit(adapter, base_model_name_or_path=str(starts[kind]))
    return LOADERS[kind], starts[kind], adapter


def edit(adapter: Path, **settings: Any) -> None:
    path = adapter / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def one_line(load: Callable[[str], Any], name: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_adapter_loads_merged_into_its_base(case: Any) -> None:
    load, _, adapter = case
    parts = load(str(adapter))
    if load is not kind_of:
        assert parts.name == str(adapter)
        assert not hasattr(getattr(parts.model, "scorer", parts.model), "peft_config")


@pytest.mark.parametrize("base", [None, "", 3, "no"])
def test_an_adapter_of_a_nameless_base(case: Any, base: Any) -> None:
    load, _, adapter = case
    edit(adapter, base_model_name_or_path=base)
    if base == "no":
        settings = json.loads((adapter / SETTINGS).read_text())
        del settings["base_model_name_or_path"]
        (adapter / SETTINGS).write_text(json.dumps(settings))
    assert one_line(load, adapter) == (
        f'Adapter "{adapter}" does not say which model it belongs to: set '
        '"base_model_name_or_path" in its adapter_config.json.'
    )


@pytest.mark.parametrize("by_way", [False, True])
def test_an_adapter_of_itself(case: Any, by_way: bool) -> None:
    load, _, adapter = case
    base = adapter
    if by_way:
        base = Path(shutil.copytree(adapter, adapter.with_name("other")))
        edit(base, base_model_name_or_path=str(adapter))
    edit(adapter, base_model_name_or_path=str(base))
    assert "belongs to itself: name the model it was trained on" in one_line(load, adapter)


def test_an_adapter_whose_settings_are_damaged(case: Any) -> None:
    load, _, adapter = case
    (adapter / SETTINGS).write_text("{")
    assert f"{adapter / SETTINGS} is damaged" in one_line(load, adapter)


# Only the kind is asked for in "evaluate", which reads no weights.
of_weights = pytest.mark.parametrize(
    "case", [kind for kind in LOADERS if kind != "evaluate"], indirect=True
)


@of_weights
@pytest.mark.parametrize("changed", [{"alpha_pattern": []}, {"peft_type": 3}, {"r": "x"}])
def test_an_adapter_whose_settings_are_of_another_kind(case: Any, changed: Any) -> None:
    load, _, adapter = case
    edit(adapter, **changed)
    assert str(adapter) in one_line(load, adapter)


@of_weights
def test_an_adapter_of_another_rank(case: Any) -> None:
    load, start, adapter = case
    edit(adapter, r=3)
    assert one_line(load, adapter).endswith(f'does not fit its base "{start}".')


@of_weights
def test_an_adapter_of_a_base_of_another_width(case: Any) -> None:
    load, start, adapter = case
    path = adapter / WEIGHTS
    save_file({name: w[..., :1].contiguous() for name, w in load_file(path).items()}, path)
    assert one_line(load, adapter).endswith(f'does not fit its base "{start}".')


@of_weights
@pytest.mark.parametrize("change", ["renamed", "lost", "more"])
def test_an_adapter_whose_weights_fit_nothing(case: Any, change: str) -> None:
    load, start, adapter = case
    weights = load_file(adapter / WEIGHTS)
    first = min(weights)
    strange = first.replace("base_model.model", "base_model.model.elsewhere")
    made = {
        "renamed": {k.replace("base_model.model", "other"): w for k, w in weights.items()},
        "lost": {k: w for k, w in weights.items() if k != first},
        "more": weights | {strange: weights[first].clone()},
    }[change]
    save_file(made, adapter / WEIGHTS)
    message = one_line(load, adapter)
    assert message.startswith(f'Adapter "{adapter}" does not fit its base "{start}": ')
    assert message.endswith("is not in it." if change == "more" else "is missing.")


@of_weights
def test_an_adapter_of_a_model_of_another_kind(case: Any, tmp_path: Path) -> None:
    load, _, adapter = case
    encoder_of("vit").save_pretrained(tmp_path / "vit")
    edit(adapter, base_model_name_or_path=str(tmp_path / "vit"))
    assert one_line(load, adapter)


@of_weights
def test_damaged_weights_of_an_adapter(case: Any) -> None:
    load, _, adapter = case
    (adapter / WEIGHTS).write_bytes(b"no")
    assert one_line(load, adapter).startswith(f'Cannot load model "{adapter}":')
