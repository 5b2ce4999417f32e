"""Attacks on the page's server: what is sent, byte by byte, and how it must be answered.

They judge nothing and need nothing but a port, so that they may be sent to any server of the page
that runs on this machine without a token: `campaign` sends all of them and says what came back.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

ENOUGH = 20.0  # seconds for any answer
CLOSED = 0  # in the place of a status: the connection was closed without an answer
MOST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Attack:
    """A request, in which {port} is the server's, and the statuses that may answer it."""

    name: str
    request: bytes
    statuses: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of an attack; `wrong` is empty where the server stood it."""

    name: str
    status: int
    wrong: str


def request(
    method: str, path: str, body: bytes | str = b"", *, length: str | None = None, **headers: str
) -> bytes:
    """A request of the page itself, but for the headers that are named; an empty one is left out.

    Args:
        length: what is said of the body's length; None says what it is, and "" nothing.
    """
    content = body.encode() if isinstance(body, str) else body
    own = {"Host": "127.0.0.1:{port}", "Cookie": "visgrpo_person=Eve"}
    if method == "POST":
        own |= {"Origin": "http://127.0.0.1:{port}", "Content-Type": "application/json"}
    if content or method == "POST":
        own["Content-Length"] = str(len(content)) if length is None else length
    own |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in own.items() if v)]
    return "\r\n".join([*lines, "", ""]).encode() + content


def posted(path: str, body: bytes | str = "{}", **headers: str) -> bytes:
    return request("POST", path, body, **headers)


def _of(kind: str, statuses: tuple[int, ...], requests: dict[str, bytes]) -> list[Attack]:
    return [Attack(f"{kind}: {name}", sent, statuses) for name, sent in requests.items()]


JUDGED = '{"offer": "0123456789abcdef", "answer": []}'
ATTACKS: tuple[Attack, ...] = (
    *_of("method", (405,), {
        name: request(name, "/api/next", Connection="close")
        for name in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "PROPFIND", "get")
    }),
    Attack("method: CONNECT", request("CONNECT", "evil.example:80"), (400, 404, 405)),
    *_of("a change by GET", (405,), {
        path: request("GET", path) for path in ("/api/judge", "/api/undo", "/api/person")
    }),
    *_of("host", (403,), {
        name: request("GET", "/api/next", Host=name)
        for name in (
            "evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[", "[::1",
            "0.0.0.0", "127.0.0.1@evil.example", "2130706433.evil", "localhost.", "a" * 300,
        )
    }),
    *_of("host", (400,), {
        "none": request("GET", "/api/next", Host=""),
        "two": request("GET", "/api/next", host="evil.example"),
    }),
    Attack("host: none, as HTTP/1.0", b"GET /api/next HTTP/1.0\r\n\r\n", (403,)),
    Attack("host: an address as the target",
           request("GET", "http://evil.example/api/next"), (403, 404)),
    *_of("origin", (403,), {
        name or "none": posted("/api/undo", Origin=name)
        for name in (
            "", "null", "http://evil.example", "http://evil.example:{port}", "http://[",
            "http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:1", "127.0.0.1:{port}",
            "http://127.0.0.1:{port}@evil.example", "file://",
        )
    }),
    *_of("form of another site", (415,), {
        name or "none": posted("/api/undo", "a=1", Content_Type=name)
        for name in (
            "", "text/plain", "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x", "application/jsonp", "text/json",
        )
    }),
    *_of("size", (413,), {
        "one byte more": posted("/api/judge", b"x" * (MOST_BYTES + 1)),
        "200 MB announced": posted("/api/judge", "{}", length=str(200 * 2**20)),
        "more digits than Python reads": posted("/api/judge", "{}", length="9" * 18),
        "none said": posted("/api/judge", "", length=""),
        "of a GET": request("GET", "/api/next", b"x", length=str(200 * 2**20)),
    }),
    *_of("size", (400,), {
        "negative": posted("/api/judge", "{}", length="-1"),
        "in hexadecimal": posted("/api/judge", "{}", length="0x2"),
        "5,000 digits": posted("/api/judge", "{}", length="9" * 5000),
        "two of them": posted("/api/judge", "{}", content_length="3"),
        "a long header": request("GET", "/", X_Long="x" * 2**17),
        "10,000 headers": request("GET", "/", **{f"X_{n}": "y" * 9 for n in range(10_000)}),
    }),
    Attack("size: a long address", request("GET", "/" + "a" * 2**17), (400,)),
    *_of("encoding", (411,), {
        "chunks": posted("/api/judge", "2\r\n{}\r\n0\r\n\r\n", length="",
                         Transfer_Encoding="chunked"),
        "chunks beside a length": posted("/api/judge", "2\r\n{}\r\n0\r\n\r\n",
                                         Transfer_Encoding="chunked"),
        "chunks of 1 MB": posted("/api/judge", b"100000\r\n" + b"x" * 2**20, length="",
                                 Transfer_Encoding="chunked"),
        "chunks of a GET": request("GET", "/api/next", Transfer_Encoding="chunked"),
    }),
    *_of("encoding", (400, 411, 501), {
        "gzip": posted("/api/judge", "{}", Transfer_Encoding="gzip, chunked"),
        "unknown": posted("/api/judge", "{}", Transfer_Encoding="evil"),
        "an odd space": posted("/api/judge", "{}", Transfer_Encoding="\x0bchunked"),
    }),
    *_of("broken JSON", (400,), {
        "half": posted("/api/judge", '{"offer": '),
        "empty": posted("/api/person", " "),
        "no UTF-8": posted("/api/person", b'{"name": "\xff\xfe"}'),
        "nested without end": posted("/api/person", "[" * 60_000),
        "a number of 60,000 digits": posted("/api/person", '{"name": ' + "1" * 60_000 + "}"),
        "half a character as a name": posted("/api/person", '{"name": "\\ud800"}'),
        "half a character as an offer": posted("/api/judge",
                                               '{"offer": "\\udfff", "answer": []}'),
        "half a character as an answer": posted("/api/judge",
                                                '{"offer": "a", "answer": ["\\ud83d"]}'),
    }),
    *_of("JSON of another shape", (422,), {
        name: posted(path, body)
        for name, path, body in (
            ("null", "/api/person", "null"),
            ("NaN", "/api/person", "NaN"),
            ("a list", "/api/judge", "[]"),
            ("a name of 60,000 letters", "/api/person", '{"name": "' + "x" * 60_000 + '"}'),
            ("a name of none", "/api/person", '{"name": "\\u200b\\u0000"}'),
            ("a name that turns the line", "/api/person", '{"name": "\\u202eevE"}'),
            ("a name with a line break", "/api/person", '{"name": "a\\r\\nSet-Cookie: b"}'),
            ("a number as the name", "/api/person", '{"name": 1}'),
            ("an object as the answer", "/api/judge", '{"offer": "a", "answer": {"a": 1}}'),
            ("nested answers", "/api/judge", '{"offer": "a", "answer": [[1]]}'),
            ("infinity", "/api/judge", '{"offer": "a", "answer": [1e999]}'),
            ("true", "/api/judge", '{"offer": "a", "answer": [true]}'),
        )
    }),
    *_of("somebody else's offer", (404,), {
        "a guess": posted("/api/judge", JUDGED),
        "SQL": posted("/api/judge", '{"offer": "\' OR 1=1; DROP TABLE offers; --", "answer": []}'),
        "a null character": posted("/api/judge", '{"offer": "a\\u0000", "answer": []}'),
        "a large number": posted("/api/judge", '{"offer": "a", "answer": [' + "9" * 400 + "]}"),
        "the image of a guess": request("GET", "/image/0123456789abcdef"),
        "an image by SQL": request("GET", "/image/'%20OR%201=1"),
        "an image by half a character": request("GET", "/image/%ED%A0%80"),
    }),
    *_of("a path", (404,), {
        path: request("GET", path)
        for path in (
            "/../../etc/passwd", "/image/../../etc/passwd", "/..%2f..%2fetc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/app.js/../../server.py", "/app.js%00",
            "/..\\..\\etc\\passwd", "/templates/page.html", "/static/app.js", "/docs", "/redoc",
            "/openapi.json", "/feedback.db", "/.git/config", "/%ff%fe", "/API/NEXT", "/api/next/x",
        )
    }),
    Attack("broken JSON: UTF-16, which JSON may be",
           posted("/api/person", '{"name": "Eve"}'.encode("utf-16")), (200,)),
    *_of("no HTTP", (200, 400, 403), {
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    }),
    *_of("no HTTP", (400, CLOSED), {
        "noise": bytes(range(256)) * 20,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "a line break in the address": b"GET / HT\nTP/1.1\r\n\r\n",
        "no version": b"GET /api/next\r\n\r\n",
        "a header without a name": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n: x\r\n\r\n",
        "a header that goes on": b"GET / HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n",
        "a space before the colon": b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n",
        "a null in a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \0\r\n\r\n",
    }),
    *_of("an upgrade", (200, 400, 426), {
        "to a websocket": request("GET", "/api/next", Connection="Upgrade", Upgrade="websocket",
                                  Sec_WebSocket_Version="13", Sec_WebSocket_Key="eA=="),
        "to HTTP/2": request("GET", "/api/next", Connection="Upgrade", Upgrade="h2c"),
    }),
    *_of("who judges", (401, 422), {
        "nobody": request("GET", "/api/next", Cookie=""),
        "an empty name": request("GET", "/api/next", Cookie="visgrpo_person="),
        "a name of line breaks": request("GET", "/api/next", Cookie="visgrpo_person=a%0D%0Ab"),
        "a long name": request("GET", "/api/next", Cookie="visgrpo_person=" + "x" * 9000),
        "10,000 cookies": request("GET", "/api/next", Cookie="a=b; " * 10_000),
    }),
)  # fmt: skip


def sent(port: int, content: bytes, seconds: float = ENOUGH) -> bytes:
    """Send bytes and return what comes back until the server closes or has answered."""
    answer = b""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=seconds)) as connection:
        try:
            connection.sendall(content.replace(b"{port}", str(port).encode()))
            while b"\r\n\r\n" not in answer or len(answer) < _whole(answer):
                if not (more := connection.recv(2**16)):
                    break
                answer += more
        except ConnectionError:  # refused before all of it was sent
            pass
    return answer


def _whole(answer: bytes) -> int:
    """How many bytes an answer has, by its own word; it is never sent in chunks."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n")[1:]
               if line.startswith(b"content-length:")]  # fmt: skip
    bodiless = b" 304 " in head.partition(b"\r\n")[0]
    return len(head) + 4 + (0 if bodiless or not lengths else int(lengths[0]))


def status_of(answer: bytes) -> int:
    """The status of an answer; `CLOSED` where there is none."""
    words = answer.partition(b"\r\n")[0].split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else CLOSED


def is_well(port: int) -> bool:
    """Whether the page still answers those it is for."""
    return status_of(sent(port, request("GET", "/api/progress"))) == 200


def slow_head(port: int, seconds: float) -> bool:
    """A header that never ends, byte by byte; whether the connection is closed in that time."""
    return _is_closed(port, request("GET", "/api/next")[:-2], b"X", seconds)


def slow_body(port: int, seconds: float) -> bool:
    """A body that never ends, byte by byte; whether the connection is closed in that time."""
    return _is_closed(port, posted("/api/judge", "{", length="60000"), b" ", seconds)


def nothing_at_all(port: int, seconds: float) -> bool:
    """A connection that says nothing; whether it is closed in that time."""
    return _is_closed(port, b"", b"", seconds)


def nothing_more(port: int, seconds: float) -> bool:
    """A connection that stays after its answer; whether it is closed in that time."""
    return _is_closed(port, request("GET", "/api/next"), b"", seconds)


def _is_closed(port: int, first: bytes, drop: bytes, seconds: float) -> bool:
    until = time.monotonic() + seconds
    with closing(socket.create_connection(("127.0.0.1", port), timeout=0.05)) as connection:
        connection.sendall(first.replace(b"{port}", str(port).encode()))
        while time.monotonic() < until:
            try:
                connection.sendall(drop)
                if not connection.recv(2**16):
                    return True
            except TimeoutError:
                continue
            except ConnectionError:
                return True
    return False


def many_connections(port: int, count: int = 300) -> bool:
    """Idle connections, more than a server has room for; whether others are answered meanwhile."""
    with ExitStack() as idle:
        for _ in range(count):
            try:
                address = ("127.0.0.1", port)
                idle.enter_context(closing(socket.create_connection(address, timeout=ENOUGH)))
            except ConnectionError:
                continue
        return all(is_well(port) for _ in range(5))


def unread_answers(port: int, count: int = 100) -> bool:
    """Requests one after the other whose answers nobody reads; whether others are answered."""
    with ExitStack() as deaf:
        for _ in range(count):
            address = ("127.0.0.1", port)
            connection = deaf.enter_context(closing(socket.create_connection(address, timeout=1)))
            try:
                asked = request("GET", "/app.js").replace(b"{port}", str(port).encode())
                connection.sendall(asked * 50)
            except (ConnectionError, TimeoutError):
                continue
        return is_well(port)


LASTING: dict[str, Callable[[int, float], bool]] = {
    "a slow head": slow_head,
    "a slow body": slow_body,
    "a connection that says nothing": nothing_at_all,
    "a connection that stays after its answer": nothing_more,
    "300 idle connections": lambda port, seconds: many_connections(port),
    "answers that nobody reads": lambda port, seconds: unread_answers(port),
}
"""Attacks by time and number: whether the server stood them, given the seconds it may take."""


def outcome(port: int, attack: Attack) -> Outcome:
    """Attack a server and say what is wrong with how it took it."""
    answer = sent(port, attack.request)
    status, wrong = status_of(answer), ""
    if status not in attack.statuses:
        wrong = f"answered {status}, and not {' or '.join(map(str, attack.statuses))}"
    elif b"Traceback" in answer or b"root:" in answer:
        wrong = "its answer says what is nobody's business"
    elif status >= 400 and b"application/json" in answer.lower() and attack.request[:4] != b"HEAD":
        told = json.loads(answer.partition(b"\r\n\r\n")[2])
        wrong = "" if "error" in told and "\n" not in told["error"] else "not one line of an error"
    if not wrong and not is_well(port):
        wrong = "answers nobody any more"
    return Outcome(attack.name, status, wrong)


def campaign(port: int, seconds: float = 30.0) -> Iterator[Outcome]:
    """Attack a server in every way that there is here."""
    for attack in ATTACKS:
        yield outcome(port, attack)
    for name, stands in LASTING.items():
        wrong = "" if stands(port, seconds) and is_well(port) else "it did not stand that"
        yield Outcome(name, CLOSED, wrong)
