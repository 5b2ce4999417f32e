"""Attacks on the server of the page of judging: by HTTP, and by what a person types in Chromium."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from trials import ROOT, Bench, Count, Row, rows_of

SAID = "document.title='executed'"
# Names that a person gives: text for everybody else, never a script, an address or a query.
NAMES = (
    f"<script>{SAID}</script>",
    f'<img src=x onerror="{SAID}">',
    f"<svg onload={SAID}>",
    f'<svg><animate onbegin="{SAID}" attributeName=x dur=1s>',
    f'"><script>{SAID}</script>',
    f"'-({SAID})-'",
    f'" autofocus onfocus="{SAID}" x="',
    f"</title><script>{SAID}</script>",
    f"</textarea><script>{SAID}</script>",
    f"<!--><script>{SAID}</script>-->",
    f"<iframe srcdoc=\"<script>parent.{SAID}</script>\">",
    f"<a href=\"javascript:{SAID}\">a</a>",
    f"javascript:{SAID}",
    f"<body onload={SAID}>",
    f"<input onfocus={SAID} autofocus>",
    f"<details open ontoggle={SAID}>",
    f"<video><source onerror={SAID}>",
    f"<math><mtext></p><img src=x onerror={SAID}>",
    f"${{{SAID}}}",
    f"{{{{constructor.constructor(\"{SAID}\")()}}}}",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:1/'>",
    "<base href=http://127.0.0.1:1/>",
    "<link rel=stylesheet href=http://127.0.0.1:1/x.css>",
    "<style>body{background:url(http://127.0.0.1:1/x.png)}</style>",
    "<form action=http://127.0.0.1:1/><input type=submit>",
    "'; DROP TABLE impressions; --",
    "\" OR 1=1 --",
    "Ann'); DELETE FROM impressions WHERE ('1'='1",
    "../../../../etc/passwd",
    "%00%0d%0aSet-Cookie: a=b",
    "\u202eeve\u202c",
    "a" * 200,
    "&lt;script&gt;",
    "\U0001f600" * 20,
)  # fmt: skip


@contextmanager
def served(store: Path) -> Iterator[int]:
    """The server of the tests in a process of its own, and its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    script = ROOT / "tests" / "collecting" / "serving.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(store), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield port
        finally:
            process.terminate()
            _, said = process.communicate()
            if "Traceback" in said:
                print(said, file=sys.stderr)


def attacks(bench: Bench, scale: float, seed: int) -> list[Row]:
    """Send the attacks of the tests to a server, then type names into its page."""
    sys.path.insert(0, str(ROOT / "tests" / "collecting"))
    from attacks import campaign

    sent, typed = Count("an attack by HTTP"), Count("a name typed in Chromium")
    store = bench.folder / "attacked.db"
    with served(store) as port:
        for each in campaign(port):
            sent.add("stood" if not each.wrong else "otherwise", each.wrong and str(each))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        typed.add("skipped: chromium is not installed")
    else:
        with served(bench.folder / "typed.db") as port:
            for name, wrong, refused in typed_names(chromium, port):
                end = "otherwise" if wrong else "refused" if refused else "text"
                typed.add(end, wrong and f"{name}: {wrong}")
        kept = judgements(bench.folder / "typed.db")
        if kept != typed.ends.get("text", 0):
            typed.add("otherwise", f"{kept} judgements are kept of {typed.ends}")
    return rows_of(sent, typed)


def typed_names(chromium: str, port: int) -> Iterator[tuple[str, str, bool]]:
    """Give each name, judge once, and say what else than that came of it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in NAMES:
            context = browser.new_context()
            page = context.new_page()
            odd: list[str] = []
            page.on("dialog", lambda dialog, odd=odd: (odd.append("a dialog"), dialog.dismiss()))
            page.on("pageerror", lambda error, odd=odd: odd.append(str(error)))
            page.on("request", lambda asked, odd=odd: _note_foreign(asked, port, odd))
            page.goto(f"http://127.0.0.1:{port}/")
            refused = not judges_as(page, name)
            if page.title() == "executed" or page.locator("body").count() != 1:
                odd.append("a script ran")
            yield name, ", ".join(odd), refused
            context.close()
        browser.close()


def judges_as(page: Any, name: str) -> bool:
    """Give a name and judge once; whether the page took the name."""
    from playwright.sync_api import expect

    page.get_by_role("textbox").fill(name)
    with page.expect_response("**/api/person") as answered:
        page.keyboard.press("Enter")
    if answered.value.status != 200:
        return False
    choice = page.locator("#labels button:enabled").first
    choice.wait_for()
    choice.click()
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_contain_text("1 by you")
    page.reload()
    choice.wait_for()
    return True


def _note_foreign(asked: Any, port: int, odd: list[str]) -> None:
    if not asked.url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")):
        odd.append(f"asked for {asked.url}")


def judgements(store: Path) -> int:
    with closing(sqlite3.connect(store)) as connection:
        return int(
            connection.execute("SELECT COUNT(DISTINCT judgement) FROM impressions").fetchone()[0]
        )
