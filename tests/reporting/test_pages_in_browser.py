"""Pages of every kind of run in a real browser: whole, offline, and without a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import language_run, representation_run, segmentation_run, vlm_run
from playwright.sync_api import Browser

from browsing import browser as browser
from browsing import needs_chromium
from visgrpo.reporting import compare_runs, write_report

pytestmark = needs_chromium

MakeRun = Callable[..., Path]
EVIL = ("<script>document.title='run'</script>", "\"><img src=x onerror=document.title='run'>")
# Asked in the page: images that do not show, and whatever sticks out of the window to the right.
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
OVERHANG = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def evil_run(make_run: MakeRun, name: str = "run", seed: int = 0) -> Path:
    note = {"note": EVIL[0], "model": EVIL[1]}
    keys = ("kl", "eval/accuracy")
    return make_run(name, steps=4, seed=seed, keys=keys, classes=EVIL, config=note)


RUNS: dict[str, Callable[[MakeRun], Path]] = {
    "clip": evil_run,
    "unfinished": lambda make_run: make_run(steps=4, keys=("kl",), finished=False, samples=False),
    "language": language_run,
    "vlm": vlm_run,
    "representation": representation_run,
    "segmentation": segmentation_run,
}


def page_of(name: str, make_run: MakeRun, tmp_path: Path) -> Path:
    if name != "compared":
        return write_report(RUNS[name](make_run))
    runs = [evil_run(make_run, f"<b>{seed}", seed) for seed in range(2)]
    return compare_runs(runs, None, tmp_path / "compare.html")


@pytest.mark.parametrize("name", [*RUNS, "compared"])
def test_a_page_in_a_browser(
    name: str, browser: Browser, make_run: MakeRun, tmp_path: Path
) -> None:
    path = page_of(name, make_run, tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    title = page.title()
    assert title not in ("", "run")
    assert (page.evaluate(BROKEN), page.evaluate(OVERHANG)) == (0, 0)
    page.set_viewport_size({"width": 390, "height": 844})  # a phone
    assert page.evaluate(OVERHANG) == 0
    closed = page.locator("details:not([open]) > summary")
    while closed.count():  # those inside others too
        closed.first.click()
    assert page.title() == title
    assert problems == []
    assert [url for url in asked if not url.startswith("data:image/")] == [path.as_uri()]
    context.close()
