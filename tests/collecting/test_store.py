"""The store of judgements: nothing lost, nothing twice, whoever else is writing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from visgrpo.collecting import store, tables
from visgrpo.collecting.store import AlreadyJudged, NothingToUndo, Progress, Store
from visgrpo.collecting.tables import Drawn, NoSuchOffer, Offer
from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events

IMAGES = ("b.png", "a.png", "c.png")
LABELS = ("dog", "cat")


def draw(image: str, number: int) -> Drawn:
    return Drawn(LABELS, (0.75, 0.25), best="dog", model="start")


def offered(opened: Store, user: str, **options: Any) -> Offer:
    offer = opened.next_offer(user, "click", draw, **options)
    assert offer is not None
    return offer


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Store]:
    with Store(path, IMAGES) as made:
        yield made


# ---- offers and judgements ----------------------------------------------------------------------


def test_an_offer_stays_until_it_is_judged(opened: Store) -> None:
    first = offered(opened, "Ann")
    assert first == offered(opened, "Ann") == opened.offer(first.key, "Ann")
    assert (first.image, first.state, first.drawn) == ("b.png", "open", draw("", 0))
    opened.judge(first.key, "Ann", ["cat"])
    assert offered(opened, "Ann").image == "a.png"


def test_a_click_makes_a_row_of_every_label(opened: Store, path: Path) -> None:
    opened.judge(offered(opened, "Ann").key, "Ann", ["cat"])
    columns = "image, label, shown, clicked, dwell, position, propensity, user, judgement"
    assert rows(path, f"SELECT {columns} FROM impressions") == [
        ("b.png", "dog", 1, 0, None, 1, 0.75, "Ann", 1),
        ("b.png", "cat", 1, 1, None, 2, 0.25, "Ann", 1),
    ]


def test_everyone_judges_every_image_once(opened: Store) -> None:
    for user in ("Ann", "Bob"):
        seen = []
        while (offer := opened.next_offer(user, "click", draw)) is not None:
            seen.append(offer.image)
            opened.judge(offer.key, user, [])
        assert sorted(seen) == sorted(IMAGES)


def test_the_number_of_an_offer_counts_the_earlier_ones(opened: Store) -> None:
    numbers = []

    def counting(image: str, number: int) -> Drawn:
        numbers.append((image, number))
        return draw(image, number)

    for user in ("Ann", "Bob", "Cleo", "Dan"):
        opened.next_offer(user, "click", counting)
    assert numbers == [("b.png", 0), ("a.png", 0), ("c.png", 0), ("b.png", 1)]


def test_the_fewest_judgements_come_first_and_what_others_hold_last(opened: Store) -> None:
    opened.judge(offered(opened, "Ann").key, "Ann", ["dog"])  # b has one judgement
    assert offered(opened, "Ann").image == "a.png"
    assert offered(opened, "Bob").image == "c.png"  # Ann holds a
    assert offered(opened, "Cleo").image == "b.png"  # all else is held
    assert offered(opened, "Dan", held=-1.0).image == "a.png"  # holding is over


def test_undo_takes_the_rows_back_and_offers_the_same_again(opened: Store, path: Path) -> None:
    first, second = offered(opened, "Ann"), None
    opened.judge(first.key, "Ann", ["cat"])
    second = offered(opened, "Ann")
    opened.judge(second.key, "Ann", ["dog"])
    assert opened.undo("Ann", "click").key == second.key
    assert opened.undo("Ann", "click").key == first.key
    assert rows(path, "SELECT * FROM impressions") == []
    assert rows(path, "SELECT id, answer, undone FROM judgements") == [
        (1, '["cat"]', 1),
        (2, '["dog"]', 1),
    ]
    assert offered(opened, "Ann").key == first.key  # in the order they were offered in
    opened.judge(first.key, "Ann", ["dog"])
    assert offered(opened, "Ann").key == second.key
    assert rows(path, "SELECT label FROM impressions WHERE clicked") == [("dog",)]


def test_only_what_is_ones_own_can_be_undone(opened: Store) -> None:
    opened.judge(offered(opened, "Ann").key, "Ann", ["cat"])
    with pytest.raises(NothingToUndo, match="no judgement of yours"):
        opened.undo("Bob", "click")
    with pytest.raises(NothingToUndo):
        opened.undo("Ann", "rank")


def test_judging_twice_changes_nothing_and_says_what_is_stored(opened: Store) -> None:
    offer = offered(opened, "Ann")
    opened.judge(offer.key, "Ann", ["cat"])
    with pytest.raises(AlreadyJudged) as caught:
        opened.judge(offer.key, "Ann", ["dog"])
    assert caught.value.answer == ["cat"]
    assert opened.progress("Ann", "click", "start").judgements == 1


def test_a_bad_answer_leaves_the_offer_open(opened: Store) -> None:
    offer = offered(opened, "Ann")
    with pytest.raises(UserError, match='"cow" was not offered'):
        opened.judge(offer.key, "Ann", ["cow"])
    assert opened.offer(offer.key, "Ann").state == "open"


def test_offers_of_others_are_unknown(opened: Store) -> None:
    offer = offered(opened, "Ann")
    for key, user in ((offer.key, "Bob"), ("'; DROP TABLE offers; --", "Ann")):
        with pytest.raises(NoSuchOffer, match="no such offer"):
            opened.judge(key, user, [])
    assert opened.offer(offer.key, "Ann") == offer


def test_who_passes_an_image_over_is_not_asked_again_and_others_are(
    opened: Store, path: Path
) -> None:
    first = offered(opened, "Ann")
    opened.pass_over(first.key, "Ann")
    opened.pass_over(first.key, "Ann")  # its reply was lost
    assert [offered(opened, "Ann").image, offered(opened, "Bob").image] == ["a.png", "b.png"]
    assert rows(path, "SELECT count(*) FROM impressions") == [(0,)]
    assert opened.progress("Ann", "click", "start").judgements == 0
    with pytest.raises(NoSuchOffer, match="was skipped"):
        opened.judge(first.key, "Ann", ["dog"])
    judged = offered(opened, "Bob")
    opened.judge(judged.key, "Bob", ["dog"])
    with pytest.raises(AlreadyJudged):
        opened.pass_over(judged.key, "Bob")
    with pytest.raises(NoSuchOffer):
        opened.pass_over(judged.key, "Ann")


def test_the_last_judgements_are_the_newest_of_ones_own(opened: Store) -> None:
    for user, answer in (("Ann", ["dog"]), ("Bob", []), ("Ann", ["cat"]), ("Ann", [])):
        opened.judge(offered(opened, user).key, user, answer)
    opened.undo("Ann", "click")
    assert [past.answer for past in opened.last("Ann", "click", 5)] == [("cat",), ("dog",)]
    assert [past.labels for past in opened.last("Ann", "click", 1)] == [LABELS]
    assert opened.last("Ann", "rank", 5) == []


def test_people_are_compared_where_either_could_have_chosen_the_other_s(path: Path) -> None:
    """On one image: by hand."""
    offers: dict[str, tuple[tuple[str, ...], list[str]]] = {
        "Ann": (("dog", "cat"), ["dog"]),
        "Bob": (("dog", "owl"), ["dog"]),  # agrees with Ann
        "Cleo": (("owl", "dog"), ["owl"]),  # Bob could have; Ann could not
        "Dan": (("cat", "owl"), []),  # none: only Cleo's owl was his to choose
        "Eve": (("cat", "dog"), []),  # none: Ann's and Bob's dog was hers; with Dan no choice
    }
    with Store(path, ["a.png"]) as opened:
        assert opened.people_agree("click") == (0, None)
        for user, (labels, answer) in offers.items():
            drawn = Drawn(labels, (0.5, 0.5), labels[0], "start")
            offer = opened.next_offer(user, "click", lambda *_, drawn=drawn: drawn)  # type: ignore[misc]
            assert offer is not None
            opened.judge(offer.key, user, answer)
        # Ann-Bob +, Bob-Cleo -, Cleo-Dan -, Ann-Eve -, Bob-Eve -.
        assert opened.people_agree("click") == (5, 1 / 5)
        assert opened.people_agree("rank") == (0, None)


def test_grades_agree_within_one(path: Path) -> None:
    with Store(path, ["a.png"]) as opened:
        for user, grades in (("Ann", [5, 1]), ("Bob", [4, 3])):
            offer = opened.next_offer(user, "grade", draw)
            assert offer is not None
            opened.judge(offer.key, user, grades)
        assert opened.people_agree("grade") == (2, 1 / 2)


def test_an_image_that_cannot_be_shown_is_left_out(opened: Store) -> None:
    offer = offered(opened, "Ann")
    opened.skip(offer.image)
    assert offered(opened, "Ann").image == "a.png"
    with pytest.raises(NoSuchOffer, match="cannot be shown"):
        opened.judge(offer.key, "Ann", [])
    assert opened.progress("Ann", "click", "start").images == 2


def test_names_are_only_names(path: Path) -> None:
    nasty = "<script>alert(1)</script>'; DROP TABLE impressions; --"
    with Store(path, [nasty]) as opened:
        opened.judge(offered(opened, nasty).key, nasty, ["dog"])
    assert rows(path, "SELECT DISTINCT image, user FROM impressions") == [(nasty, nasty)]


def test_progress_and_agreement(opened: Store) -> None:
    assert opened.progress("Ann", "click", "start") == Progress(3, 0, 0, 0, 0, None, None)
    for user, answer in (("Ann", ["dog"]), ("Ann", ["cat"]), ("Bob", ["dog"]), ("Bob", [])):
        opened.judge(offered(opened, user).key, user, answer)
    newer = opened.next_offer("Cleo", "click", lambda *_: Drawn(LABELS, (0.5, 0.5), "cat", "new"))
    assert newer is not None
    opened.judge(newer.key, "Cleo", ["cat"])
    # Right were Ann's first, Bob's first and Cleo's; the new model was asked once.
    assert opened.progress("Ann", "click", "new") == Progress(3, 3, 5, 3, 2, 3 / 5, 1.0)
    assert opened.progress("Ann", "rank", "new").judgements == 0


def test_a_store_with_other_images_counts_these_alone(opened: Store, path: Path) -> None:
    opened.judge(offered(opened, "Ann").key, "Ann", ["dog"])
    offered(opened, "Ann")  # open, and of an image that the other session does not have
    with Store(path, ["c.png", "d.png"]) as other:
        assert offered(other, "Ann").image == "c.png"
        assert other.progress("Ann", "click", "start").judgements == 0
        with pytest.raises(NothingToUndo):
            other.undo("Ann", "click")


def test_time_never_runs_backwards(
    opened: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now in (1000.0, 900.0, 1100.0):
        monkeypatch.setattr(store.time, "time", lambda now=now: now)
        opened.judge(offered(opened, "Ann").key, "Ann", ["dog"])
    assert rows(path, "SELECT time FROM judgements") == [(1000.0,), (1000.0,), (1100.0,)]


@pytest.mark.parametrize(
    ("ask", "answer", "columns", "count"),
    [
        ("click", ["cat"], {"clicked", "dwell", "position", "propensity", "time", "user"}, 6),
        ("rank", ["cat", "dog"], {"preferred", "rejected", "tie", "user"}, 3),
        ("grade", [4, 2], {"label", "grade", "user"}, 6),
    ],
)
def test_the_store_is_a_log(
    opened: Store, path: Path, ask: Any, answer: Any, columns: set[str], count: int
) -> None:
    while (offer := opened.next_offer("Ann", ask, draw)) is not None:
        opened.judge(offer.key, "Ann", answer)
    with open_events(str(path)) as events:  # while the store is open
        assert columns <= events.columns
        assert (events.rows, events.notes) == (count, ())


# ---- threads, processes, kills ------------------------------------------------------------------

_JUDGE_ALL = """
import sys
from pathlib import Path
from visgrpo.collecting.tables import Drawn
from visgrpo.collecting.store import Store
path, user, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
draw = lambda image, number: Drawn(("dog", "cat"), (0.5, 0.5), "dog", "start")
with Store(path, [str(m) for m in range(count)]) as opened:
    while (offer := opened.next_offer(user, "click", draw)) is not None:
        opened.judge(offer.key, user, ["dog"])
        print(offer.image, flush=True)
"""


def judging_process(path: Path, user: str, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _JUDGE_ALL, str(path), user, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_two_processes_on_one_store(path: Path) -> None:
    people = [judging_process(path, user, 40) for user in ("Ann", "Bob")]
    for person in people:
        said, _ = person.communicate(timeout=30)
        assert person.returncode == 0
        assert sorted(map(int, said.split())) == list(range(40))
    assert rows(path, "SELECT count(*), count(DISTINCT judgement) FROM impressions") == [(160, 80)]
    assert rows(path, "SELECT count(DISTINCT key) FROM offers") == [(80,)]


def test_a_killed_process_loses_nothing_it_has_said(path: Path) -> None:
    person = judging_process(path, "Ann", 10_000)
    assert person.stdout is not None
    said = [person.stdout.readline().strip() for _ in range(25)]
    person.kill()
    said += person.stdout.read().split()
    person.wait()
    person.stdout.close()
    stored = rows(path, "SELECT image, count(*) FROM impressions GROUP BY image")
    assert {image for image, _ in stored} >= set(said)
    assert {count for _, count in stored} == {2}  # no judgement is there by half
    with Store(path, [str(m) for m in range(10_000)]) as opened:
        assert opened.progress("Ann", "click", "start").judgements == len(stored)


def test_threads_share_a_store(opened: Store) -> None:
    def judge_all(user: str) -> None:
        while (offer := opened.next_offer(user, "click", draw)) is not None:
            opened.judge(offer.key, user, ["dog"])

    threads = [Thread(target=judge_all, args=(f"user {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.progress("", "click", "start").judgements == 24


# ---- files that cannot be used ------------------------------------------------------------------


def test_another_program_s_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE clicks (image)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(UserError, match="another program's database: name a new file"):
        Store(path, IMAGES)
    assert path.read_bytes() == before


def test_a_store_of_another_version(opened: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match=r"another version of visgrpo .*version 7, here 1"):
        Store(path, IMAGES)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("image,label,clicked\n" * 100)
    with pytest.raises(UserError, match="is not a SQLite database: name another --store"):
        Store(path, IMAGES)


@pytest.mark.parametrize("damage", ["null", "[null]", '{"a":1}', '["cat"', "[" * 99_999])
@pytest.mark.parametrize("column", ["labels", "propensities", "answer"])
def test_a_store_whose_words_are_damaged(
    opened: Store, path: Path, column: str, damage: str
) -> None:
    judged, offer = offered(opened, "Ann"), None
    opened.judge(judged.key, "Ann", ["cat"])
    offer = offered(opened, "Ann")
    table = "judgements" if column == "answer" else "offers"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (damage,))
        connection.commit()
    with pytest.raises(UserError, match=r"is damaged: restore it|fails"):
        opened.judge((judged if column == "answer" else offer).key, "Ann", ["cat"])


@pytest.mark.parametrize("page", range(14))
def test_a_store_with_a_damaged_page_is_used_or_refused_in_a_line(path: Path, page: int) -> None:
    with Store(path, IMAGES) as made:
        made.judge(offered(made, "Ann").key, "Ann", ["cat"])
    whole, size = path.read_bytes(), 4096
    assert len(whole) == 14 * size
    noise = bytes(range(256)) * 8
    path.write_bytes(whole[: page * size] + noise + whole[page * size + len(noise) :])
    with pytest.raises(UserError, match=r"is damaged|is not a SQLite database"):
        Store(path, IMAGES)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere/feedback.db", "there is no folder"), (".", "is a folder: name a file")],
)
def test_a_path_that_cannot_be_a_file(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store(tmp_path / name, IMAGES)


def test_a_locked_store(opened: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "WAIT_SECONDS", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="is locked by another program: close what writes"):
            Store(path, IMAGES)
        other.execute("ROLLBACK")
    with Store(path, IMAGES) as again:
        assert offered(again, "Ann").image == "b.png"


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that a user without rights can read; root, who may write anywhere, becomes one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_read_only_store(as_nobody: Path) -> None:
    path = as_nobody / "feedback.db"
    Store(path, IMAGES).__exit__(None, None, None)
    path.chmod(0o444)
    as_nobody.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(UserError, match=r"cannot be (written|opened)"):
        Store(path, IMAGES)
    with pytest.raises(UserError, match=r"cannot be (written|opened)"):
        Store(as_nobody / "new.db", IMAGES)


def test_a_full_disk_loses_nothing_that_was_acknowledged(opened: Store, path: Path) -> None:
    opened.judge(offered(opened, "Ann").key, "Ann", ["cat"])
    second = offered(opened, "Ann")
    connection = opened._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite says of a full disk, too

    def fill() -> None:
        for number in range(10_000):
            offered(opened, f"Ann-{number}")

    with pytest.raises(UserError, match="cannot grow: the disk is full; make room"):
        fill()
    assert rows(path, "SELECT count(*) FROM judgements") == [(1,)]
    connection.execute(f"PRAGMA max_page_count = {10 * pages}")
    opened.judge(second.key, "Ann", ["dog"])
    assert rows(path, "SELECT count(*) FROM judgements") == [(2,)]
