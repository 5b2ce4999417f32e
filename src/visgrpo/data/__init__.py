"""Images, masks, text and feedback tables; built-in worlds; everything seeded."""

from visgrpo.data.table import Splits, Table

__all__ = ["Splits", "Table"]
