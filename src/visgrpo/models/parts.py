"""A model with everything that belongs to it, and what loading any of them takes.

In float32, and never with code of the checkpoint's own: every `from_pretrained` of transformers
goes through `pretrained`. Safetensors where there are any; else torch reads weights, and nothing
else.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NotRequired

import torch
from safetensors import safe_open
from torch import Tensor, nn
from typing_extensions import TypedDict

from visgrpo.data.preprocess import Preprocess
from visgrpo.errors import UserError
from visgrpo.files import read_json

INFO_FILE = "visgrpo.json"
_MEND = "Save the model again."
ADAPTER_FILE = "adapter_config.json"
# Of each of these lists of names a folder with a tokenizer has one.
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json vocab.json vocab.txt tokenizer.model spiece.model sentencepiece.bpe.model",
)
_BLOCK = re.compile(r".*?(?=\.?\b\d+\.)")  # what stands before the number of a block
_CONVNEXT_CROPS_BELOW = 384  # pixels: larger images are resized without a crop


class Stage(TypedDict):
    """Data of one stage of a model; see `visgrpo.tasks.lineage.Learned`."""

    data: str
    seed: int
    validation_fraction: float
    train_slice: NotRequired[str | None]


class Info(TypedDict, total=False):
    """What visgrpo writes beside a model that it saves, and reads back."""

    task: str
    classes: list[str]
    templates: list[str]
    hidden: int
    pool: str
    reward_mean: float
    reward_std: float
    learned: list[Stage]
    preset: Literal["tiny", "nano", "small"] | None  # None of a checkpoint of other people
    answers: Literal["counting", "boxes", "points", "text"]
    style: Literal["reasoning", "direct"]
    prompt: str
    coordinates: str


@dataclass(frozen=True, repr=False)
class Parts:
    """A model of any kind, with everything that belongs to it.

    Attributes:
        name: where it was loaded from.
        model: of transformers, as it is saved; of a reward model our wrapper of it.
        tokenizer: None of a backbone.
        processor: of images, or of images and prompts (`VisionProcessor`); None of a model that
            sees none.
        info: what visgrpo saved beside it (visgrpo.json).
        notes: sentences for the user, on what was decided while loading.
    """

    name: str
    model: Any
    tokenizer: Any = None
    _: KW_ONLY
    processor: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def preprocess(self) -> Preprocess:
        """What the image processor does to an image.

        Raises:
            UserError: if a setting is not understood, by name.
        """
        return preprocess_of(self.processor)

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.model.parameters())
        return f'Parts("{self.name}": {type(self.model).__name__} of {weights:,} weights)'


@dataclass(frozen=True)
class StoredSettings:
    """Settings of an image processor that transformers builds only with torchvision."""

    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings as they were read."""
        text = json.dumps(self.settings, indent=2, sort_keys=True)
        (Path(folder) / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def preprocess_of(processor: Any) -> Preprocess:
    """Read an image processor's settings, ConvNeXt's crop and EfficientNet's deviation too.

    Raises:
        UserError: if a setting is not understood, by name.
    """
    settings = dict(processor.to_dict())
    fraction = settings.pop("crop_pct", None)
    if settings.pop("include_top", None) and settings.get("image_std") is not None:
        # EfficientNetImageProcessor divides by the deviation a second time.
        settings["image_std"] = [deviation**2 for deviation in settings["image_std"]]
    edge = (settings.get("size") or {}).get("shortest_edge")
    if fraction is not None and edge is not None:  # what ConvNextImageProcessor makes of them
        square = {"height": edge, "width": edge}
        if edge < _CONVNEXT_CROPS_BELOW:
            resized = {"shortest_edge": int(edge / fraction)}
            settings.update(size=resized, do_center_crop=True, crop_size=square)
        else:
            settings.update(size=square)
    return Preprocess.from_processor(settings)


def model_folder(name: str) -> str:
    """Return the model inside a run's folder; any other name as it is."""
    inside = Path(name) / "model"
    is_run = (inside / "config.json").exists() and not (Path(name) / "config.json").exists()
    return str(inside) if is_run else name


def is_adapter(name: str) -> bool:
    """Whether a folder holds a peft adapter."""
    return (Path(name) / ADAPTER_FILE).exists()


def read_info(name: str) -> Mapping[str, Any]:
    """Return what visgrpo saved beside a model (classes, templates), empty for other models."""
    path = Path(name) / INFO_FILE
    info: Mapping[str, Any] = read_json(path, Info, _MEND) if path.exists() else {}
    if info.get("learned") == []:  # what was held out from what it learned from would be lost
        raise UserError(f"{path} says that the model has learned from nothing. {_MEND}")
    return info


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Say whatever libraries raise for a model that cannot be loaded in one line.

    Settings of a wrong kind make transformers, tokenizers and peft raise anything.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "custom code" in str(error):
            raise UserError(
                f'"{name}" brings code of its own (auto_map in its config.json), which could do '
                "anything and is never run here: take a checkpoint of a class of transformers' own."
            ) from error
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
        if isinstance(error, OSError) and not Path(name).exists():
            said = f"no such folder is here, nor does the Hub give one of this name ({said})."
        raise UserError(
            f'Cannot load model "{name}": {kind}{said} Check the name, the folder or the network.'
        ) from error


def pretrained(auto: str, name: str, **settings: Any) -> Any:
    """Load with one of transformers' Auto classes, and never run code of the checkpoint's own.

    Args:
        auto: "AutoConfig", "AutoTokenizer", "AutoModelForCausalLM" and so on.
    """
    import transformers

    return getattr(transformers, auto).from_pretrained(name, trust_remote_code=False, **settings)


def pickled_weights(name: str) -> str | None:
    """Return the file of weights that torch must unpickle; None where safetensors are there."""
    from transformers import utils

    def stored(*files: str) -> bool:
        found = (cached_file(name, f, _raise_exceptions_for_missing_entries=False) for f in files)
        return any(path is not None for path in found)

    cached_file = utils.cached_file
    if stored(utils.SAFE_WEIGHTS_NAME, utils.SAFE_WEIGHTS_INDEX_NAME):
        return None
    return next((f for f in (utils.WEIGHTS_NAME, utils.WEIGHTS_INDEX_NAME) if stored(f)), None)


def _has_one(folder: Path, names: str) -> bool:
    return any((folder / name).exists() for name in names.split())


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer, and see that it works.

    Raises:
        UserError: for a folder in which transformers would find another than the model's own.
    """
    folder = Path(name)
    lacks = [names for names in _TOKENIZER_FILES if not _has_one(folder, names)]
    if folder.is_dir() and lacks:
        raise UserError(
            f'"{name}" has no {lacks[0].split()[0]}: another tokenizer would be made in its place. '
            "Save the model's tokenizer into the folder."
        )
    tokenizer = pretrained("AutoTokenizer", name)
    known = sorted(tokenizer.get_vocab().values())[:4]  # other text may have no tokens
    tokenizer(tokenizer.decode(known))
    return tokenizer


def load_pretrained(
    auto: str, name: str, *, may_lack: re.Pattern[str] | None = None
) -> tuple[Any, list[str]]:
    """Load a model of one of transformers' Auto classes in float32.

    Where there are no safetensors, ``torch.load(weights_only=True)`` reads tensors, and runs no
    code.

    Args:
        may_lack: matches the names of weights that may be missing.

    Returns:
        The model, and the names of the weights that are missing, which are random.

    Raises:
        UserError: where others are missing, or are of other shapes than the configuration says.
    """
    report: Any
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # asks the Hub in a thread
    pickled = pickled_weights(name)
    safely: dict[str, Any] = {"use_safetensors": pickled is None, "weights_only": True}
    safely["output_loading_info"] = True
    _check_size(auto, name)
    with without_progress_bars():
        try:
            model, report = pretrained(auto, name, dtype=torch.float32, **safely)
        except (EOFError, UnpicklingError) as error:
            raise UserError(
                f'"{name}": {pickled} is damaged, or holds more than weights: it could run code, '
                "and nothing of it was. Take safetensors."
            ) from error
        except RuntimeError as error:  # which prints the shapes, but does not say them
            _, report = pretrained(auto, name, ignore_mismatched_sizes=True, **safely)
            misfits = sorted(report["mismatched_keys"])
            if not misfits:
                raise
            weight, stored, expected = misfits[0]
            raise UserError(
                f'"{name}" has {len(misfits)} weight(s) of other shapes than its config.json says: '
                f"{weight} is {tuple(stored)}, not {tuple(expected)}."
            ) from error
    stray = _stray_block(model, report["unexpected_keys"])
    if stray:
        raise UserError(
            f'"{name}" has weights that its config.json has no place for, as {stray}: it would '
            "be another model. Save the whole model again."
        )
    lacking = sorted(report["missing_keys"])
    needed = [key for key in lacking if not (may_lack and may_lack.match(key))]
    if needed:
        raise UserError(
            f'"{name}" lacks {len(needed)} weight(s), such as {needed[0]}: they would be random. '
            "Save the whole model again."
        )
    return model, lacking


def _check_size(auto: str, name: str) -> None:
    """Refuse settings that describe far more than the weights hold, before memory runs out."""
    import transformers

    stored = 0
    for file in Path(name).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            stored += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    config = pretrained("AutoConfig", name)
    if not stored or getattr(config, "quantization_config", None):  # whose numbers are packed
        return
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(config, trust_remote_code=False)
    described = sum(weight.numel() for weight in model.parameters())
    if described > 2 * stored + 2**24:
        raise UserError(
            f'"{name}": its config.json describes {described:,} weights, and {stored:,} are there: '
            "it belongs to another model, or is damaged."
        )


def _stray_block(model: Any, unexpected: Iterable[str]) -> str | None:
    """Return a weight of a block that is one too many for the model; None where there is none.

    Other weights may well be too many, such as the head of a classifier.
    """
    lists = {match[0] for match in map(_BLOCK.match, model.state_dict()) if match}
    found = ((name, _BLOCK.match(name)) for name in sorted(unexpected))
    return next((name for name, match in found if match and match[0] in lists), None)


def first_misfit(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[str, tuple[int, ...] | None, tuple[int, ...] | None] | None:
    """Return the first weight that is missing, too many or of another shape, with both shapes."""
    theirs, ours = (
        {name: tuple(tensor.shape) for name, tensor in each.items()} for each in (found, expected)
    )
    names = (key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key))
    name = next(names, None)
    return None if name is None else (name, theirs.get(name), ours.get(name))


def load_images(name: str) -> Any:
    """Load an image processor of transformers' pillow kind, or its settings where it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    folder = Path(name)
    own, shared = (folder / f"{kind}_config.json" for kind in ("preprocessor", "processor"))
    stored = own.exists() or (shared.exists() and "image_processor" in read_json(shared))
    if folder.is_dir() and not stored:
        raise UserError(
            f'"{name}" has no preprocessor_config.json: images would be made otherwise than the '
            "model has seen them. Save the model's image processor into the folder."
        )
    try:
        return pretrained("AutoImageProcessor", name, backend="pil")
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
        return StoredSettings(settings)


def without_dropout(module: nn.Module) -> None:
    """Switch every dropout of a model off, in place, and layers that are left out at random.

    A policy that is scored under other masks than it was drawn under is another policy. Families
    call the numbers attention_dropout, dropout, dropout_prob, drop_prob or layerdrop.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the screen inside the block: it belongs to ours."""
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()
