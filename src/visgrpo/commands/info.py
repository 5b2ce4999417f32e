"""What this machine has: versions, devices, extras and caches, for `visgrpo info`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from visgrpo.options import Options
from visgrpo.terminal import show, show_table


@dataclass(frozen=True)
class InfoConfig(Options):
    """Print versions, devices, extras and caches with their sizes, and how to clear them."""

    example = "visgrpo info"


def info(config: InfoConfig) -> dict[str, str]:
    """Print what this machine has, and return it by name."""
    caches = _caches()
    sizes = {f"cache of {name}": _size(folder) for name, folder in caches.items()}
    rows = {**_versions(), **_devices(), **dict(_extras()), **sizes}
    show_table([], [list(row) for row in rows.items()])
    for name, folder in caches.items():
        if folder.exists():
            show(f"Clear the cache of {name}: rm -r {shlex.quote(str(folder))}")
    return rows


def _versions() -> dict[str, str]:
    from visgrpo.training.run_directory import versions

    return versions()


def _devices() -> dict[str, str]:
    import torch

    found = {"CPU": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"}
    for place in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(place)
        found[f"GPU {place}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return found if len(found) > 1 else {**found, "GPU": "none that torch can use"}


def _extras() -> Iterator[tuple[str, str]]:
    """What can be installed besides, and whether it is: by the package's own metadata."""
    said = metadata("visgrpo")
    for extra in said.get_all("Provides-Extra") or ():
        wanted = [
            re.split(r"[ ;<>=!~\[]", line)[0]
            for line in said.get_all("Requires-Dist") or ()
            if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", line)
        ]
        missing = [name for name in wanted if not _is_installed(name)]
        lacking = f'lacks {", ".join(missing)}: pip install "visgrpo[{extra}]"'
        yield f"extra {extra}", lacking if missing else "installed"


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _caches() -> dict[str, Path]:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    from visgrpo.data.kept import default_folder

    return {
        "features": default_folder(),
        "the Hub": Path(HF_HUB_CACHE),
        "data sets": Path(HF_DATASETS_CACHE),
    }


def _size(folder: Path) -> str:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return f"{sum(file.stat().st_size for file in files) / 2**20:,.1f} MiB"
