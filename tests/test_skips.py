"""Where nothing may be skipped, a skip fails, but for missing hardware or rights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).with_name("skips.py")
TEST = """
import pytest

@pytest.mark.skipif(True, reason="{reason}")
def test_skipped(): ...
"""
MODULE = 'import pytest\n\npytest.skip("{reason}", allow_module_level=True)\n'


@pytest.mark.parametrize("source", [TEST, MODULE])
@pytest.mark.parametrize(
    ("named", "reason", "code"),
    [
        (None, "trl is not installed", 0),
        ("", "there is a GPU", 0),
        ("", "trl is not installed", 1),
        ("chromium is not installed\ntrl is not installed", "trl is not installed", 0),
        ("chromium is not installed", "trl is not installed", 1),
    ],
)
def test_what_may_be_skipped(
    named: str | None, reason: str, code: int, source: str, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN.read_text())
    (tmp_path / "test_skipped.py").write_text(source.format(reason=reason))
    (tmp_path / "test_other.py").write_text("def test_other(): ...")
    environment = {k: v for k, v in os.environ.items() if k != "VISGRPO_MAY_SKIP"}
    environment |= {} if named is None else {"VISGRPO_MAY_SKIP": named}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    if code:
        assert f"Nothing may be skipped here for this reason. Skipped: {reason}" in done.stdout
