"""The addresses of the page's server, and whom it refuses."""

from __future__ import annotations

import io
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from serving import CLASSES, Client, Served, first_is_best, plain_images, serving

from visgrpo.collecting import tables
from visgrpo.collecting.anytime import reach
from visgrpo.collecting.collector import Design, LearningState
from visgrpo.collecting.options import is_loopback
from visgrpo.collecting.server import listen
from visgrpo.data.folders import read_photos
from visgrpo.errors import UserError

TOKEN = "correct-horse-battery"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "feedback.db", plain_images(3)) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For tests that judge nothing."""
    with serving(tmp_path_factory.mktemp("shared") / "f.db", plain_images(3)) as running:
        yield running


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """As on another interface: the token is asked for, and any Host header will do."""
    path = tmp_path_factory.mktemp("secret") / "f.db"
    with serving(path, plain_images(1), host="0.0.0.0", token=TOKEN) as running:
        yield running


# ---- judging ------------------------------------------------------------------------------------


def test_a_whole_session(served: Served) -> None:
    ann = Client(served)
    first = ann.get("/api/next").json
    assert (first["ask"], first["person"], len(first["offer"]["labels"])) == ("click", "Ann", 4)
    assert ann.get("/api/next").json["offer"] == first["offer"]
    label = first["offer"]["labels"][2]
    judged = ann.post("/api/judge", {"offer": first["offer"]["key"], "answer": [label]})
    assert judged.status == 200
    assert judged.json["progress"]["judgements"] == 1
    with closing(sqlite3.connect(served.store)) as connection:  # before the next image is asked for
        clicks = connection.execute("SELECT label FROM impressions WHERE clicked").fetchall()
    assert clicks == [(label,)]
    assert ann.get("/api/next").json["offer"]["key"] != first["offer"]["key"]
    assert ann.post("/api/undo").json["progress"]["judgements"] == 0
    assert ann.get("/api/next").json["offer"] == first["offer"]
    for _ in range(3):
        offer = ann.get("/api/next").json["offer"]
        ann.post("/api/judge", {"offer": offer["key"], "answer": []})
    done = ann.get("/api/next").json
    assert done["offer"] is None
    assert (done["progress"]["judged_images"], done["progress"]["images"]) == (3, 3)


def test_judging_twice_is_harmless(served: Served) -> None:
    ann = Client(served)
    offer = ann.get("/api/next").json["offer"]
    ann.post("/api/judge", {"offer": offer["key"], "answer": []})
    again = ann.post("/api/judge", {"offer": offer["key"], "answer": [offer["labels"][0]]})
    assert (again.status, again.json["answer"]) == (409, [])
    assert "judged already" in again.json["error"]
    assert ann.get("/api/progress").json["progress"]["judgements"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/judge", {"offer": "none", "answer": []}, 404, "no such offer"),
        ("/api/judge", {"offer": 3, "answer": []}, 422, "body.offer: Input should be a valid str"),
        ("/api/judge", {"answer": []}, 422, "body.offer: Field required."),
        ("/api/undo", {}, 409, "no judgement of yours to undo"),
        ("/api/person", {"name": " "}, 422, "1 to 80 letters"),
        ("/api/person", {"name": "x" * 81}, 422, "1 to 80 letters"),
        ("/api/person", {"name": "a\nb"}, 422, "no line breaks"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    shared: Served, path: str, body: object, status: int, message: str
) -> None:
    reply = Client(shared).post(path, body)
    assert reply.status == status
    assert message in reply.json["error"]


def test_an_answer_that_was_not_offered(shared: Served) -> None:
    ann = Client(shared)
    key = ann.get("/api/next").json["offer"]["key"]
    reply = ann.post("/api/judge", {"offer": key, "answer": ["catfish"]})
    assert (reply.status, "was not offered" in reply.json["error"]) == (422, True)
    reply = ann.post("/api/judge", {"offer": key, "answer": [True]})
    assert reply.status == 422


def test_who_judges_is_asked_first(shared: Served) -> None:
    nobody = Client(shared, person=None)
    reply = nobody.get("/api/next")
    assert (reply.status, reply.json["needs"]) == (401, "name")
    assert nobody.post("/api/person", {"name": " Zoë; Größe=1 "}).json == {"person": "Zoë; Größe=1"}
    assert nobody.get("/api/next").json["person"] == "Zoë; Größe=1"


def test_a_locked_store_says_so_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WAIT_SECONDS", 0.05)
    path = tmp_path / "f.db"
    with serving(path, plain_images(1)) as running:
        ann = Client(running)
        key = ann.get("/api/next").json["offer"]["key"]
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            reply = ann.post("/api/judge", {"offer": key, "answer": []})
            assert (reply.status, "is locked" in reply.json["error"]) == (503, True)
            other.execute("ROLLBACK")
        assert ann.post("/api/judge", {"offer": key, "answer": []}).status == 200


# ---- images -------------------------------------------------------------------------------------


def test_large_images_are_made_smaller_and_kept_by_the_browser(tmp_path: Path) -> None:
    with serving(tmp_path / "f.db", [Image.new("RGB", (3000, 1500), (200, 10, 10))]) as running:
        ann = Client(running)
        key = ann.get("/api/next").json["offer"]["key"]
        reply = ann.get(f"/image/{key}")
        assert reply.headers["content-type"] == "image/jpeg"
        assert "immutable" in reply.headers["cache-control"]
        shown = Image.open(io.BytesIO(reply.content))
        assert shown.size == (1024, 512)
        assert Client(running, "Bob").get(f"/image/{key}").status == 404


def test_photos_are_upright(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    turned = Image.new("RGB", (60, 20), (1, 2, 3))
    exif = turned.getexif()
    exif[274] = 6  # taken with the camera on its side
    turned.save(tmp_path / "photos" / "a.jpg", exif=exif)
    names, images = read_photos(tmp_path / "photos")
    assert names == ["a.jpg"]
    with serving(tmp_path / "f.db", images) as running:
        ann = Client(running)
        key = ann.get("/api/next").json["offer"]["key"]
        assert Image.open(io.BytesIO(ann.get(f"/image/{key}").content)).size == (20, 60)


def test_a_damaged_image_is_skipped_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "photos" / name)
    whole = (tmp_path / "photos" / "a.png").read_bytes()
    (tmp_path / "photos" / "a.png").write_bytes(whole[:60])
    with serving(tmp_path / "f.db", read_photos(tmp_path / "photos")[1]) as running:
        answer = Client(running).get("/api/next").json
        assert (answer["progress"]["images"], answer["progress"]["skipped"]) == (1, 1)
        assert Client(running).get(f"/image/{answer['offer']['key']}").status == 200
    assert "a.png cannot be read" in capsys.readouterr().err


# ---- the model behind ---------------------------------------------------------------------------


class FakeLearner:
    def __init__(self) -> None:
        self.state = LearningState("failed", 2, "out of memory")
        self.heard: list[int] = []

    def judged(self, judgements: int) -> None:
        self.heard.append(judgements)


def test_a_swap_changes_new_offers_and_the_agreement_since(served: Served) -> None:
    ann = Client(served)
    served.collector.learner = learner = FakeLearner()
    first = ann.get("/api/next").json["offer"]
    best = "cat" in first["labels"]
    ann.post("/api/judge", {"offer": first["key"], "answer": ["cat"] if best else []})
    served.collector.swap(first_is_best(3, "learned", best=3))
    second = ann.get("/api/next").json
    assert second["progress"]["agreement"] == (1.0 if best else None)
    assert second["progress"]["agreement_now"] is None
    assert second["learning"] == {"state": "failed", "rounds": 2, "detail": "out of memory"}
    assert learner.heard == [1]
    with closing(sqlite3.connect(served.store)) as connection:
        made = connection.execute("SELECT model, best FROM offers ORDER BY id").fetchall()
    assert made == [("start", "cat"), ("learned", "owl")]


def test_what_was_learned_is_compared_with_the_start_at_any_time(tmp_path: Path) -> None:
    everything = Design(group_size=len(CLASSES))  # the model's first choice is always offered
    with serving(tmp_path / "feedback.db", plain_images(240), everything) as served:
        ann = Client(served)

        def judge(count: int, label: str) -> None:
            for _ in range(count):
                offer = ann.get("/api/next").json["offer"]
                assert ann.post("/api/judge", {"offer": offer["key"], "answer": [label]}).json

        judge(60, "owl")  # the model says cat
        assert ann.get("/api/agreement").json == {"pairs": 0, "people": None, "verdict": None}
        for model in ("0001", "0002"):
            served.collector.swap(first_is_best(240, model, best=3))
            judge(1, "cat")
            judge(4, "owl")
        early = served.collector.verdict()
        assert (early.judgements, early.change) == (10, pytest.approx(0.8))
        assert early.low < 0 < early.high == 1.0
        said = ann.get("/api/agreement").json["verdict"]
        assert said.startswith("Since it learned +80 points, after 10 judgements (95 %, whenever")
        assert f"you look: −{-100 * early.low:.0f} to +100): too early to tell." in said
        judge(90, "owl")
        late = served.collector.verdict()
        assert late.change == pytest.approx(0.98)
        assert late.low == pytest.approx(0.98 - reach(60, 0.025) - reach(100, 0.025))
        assert late.low > 0.5
        assert str(late).endswith("to +100): the new model is better.")
        assert str(replace(late, change=-1.25, low=-2, high=-0.5, graded=True)) == (
            "Since it learned −1.2 grades, after 100 judgements (95 %, whenever you look: −2.0 to "
            "−0.5): the new model is worse."
        )
        last = ann.get("/api/last").json
        assert [past["answer"] for past in last] == [["owl"]] * 12
        assert ann.get(f"/image/{last[0]['key']}").status == 200
        skipped = ann.get("/api/next").json["offer"]["key"]
        assert ann.post("/api/skip", {"offer": skipped}).json["progress"]["own"] == 160
        assert ann.get("/api/next").json["offer"]["key"] != skipped
        assert Client(served, "Bob").post("/api/skip", {"offer": skipped}).status == 404


def test_a_group_larger_than_the_classes_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="--group-size 7 must lie between 1 and the 6 classes"),
        serving(tmp_path / "f.db", plain_images(1), Design(group_size=len(CLASSES) + 1)),
    ):
        pass


# ---- who is refused -----------------------------------------------------------------------------


# What else is refused is in attacks.py.
def test_another_host_is_refused(shared: Served) -> None:
    reply = Client(shared).get("/api/next", {"Host": "evil.example:8765"})
    assert (reply.status, "this machine only" in reply.json["error"]) == (403, True)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:9000"])
def test_this_machine_has_several_names(shared: Served, host: str) -> None:
    assert Client(shared).get("/api/next", {"Host": host}).status == 200


@pytest.mark.parametrize(
    "path", ["/", "/app.js", "/style.css", "/api/next", "/?token=wrong", "/?token=é"]
)
def test_without_the_token_nothing_is_shown(secret: Served, path: str) -> None:
    reply = Client(secret, person=None).get(path.replace("é", "%C3%A9"))
    assert reply.status == 401
    assert "?token=" in reply.json["error"]


def test_the_token_is_given_once(secret: Served) -> None:
    ann = Client(secret, person=None)
    assert ann.get(f"/api/next?token={TOKEN}").status == 401  # only the page itself takes it
    page = ann.get(f"/?token={TOKEN}")
    assert page.status == 200
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ann.post("/api/person", {"name": "Ann"}).status == 200
    assert ann.get("/api/next").status == 200
    assert ann.get("/", {"Cookie": f"visgrpo_token_{secret.port}=wrong"}).status == 401


def test_every_reply_forbids_what_the_page_does_not_need(shared: Served) -> None:
    for path in ("/", "/api/next", "/nothing"):
        headers = Client(shared).get(path).headers
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_nothing_from_elsewhere(shared: Served) -> None:
    ann = Client(shared)
    for path in ("/", "/app.js", "/style.css"):
        text = ann.get(path).content.decode()
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("localhost.evil.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_port_that_is_taken() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is in use: name another"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["a" * 300, "a..b", "\ud800"])
def test_a_host_that_no_machine_can_have(host: str) -> None:
    with pytest.raises(UserError, match="is no name of a machine"):
        listen(host, 0)


def test_an_address_that_is_not_this_machine_s() -> None:
    with pytest.raises(UserError, match=r"--host 203\.0\.113\.7 --port 0 cannot be used"):
        listen("203.0.113.7", 0)
