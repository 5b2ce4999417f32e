"""The images of prompts as a vision tower takes them: some rows of pixels for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from visgrpo.errors import UserError


class Picture(NamedTuple):
    """One image, preprocessed.

    Attributes:
        pixels: (S, …) float32: flattened patches, or tiles (S, 3, H, W), as the tower takes them.
        grid: how the rows of pixels lie: (time, rows, columns).
        tokens: places that it takes in a prompt.
    """

    pixels: Tensor
    grid: tuple[int, int, int]
    tokens: int


@dataclass(frozen=True)
class Pictures:
    """The I images of N prompts, one prompt's after another's.

    Attributes:
        pixels: (S, …) rows of pixels of all images, one after another.
        grids_I3: the grid of each image, int64.
        rows_I: rows of pixels of each image.
        tokens_I: places that each takes in a prompt.
        counts_N: images of each prompt.
        keys: a name for the content of each image, by which its features may be kept; "" where
            they may not.
    """

    pixels: Tensor
    grids_I3: Tensor
    rows_I: tuple[int, ...]
    tokens_I: tuple[int, ...]
    counts_N: tuple[int, ...]
    keys: tuple[str, ...]

    @classmethod
    def of(
        cls, pictures_N: Sequence[Sequence[Picture]], keys_N: Sequence[Sequence[str]]
    ) -> Pictures | None:
        """Return the images of N prompts together; None where no prompt has any.

        Raises:
            UserError: where the rows of pixels of two images differ in shape.
        """
        each = [picture for pictures in pictures_N for picture in pictures]
        if not each:
            return None
        shapes = sorted({tuple(picture.pixels.shape[1:]) for picture in each})
        if len(shapes) > 1:
            raise UserError(
                f"Images of one batch are cut into pieces of different shapes, {shapes[0]} and "
                f"{shapes[-1]}: set one size in the model's preprocessor_config.json."
            )
        return cls(
            torch.cat([picture.pixels for picture in each]),
            torch.tensor([picture.grid for picture in each]),
            tuple(len(picture.pixels) for picture in each),
            tuple(picture.tokens for picture in each),
            tuple(map(len, pictures_N)),
            tuple(key for keys in keys_N for key in keys),
        )

    def __len__(self) -> int:
        return len(self.counts_N)

    def to(self, device: torch.device | str) -> Pictures:
        """Return the same on ``device``."""
        return replace(self, pixels=self.pixels.to(device), grids_I3=self.grids_I3.to(device))

    def select(self, rows: Sequence[int] | Tensor) -> Pictures | None:
        """Return the images of the prompts at some places, in order; None where none has any."""
        ends = torch.tensor(self.counts_N).cumsum(0).tolist()
        chosen = torch.as_tensor(rows).tolist()
        images = [i for row in chosen for i in range(ends[row] - self.counts_N[row], ends[row])]
        if not images:
            return None
        picked = self.images(images)
        return replace(picked, counts_N=tuple(self.counts_N[row] for row in chosen))

    def repeated(self, times: int) -> Pictures | None:
        """Return every prompt's images ``times`` times, for as many copies of the prompt."""
        return self.select([row for row in range(len(self)) for _ in range(times)])

    def images(self, indices: Sequence[int]) -> Pictures:
        """Return some images, one or more, as those of one prompt each."""
        parts = self.pixels.split(self.rows_I)
        return Pictures(
            torch.cat([parts[i] for i in indices]),
            self.grids_I3[torch.tensor(indices, device=self.grids_I3.device)],
            tuple(self.rows_I[i] for i in indices),
            tuple(self.tokens_I[i] for i in indices),
            (1,) * len(indices),
            tuple(self.keys[i] for i in indices),
        )
