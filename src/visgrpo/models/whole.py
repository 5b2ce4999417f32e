"""What a folder must hold before anything of it is loaded.

Libraries pass over much that is damaged, and take another setting, or another model, in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from visgrpo.errors import UserError
from visgrpo.files import checked, parse_json, read_json
from visgrpo.models.parts import ADAPTER_FILE, INFO_FILE, is_adapter

OWN_TAG = "tags: [visgrpo, "
"""How the card of a model that visgrpo saved says so."""
_MEND = "Save the model again."


class ImageSettings(TypedDict, total=False):
    """Of preprocessor_config.json, what decides how images are made."""

    do_resize: bool | None
    do_rescale: bool | None
    do_normalize: bool | None
    do_center_crop: bool | None
    do_convert_rgb: bool | None
    do_pad: bool | None
    rescale_factor: float | None
    image_mean: list[float] | float | None
    image_std: list[float] | float | None


class AdapterSettings(TypedDict, total=False):
    """Of adapter_config.json, what decides what the adapter's weights do."""

    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool | None


class GenerationSettings(TypedDict, total=False):
    """Of generation_config.json, what ends a text."""

    eos_token_id: int | list[int] | None
    pad_token_id: int | None


_SHAPES: dict[str, Any] = {
    "preprocessor_config.json": ImageSettings,
    ADAPTER_FILE: AdapterSettings,
    "generation_config.json": GenerationSettings,
}
# Of these a tokenizer's settings have one, in every version of transformers.
_OF_TOKENIZERS = ("tokenizer_class", "model_max_length", "eos_token", "pad_token", "unk_token")


def check_model_name(name: str) -> None:
    """Refuse a model that is sure to fail, without loading it.

    Raises:
        UserError: for a folder without a model, with a damaged file, or whose weights are in a file
            that transformers does not read.
    """
    path = Path(name)
    if not path.exists():
        in_a_folder = "/" in name and path.parent.is_dir()  # else it may be OWNER/NAME on the Hub
        if in_a_folder or name.count("/") > 1 or name.startswith((".", "~")):
            raise UserError(f'Model folder "{name}" does not exist.')
        return
    if not path.is_dir():
        raise UserError(f'Model "{name}" is a file; give the folder that holds config.json.')
    if is_adapter(name):
        if not (path / "adapter_model.safetensors").exists():
            raise UserError(f'Adapter "{name}" has no adapter_model.safetensors.')
        _check_whole(path)
        return
    if not (path / "config.json").exists():
        inside = path / "model"
        hint = f" Did you mean {inside}?" if (inside / "config.json").exists() else ""
        runs = sorted(file.parent.parent.name for file in path.glob("*/model/config.json"))
        if runs:  # a story or a sweep
            hint = f" It holds runs that do: name {path / runs[0]}, or one of {', '.join(runs)}."
        raise UserError(f'"{name}" holds no model: config.json is missing.{hint}')
    others = [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")]
    if others and not [*path.glob("*.safetensors"), *path.glob("pytorch_model*")]:
        raise UserError(
            f'"{name}" has its weights in {others[0].name}, which is no file of transformers: '
            "convert it to safetensors first (save_pretrained does)."
        )
    _check_whole(path)


def _check_whole(folder: Path) -> None:
    """Refuse a folder with a damaged file, some of which transformers would pass over."""
    try:
        for path in sorted(folder.glob("*.json")):
            values = parse_json(path.read_text(encoding="utf-8"), finite=False)
            if not isinstance(values, dict | list):
                raise ValueError("not an object")
            if path.name in _SHAPES:
                checked(values, _SHAPES[path.name])
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as stored:
                stored.keys()
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f'Cannot load model "{folder}": {path} is damaged ({error}). {_MEND}'
        ) from error
    tokenizer, card = folder / "tokenizer_config.json", folder / "README.md"
    if tokenizer.exists() and not set(_OF_TOKENIZERS) & set(read_json(tokenizer)):
        raise UserError(
            f"{tokenizer} has none of the settings of a tokenizer ({', '.join(_OF_TOKENIZERS)}): "
            f"another one would be made in its place. {_MEND}"
        )
    own = card.exists() and OWN_TAG in card.read_text(encoding="utf-8", errors="replace")
    if own and not (folder / INFO_FILE).exists() and not is_adapter(str(folder)):
        raise UserError(
            f"{folder} was saved by visgrpo, as its README.md says, and has no {INFO_FILE}, which "
            f"says what it has learned from and how it is asked. {_MEND}"
        )
