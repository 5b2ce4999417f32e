"""`visgrpo report` and `visgrpo compare` read files: no library that trains is loaded for them."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from visgrpo.cli import main
main(["report", sys.argv[1]])
main(["compare", sys.argv[1], sys.argv[2], "--metric", "kl", "--output", sys.argv[3]])
heavy = {"torch", "transformers", "accelerate", "datasets", "peft", "sklearn", "duckdb"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_pages_are_written_without_torch(make_run, tmp_path):
    runs = [str(make_run(name, steps=1, keys=("kl",), method=name)) for name in ("a", "b")]
    page = tmp_path / "compare.html"
    subprocess.run([sys.executable, "-c", CODE, *runs, str(page)], check=True)
    assert page.exists()
