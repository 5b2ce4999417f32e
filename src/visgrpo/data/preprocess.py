"""An image processor's settings, applied with pillow and torch alone; masks as they come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from visgrpo.errors import UserError

# What a processor's dict may hold besides the settings below without changing the pixels.
_IGNORED = {
    "auto_map",
    "data_format",
    "default_to_square",
    "device",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "input_data_format",
    "processor_class",
    "return_tensors",
}
_KNOWN = {
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "rescale_factor",
    "resample",
    "size",
}


@dataclass(frozen=True)
class Preprocess:
    """Turns an RGB image into the (3, H, W) float32 tensor that a checkpoint expects.

    The steps are resize, centre crop (padding with zeros where the image is smaller), rescale and
    normalise; one that is None is left out. Equal to the pillow backend of transformers.

    Attributes:
        shortest_edge: pixels of the shorter side after resizing, the ratio kept.
        size: exact (height, width) after resizing; not together with `shortest_edge`.
        resample: pillow's number of the filter.
        crop: (height, width) of the centre crop.
        rescale: factor on the 0 to 255 values.
        mean: per channel, subtracted after rescaling.
        std: per channel, divided by.
    """

    shortest_edge: int | None = None
    size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC
    crop: tuple[int, int] | None = None
    rescale: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def from_processor(cls, processor: Any) -> Preprocess:
        """Read the settings of a transformers image processor, or of its `to_dict()`.

        Processors of CLIP, SigLIP, BiT (used by DINOv2) and ViT are understood.

        Raises:
            UserError: if a setting is not understood, by name.
        """
        settings = processor if isinstance(processor, Mapping) else processor.to_dict()
        unknown = [
            name
            for name, value in settings.items()
            if name not in _KNOWN | _IGNORED and value not in (None, False)
        ]
        if unknown:
            raise UserError(
                f'The image processor\'s setting "{unknown[0]}" ({settings[unknown[0]]!r}) is not '
                "understood; use a checkpoint with a CLIP, SigLIP, BiT or ViT image processor."
            )
        resize = _on(settings, "do_resize")
        normalize = _on(settings, "do_normalize")
        shortest_edge, size = _target(settings.get("size")) if resize else (None, None)
        return cls(
            shortest_edge=shortest_edge,
            size=size,
            resample=_resample(settings.get("resample")),
            crop=_crop(settings) if settings.get("do_center_crop") else None,
            rescale=settings.get("rescale_factor", 1 / 255)
            if _on(settings, "do_rescale")
            else None,
            mean=_channels(settings, "image_mean") if normalize else None,
            std=_channels(settings, "image_std") if normalize else None,
        )

    def for_dense(self, size: tuple[int, int] | None = None) -> Preprocess:
        """Return these settings for work on every pixel: no crop, the checkpoint's normalisation.

        Args:
            size: (height, width) to resize every image to; None keeps each image's own size.

        Raises:
            UserError: if a side is below 1.
        """
        if size is not None and min(size) < 1:
            raise UserError(f"The image size {size[0]} × {size[1]} must be 1 × 1 or more.")
        return replace(self, shortest_edge=None, size=size, crop=None)

    def mask(self, ids_HW: np.ndarray, ignore_index: int) -> torch.Tensor:
        """Return an image's mask as the image comes out: resized (nearest pixel) and cropped.

        Args:
            ids_HW: class ids, uint8, int16 or int32.
            ignore_index: what padding becomes.

        Returns:
            Class ids (H, W) of the given dtype.
        """
        target = self._resized(ids_HW.shape[1], ids_HW.shape[0])
        if target is not None:
            # Pillow has no 16-bit signed mode.
            wide = ids_HW if ids_HW.dtype == np.uint8 else ids_HW.astype(np.int32)
            resized = Image.fromarray(wide).resize(target, resample=Image.Resampling.NEAREST)
            ids_HW = np.asarray(resized).astype(ids_HW.dtype)
        if self.crop is not None:
            ids_HW = _center_crop_mask(ids_HW, *self.crop, ignore_index)
        return torch.from_numpy(ids_HW.copy())

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the (3, H, W) float32 tensor of an RGB image."""
        target = self._resized(image.width, image.height)
        if target is not None:
            image = image.resize(target, resample=self.resample)
        if self.crop is not None:
            image = _center_crop(image, *self.crop)
        # Rescaling in float64 before rounding to float32 keeps us equal to transformers.
        pixels = np.asarray(image, dtype=np.float64).transpose(2, 0, 1)
        if self.rescale is not None:
            pixels = pixels * self.rescale
        tensor = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        if self.mean is not None and self.std is not None:
            mean = torch.tensor(self.mean).view(3, 1, 1)
            std = torch.tensor(self.std).view(3, 1, 1)
            tensor = (tensor - mean) / std
        return tensor

    def _resized(self, width: int, height: int) -> tuple[int, int] | None:
        """Return (width, height) after resizing, in pillow's order."""
        if self.size is not None:
            return self.size[1], self.size[0]
        if self.shortest_edge is None:
            return None
        edge = self.shortest_edge
        # The order of multiplication and division decides the rounding of the longer side.
        if width <= height:
            return edge, int(edge * height / width)
        return int(edge * width / height), edge


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut (height, width) from the middle; what lies outside the image is black."""
    # Rounding down, also below zero, is transformers' way: odd padding puts one more row on top.
    left = (image.width - width) // 2
    top = (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _center_crop_mask(ids_HW: np.ndarray, height: int, width: int, outside: int) -> np.ndarray:
    """Cut what `_center_crop` cuts; what lies outside the mask becomes `outside`."""
    cut = ids_HW
    for axis, wanted in enumerate((height, width)):
        start = (ids_HW.shape[axis] - wanted) // 2
        stop = start + wanted
        missing = [(0, 0), (0, 0)]
        missing[axis] = (max(0, -start), max(0, stop - ids_HW.shape[axis]))
        cut = cut.take(range(max(0, start), min(stop, ids_HW.shape[axis])), axis)
        cut = np.pad(cut, missing, constant_values=outside)
    return cut


def _on(settings: Mapping[str, Any], name: str) -> bool:
    value = settings.get(name)
    return True if value is None else bool(value)


def _target(size: Any) -> tuple[int | None, tuple[int, int] | None]:
    # A bare number means the shortest edge to CLIP and a square to ViT: refused, not guessed.
    given = _sides(size)
    if set(given) == {"shortest_edge"}:
        return given["shortest_edge"], None
    if set(given) == {"height", "width"}:
        return None, (given["height"], given["width"])
    raise UserError(
        f'The image processor\'s setting "size" ({size!r}) is not understood; '
        "give shortest_edge, or height and width."
    )


def _crop(settings: Mapping[str, Any]) -> tuple[int, int]:
    size = settings.get("crop_size")
    if isinstance(size, int):
        return size, size
    given = _sides(size)
    if set(given) == {"height", "width"}:
        return given["height"], given["width"]
    raise UserError(
        f'The image processor\'s setting "crop_size" ({size!r}) is not understood; '
        "give height and width."
    )


def _sides(size: Any) -> dict[str, int]:
    if not isinstance(size, Mapping):
        return {}
    return {name: value for name, value in size.items() if value is not None}


def _resample(value: Any) -> int:
    if value is None:
        return int(Image.Resampling.BILINEAR)
    known = {int(filter_) for filter_ in Image.Resampling}
    if not isinstance(value, int) or int(value) not in known:
        raise UserError(
            f'The image processor\'s setting "resample" ({value!r}) is not understood; '
            f"give one of pillow's filters, {min(known)} to {max(known)}."
        )
    return int(value)


def _channels(settings: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = settings.get(name)
    values = (value,) * 3 if isinstance(value, int | float) else value
    if not isinstance(values, Sequence) or len(values) != 3:
        raise UserError(
            f'The image processor\'s setting "{name}" ({value!r}) is not understood; '
            "give one number per colour channel."
        )
    return tuple(float(number) for number in values)


def majority_labels(masks_NHW: Tensor, stride: int, ignore_index: int, classes: int) -> Tensor:
    """Return the most frequent class of each cell of `stride` × `stride` pixels.

    Ignored pixels have no vote, and ties go to the smaller id. A mask whose sides are no multiples
    of `stride` is padded on the right and at the bottom with ignored pixels. Memory grows with the
    pixels and not with the classes.

    Args:
        masks_NHW: class ids, of any integer type.
        stride: pixels of a cell's side.
        ignore_index: the id of pixels that belong to no class.
        classes: their number K.

    Returns:
        (N, ⌈H / stride⌉, ⌈W / stride⌉) int64 ids; `ignore_index` where no pixel of a cell is
        labelled.

    Raises:
        UserError: if `stride` is below 1.
    """
    if stride < 1:
        raise UserError(f"A cell's stride must be 1 pixel or more, not {stride}.")
    count, height, width = masks_NHW.shape
    ids = masks_NHW.long()
    # Ignored pixels become one id above the classes: the end of every sorted cell.
    ids = torch.where(ids == ignore_index, classes, ids)
    ids = functional.pad(ids, (0, -width % stride, 0, -height % stride), value=classes)
    rows, columns = ids.shape[1] // stride, ids.shape[2] // stride
    cells = ids.view(count, rows, stride, columns, stride).transpose(2, 3)
    ordered = cells.reshape(count, rows, columns, stride * stride).sort(dim=-1).values
    # A run of equal ids begins where an id differs from the one before; its length so far is the
    # distance to that place, and the longest run is the majority.
    place = torch.arange(stride * stride, device=ids.device)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    length = place - torch.where(begins, place, 0).cummax(dim=-1).values + 1
    length = torch.where(ordered == classes, 0, length)
    # Of equally long runs the first is wanted, and argmax does not promise the first maximum.
    winner = (length * stride * stride - place).argmax(dim=-1, keepdim=True)
    labels = ordered.gather(-1, winner).squeeze(-1)
    return torch.where(labels == classes, ignore_index, labels)
