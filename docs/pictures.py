"""Make docs/pictures/*.png: pages at 1200 and 390 pixels, commands in a terminal of 80 columns.

    visgrpo demo --output runs/demo
    python docs/pictures.py runs/demo

Chromium is the system's own. Nothing is loaded from the network.
"""

from __future__ import annotations

import html
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent / "pictures"
HEIGHTS = {1200: 900, 390: 844}
PORT = 8799
TERMINAL = (
    "background:#11151b;color:#e8ecf2;font:15px/1.3 'DejaVu Sans Mono',monospace;padding:18px"
)


def main(demo: Path) -> None:
    HERE.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height in HEIGHTS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            for name, file in (("report", "grpo/report.html"), ("compare", "compare.html")):
                page.goto((demo / file).resolve().as_uri())
                keep(page, f"{name}-{width}")
            judging(page, demo, f"collect-{width}")
        terminal(browser, "help", "--help")
        terminal(browser, "clip-help", "clip", "--help")
        terminal(browser, "mistake", "clip", "--lr", "1e-3")
        browser.close()


def judging(page: Page, demo: Path, name: str) -> None:
    """Photograph the page of judging, on pictures and the start of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model", demo / "start" / "model", "--data", demo / "people" / "pictures"]
        words += ["--store", Path(folder) / "feedback.db", "--port", PORT]
        process = subprocess.Popen(command("feedback", "collect", *map(str, words)))
        try:
            page.goto(awaited(f"http://127.0.0.1:{PORT}/"))
            page.get_by_role("textbox").fill("Ann")
            page.keyboard.press("Enter")
            page.locator("#labels button:enabled").first.wait_for()
            keep(page, name)
        finally:
            process.terminate()
            process.wait()


def awaited(address: str) -> str:
    """Return the address once somebody answers there."""
    for _ in range(600):
        try:
            urllib.request.urlopen(address).close()
            return address
        except urllib.error.URLError:
            time.sleep(0.2)
    raise SystemExit(f"{address} does not answer.")


def terminal(browser: Browser, name: str, *words: str) -> None:
    """Photograph what a command says in 80 columns."""
    surroundings = {**os.environ, "COLUMNS": "80", "PYTHONUNBUFFERED": "1"}
    said = subprocess.run(
        command(*words),
        env=surroundings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ).stdout
    lines = "\n".join(said.splitlines()[:44])
    page = browser.new_page(viewport={"width": 790, "height": 200})
    typed = html.escape(f"$ visgrpo {' '.join(words)}\n{lines}")
    page.set_content(f"<body style='margin:0'><pre style=\"margin:0;{TERMINAL}\">{typed}</pre>")
    keep(page, f"terminal-{name}", whole=True)
    page.close()


def keep(page: Page, name: str, whole: bool = False) -> None:
    """Save what is seen, in 200 colours: small, and sharp enough."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.quantize(200).save(HERE / f"{name}.png", optimize=True)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "visgrpo", *words]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
