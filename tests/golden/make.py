"""Make the golden records again: `python tests/golden/make.py [NAME…]`, all without a name.

Also the frozen lists of options and public names: `python tests/golden/make.py lists`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main(names: list[str]) -> None:
    from frozen import write_lists

    if not names or "lists" in names:
        write_lists()
    if names != ["lists"]:
        write_records([name for name in names if name != "lists"])


def write_records(names: list[str]) -> None:
    import torch
    from runs import RUNS, Workshop

    from record import written

    torch.set_num_threads(1)
    folder = HERE / "records"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        os.environ["VISGRPO_CACHE"] = str(Path(root) / "cache")
        workshop = Workshop(Path(root))
        for name in names or RUNS:
            text = written(workshop.make(name))
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
            print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
