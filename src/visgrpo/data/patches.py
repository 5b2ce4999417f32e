"""What is true of a whole cell of a feature map, told from the pixels in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from visgrpo.errors import UserError


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
