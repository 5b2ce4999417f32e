"""Over what the advantages of a reward make sense."""

from __future__ import annotations

from typing import Literal

Scope = Literal["any", "batch"]
