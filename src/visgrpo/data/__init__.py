"""Images, masks, text and feedback tables; built-in worlds; everything seeded."""

from visgrpo.data.dataset import ImageDataset, Splits

__all__ = ["ImageDataset", "Splits"]
