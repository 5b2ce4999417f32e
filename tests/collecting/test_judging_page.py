"""The page in a real browser: keys, people, troubles."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from serving import SCRIPT, plain_images, serving

from browsing import browser as browser
from browsing import needs_chromium
from visgrpo.collecting.collector import Design, LearningState
from visgrpo.collecting.design import Ask

pytestmark = needs_chromium


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@contextmanager
def person(browser: Browser, address: str, name: str, **options: Any) -> Iterator[Page]:
    """A person's own browser, past the question for the name; no error may reach its console."""
    context = browser.new_context(**options)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.get_by_role("textbox").fill(name)
    page.keyboard.press("Enter")
    ready(page)
    yield page
    context.close()
    assert problems == []


def ready(page: Page) -> None:
    """Wait until an answer would be taken."""
    page.locator("#labels button:enabled").first.wait_for()


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def judged(page: Page, own: int) -> None:
    """Wait until the page says how many judgements are this person's."""
    expect(page.locator("#progress")).to_contain_text(f"{own} by you")


def labels(page: Page) -> list[str]:
    return page.locator("#labels .text").all_text_contents()


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store)) as connection:
        return connection.execute(query).fetchall()


CLICKED = "SELECT label FROM impressions WHERE clicked ORDER BY judgement"


# ---- judging ------------------------------------------------------------------------------------


def test_keys_choose_undo_and_end(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(3)) as served,
        person(browser, served.address, "Ann") as page,
    ):
        shown = labels(page)
        press(page, "2")
        judged(page, 1)
        assert rows(store, CLICKED) == [(shown[1],)]
        ready(page)
        assert labels(page) != shown
        press(page, "u")
        judged(page, 0)
        ready(page)
        assert labels(page) == shown
        assert rows(store, CLICKED) == []
        press(page, "n")  # none of these
        judged(page, 1)
        ready(page)
        page.keyboard.down("0")
        judged(page, 2)
        ready(page)
        page.keyboard.down("0")  # the browser repeats a key that is held: it judges once
        page.keyboard.up("0")
        page.reload()  # the person is known
        ready(page)
        expect(page.locator("#person")).to_have_text("Ann")
        press(page, "1")
        expect(page.get_by_text("You have been through every image.")).to_be_visible()
        assert rows(store, "SELECT count(*), sum(clicked) FROM impressions") == [(12, 1)]
        press(page, "Backspace")
        ready(page)
        judged(page, 2)


def test_two_people_at_once_get_different_images(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(2)) as served,
        person(browser, served.address, "Ann") as ann,
        person(browser, served.address, "<i>Bob</i>") as bob,
    ):
        assert sorted(rows(store, "SELECT user, image FROM offers")) == [
            ("<i>Bob</i>", "1.png"),
            ("Ann", "0.png"),
        ]
        for page in (ann, bob):
            press(page, "1")
            judged(page, 1)
        expect(bob.locator("#progress")).to_have_text("2 of 2 images · 2 people · 1 by you")
        expect(bob.locator("#person")).to_have_text("<i>Bob</i>")
        assert rows(store, "SELECT DISTINCT user FROM impressions") == [("Ann",), ("<i>Bob</i>",)]


def test_a_ranking(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(2), Design("rank", group_size=3)) as served,
        person(browser, served.address, "Ann") as page,
    ):
        first, second, third = labels(page)
        press(page, "1", "Escape", "3", "2", "Backspace", "1", "Enter")
        judged(page, 1)
        pairs = rows(store, "SELECT preferred, rejected FROM preferences")
        assert sorted(pairs) == sorted([(third, first), (third, second), (first, second)])


def test_grades(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(2), Design("grade", group_size=3)) as served,
        person(browser, served.address, "Ann") as page,
    ):
        shown = labels(page)
        press(page, "5", "1", "Enter")  # one is missing: nothing is saved
        expect(page.get_by_role("button", name=re.compile("Save"))).to_be_disabled()
        press(page, "2", "ArrowUp", "ArrowUp", "4", "Enter")
        judged(page, 1)
        assert rows(store, "SELECT label, grade FROM grades") == list(
            zip(shown, (4, 1, 2), strict=True)
        )


def test_a_phone_needs_no_keys(browser: Browser, store: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}
    with (
        serving(store, plain_images(2), Design("rank", group_size=3)) as served,
        person(browser, served.address, "Ann", **phone) as page,
    ):
        across = "document.documentElement.scrollWidth"
        assert page.evaluate(f"() => {across}") <= 360
        shown = labels(page)
        page.locator("button.label").nth(1).tap()
        page.get_by_role("button", name="Save").tap()
        judged(page, 1)
        assert {row[0] for row in rows(store, "SELECT preferred FROM preferences")} == {shown[1]}
        ready(page)
        page.get_by_role("button", name="Undo").tap()
        judged(page, 0)


def test_html_in_labels_is_text(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(1), Design(group_size=2), classes=(SCRIPT, "cat")) as served,
        person(browser, served.address, "Ann") as page,
    ):
        assert set(labels(page)) == {SCRIPT, "cat"}
        assert page.locator("#labels img").count() == 0
        press(page, str(labels(page).index(SCRIPT) + 1))
        expect(page.get_by_text("You have been through every image.")).to_be_visible()
        assert page.title() == "visgrpo: judge"
        assert rows(store, CLICKED) == [(SCRIPT,)]


class StuckLearner:
    """Has learned once, and failed to learn again."""

    state = LearningState("failed", 1, "CUDA out of <memory>")

    def judged(self, judgements: int) -> None:
        pass


def test_what_the_learner_does_is_shown(browser: Browser, store: Path) -> None:
    with serving(store, plain_images(3), Design(group_size=6)) as served:
        served.collector.learner = StuckLearner()
        with person(browser, served.address, "Ann") as page:
            for own, key in ((1, str(labels(page).index("cat") + 1)), (2, "n")):
                press(page, key)
                judged(page, own)
                ready(page)
            expect(page.locator("#agreement")).to_have_text(
                "The model's first choice was yours: 50 % (since it learned: 50 %)"
            )
            expect(page.locator("#learning")).to_have_text(
                "The model has learned 1 time. Learning failed: CUDA out of <memory>"
            )


# ---- troubles -----------------------------------------------------------------------------------


def test_a_reply_that_is_lost_is_asked_for_again(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(2)) as served,
        person(browser, served.address, "Ann") as page,
    ):

        def lose(route: Route) -> None:
            route.fetch()  # it is stored
            route.abort()  # but the page never hears of it

        page.route("**/api/judge", lose)
        press(page, "1")
        expect(page.get_by_role("alert")).to_contain_text(
            "Not saved yet: the server cannot be reached"
        )
        page.unroute("**/api/judge")
        page.get_by_role("button", name="Try again").click()
        judged(page, 1)
        expect(page.locator("#notice")).to_be_hidden()
        assert rows(store, "SELECT count(*) FROM judgements") == [(1,)]


def test_judging_in_two_tabs_says_which_answer_counts(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(3)) as served,
        person(browser, served.address, "Ann") as page,
    ):
        other = page.context.new_page()
        other.goto(served.address)
        ready(other)
        press(other, "1")
        judged(other, 1)
        press(page, "2")
        expect(page.locator("#notice")).to_contain_text("not saved: This image is judged already")
        judged(page, 1)


@contextmanager
def process(store: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address; killed at the end."""
    words = [sys.executable, "serving.py", str(store), str(port)]
    with subprocess.Popen(
        words, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


def test_a_server_killed_and_started_again_loses_nothing(browser: Browser, store: Path) -> None:
    with process(store, 0) as (first, address):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.get_by_role("textbox").fill("Ann")
        press(page, "Enter")
        ready(page)
        chosen = [labels(page)[0]]
        press(page, "1")
        judged(page, 1)
        ready(page)
        first.kill()
        first.wait()
        chosen.append(labels(page)[1])
        press(page, "2")
        expect(page.get_by_role("alert")).to_contain_text("Not saved yet")
    with process(store, int(address.rstrip("/").rpartition(":")[2])):
        page.reload()  # even so the answer is still there
        judged(page, 2)
        ready(page)
        chosen.append(labels(page)[3])
        press(page, "4")
        judged(page, 3)
        context.close()
    assert rows(store, CLICKED) == [(label,) for label in chosen]


def test_a_token_opens_the_page_and_leaves_the_address(browser: Browser, store: Path) -> None:
    token = "correct-horse-battery"
    with (
        serving(store, plain_images(1), host="0.0.0.0", token=token) as served,
        person(browser, f"{served.address}?token={token}", "Ann") as page,
    ):
        assert page.url == served.address
        page.reload()
        ready(page)
        assert token not in page.evaluate("() => document.cookie")


@pytest.mark.parametrize("ask", ["click", "rank"])
@pytest.mark.parametrize(("width", "height"), [(360, 640), (640, 360)])
def test_a_phone_shows_picture_question_and_labels_without_scrolling(
    browser: Browser, store: Path, width: int, height: int, ask: Ask
) -> None:
    size = {"width": width, "height": height}
    with (
        serving(store, plain_images(2), Design(ask, group_size=4)) as served,
        person(browser, served.address, "Ann", viewport=size, has_touch=True) as page,
    ):
        if ask == "click":
            press(page, "1")
            judged(page, 1)  # "How the model does" and "My last" are there now
            ready(page)
        for part in ("#image", "#question", "#none", "#skip", "#undo", "#labels button:last-child"):
            box = page.locator(part).bounding_box()
            assert box is not None
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= height
            assert box["x"] + box["width"] <= width


def test_own_question_zoom_and_a_model_that_is_not_heard_before_it_is_asked(
    browser: Browser, store: Path
) -> None:
    design = Design(group_size=2, question="Which animal do you see?")
    with (
        serving(store, plain_images(3), design) as served,
        person(browser, served.address, "Ann") as page,
    ):
        expect(page.locator("#question")).to_have_text("Which animal do you see?")
        before = page.locator("#image").bounding_box()
        page.locator("#figure").click()
        after = page.locator("#image").bounding_box()
        assert before is not None
        assert after is not None
        assert after["width"] > 2 * before["width"]
        press(page, "1")
        judged(page, 1)
        expect(page.locator("#agreement")).to_be_hidden()
        page.get_by_text("How the model does").click()
        expect(page.locator("#agreement")).to_be_visible()


def test_skip_and_what_one_judged_last(browser: Browser, store: Path) -> None:
    with (
        serving(store, plain_images(3), Design(group_size=2)) as served,
        person(browser, served.address, "Ann") as page,
    ):
        expect(page.locator("#past")).to_be_hidden()
        shown = labels(page)
        press(page, "1")
        judged(page, 1)
        ready(page)
        page.get_by_text("My last").click()
        expect(page.locator("#past-list li")).to_have_text([shown[0]])
        skipped = page.locator("#image").get_attribute("src")
        press(page, "s")
        expect(page.locator("#image")).not_to_have_attribute("src", str(skipped))
        ready(page)
        press(page, "n")
        expect(page.get_by_text("You have been through every image.")).to_be_visible()
        expect(page.locator("#past-list li")).to_have_text(["none of these", shown[0]])
        assert rows(store, "SELECT count(*), sum(clicked) FROM impressions") == [(4, 1)]
