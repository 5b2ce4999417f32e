"""What the tests ask of a page: its text, its tags, and that it loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Text, tags and every attribute of a page, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words += data + " "


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


def squeeze(text):
    return " ".join(text.split())


def assert_offline(html):
    page = Page(html)
    for name, value in page.attributes:
        if name in ("src", "srcset", "href", "data", "poster", "action", "xlink:href"):
            inside = name == "href" and value.startswith("#")
            assert inside or value.startswith("data:image/"), (name, value[:60])
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    styles = re.findall(r"<style>.*?</style>", html, re.DOTALL) + re.findall(r'style="[^"]*"', html)
    assert not [style for style in styles if re.search(r"@import|url\(|https?:", style)]
    assert not re.search(r"""(src|href|srcset)\s*=\s*["']?\s*(https?:)?//""", html)
