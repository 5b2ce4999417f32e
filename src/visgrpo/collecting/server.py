"""The page's server: a few addresses around a `Collector`, and whom it answers, how patiently."""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, StrictInt, StrictStr
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from visgrpo.collecting.collector import Collector, LearningState
from visgrpo.collecting.design import BadAnswer
from visgrpo.collecting.options import is_loopback
from visgrpo.collecting.store import AlreadyJudged, NothingToUndo
from visgrpo.collecting.tables import NoSuchOffer, StoreTrouble
from visgrpo.errors import UserError

PERSON_COOKIE = "visgrpo_person"
LONGEST_NAME = 80
PATIENCE = 10.0  # seconds that a browser may take for a request, or for its answer
MOST_CONNECTIONS = 64  # a browser has up to six
_YEAR = 365 * 24 * 3600
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_STATUS: dict[type[UserError], int] = {
    BadAnswer: 422,
    NoSuchOffer: 404,
    AlreadyJudged: 409,
    NothingToUndo: 409,
    StoreTrouble: 503,
}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    reason: str


@dataclass(frozen=True)
class Guard:
    """The rules of one server.

    On a loopback address the Host header must name this machine: a page elsewhere whose name was
    made to point here (DNS rebinding) says its own. On any other address the token decides. What
    changes anything must be JSON from the server's own page, which no other site's form can send.

    Attributes:
        host: the address that is listened on.
        port: its port, which tells apart the cookies of several servers on one machine.
        token: None where everyone on this machine may judge.
    """

    host: str
    port: int
    token: str | None = None

    @property
    def cookie(self) -> str:
        """The name of the cookie that holds the token."""
        return f"visgrpo_token_{self.port}"

    def brings_token(self, request: Request) -> bool:
        """Whether this request is the first, with the right token in its address."""
        return request.url.path == "/" and self._is_token(request.query_params.get("token"))

    def refusal(self, request: Request) -> Refusal | None:
        """Return why a request must not be answered, None for a good one."""
        host = request.headers.get("host", "")
        if is_loopback(self.host) and not self._names_this_machine(host):
            return Refusal(403, "This server answers on this machine only, by its own address.")
        allowed = self._is_token(request.cookies.get(self.cookie)) or self.brings_token(request)
        if self.token is not None and not allowed:
            return Refusal(401, "Open the address with ?token=… that the server printed.")
        changes = request.method == "POST"
        return _refusal_of_size(request) or (
            self._refusal_of_change(request, host) if changes else None
        )

    def _refusal_of_change(self, request: Request, host: str) -> Refusal | None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return Refusal(415, "Send JSON.")
        if not host or request.headers.get("origin", "").partition("://")[2] != host:
            return Refusal(403, "Only the server's own page may send judgements.")
        return None

    def _is_token(self, given: str | None) -> bool:
        if self.token is None or given is None:
            return False
        return secrets.compare_digest(given.encode(), self.token.encode())

    def _names_this_machine(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:  # an address with one bracket
            return False
        return name is not None and (is_loopback(name) or name == self.host)


def _refusal_of_size(request: Request) -> Refusal | None:
    """Refuse a body that is long, or does not say how long it is; only a POST must have one."""
    if "transfer-encoding" in request.headers:
        return Refusal(411, "Say how many bytes there are: a body in chunks is not taken.")
    length = request.headers.get("content-length", "" if request.method == "POST" else "0")
    if not length.isdecimal() or len(length) > _MOST_DIGITS or int(length) > MOST_BYTES:
        return Refusal(413, f"Send at most {MOST_BYTES} bytes, and say how many.")
    return None


def _whole(text: str) -> str:
    """Refuse halves of characters, which no file and no answer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("no_text", "It holds half a character") from error
    return text


Text = Annotated[StrictStr, AfterValidator(_whole)]
_NO_TEXT = ("json_invalid", "no_text")  # what is wrong before anything is asked of its fields


class Person(BaseModel):
    """Who judges."""

    name: Text


class Judged(BaseModel):
    """An answer to an offer, as `visgrpo.collecting.design.rows_of` takes it."""

    offer: Text
    answer: list[StrictInt | Text]


class PassedOver(BaseModel):
    """An offer that is not judged."""

    offer: Text


class Unnamed(UserError):
    """The browser has not said who judges."""


def create_app(collector: Collector, guard: Guard) -> FastAPI:
    """Return the application. Mistakes are answered as {"error": one line}.

    GET / is the page; GET /api/next an offer, GET /image/{offer} its picture; POST /api/judge its
    answer, /api/skip leaves it, /api/undo takes the last answer back; POST /api/person says who
    judges; GET /api/progress; GET /api/last what one judged last; GET /api/agreement how far people
    agree with each other, and with what was learned.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_guard(app, guard)
    _add_errors(app)
    _add_files(app)

    @app.post("/api/person")
    def person(body: Person, response: Response) -> dict[str, str]:
        name = _clean_name(body.name)
        response.set_cookie(
            PERSON_COOKIE, quote(name), max_age=_YEAR, httponly=True, samesite="strict"
        )
        return {"person": name}

    @app.get("/api/next")
    def next_offer(request: Request) -> dict[str, Any]:
        user = _user(request)
        offer = collector.next_offer(user)
        shown = None if offer is None else {"key": offer.key, "labels": offer.drawn.labels}
        design = collector.design
        said = {"ask": design.ask, "question": design.question, "offer": shown}
        return {**said, **_progress(collector, user)}

    @app.post("/api/judge")
    def judge(body: Judged, request: Request) -> dict[str, Any]:
        user = _user(request)
        collector.judge(body.offer, user, body.answer)
        return _progress(collector, user)

    @app.post("/api/undo")
    def undo(request: Request) -> dict[str, Any]:
        user = _user(request)
        collector.undo(user)
        return _progress(collector, user)

    @app.post("/api/skip")
    def skip(body: PassedOver, request: Request) -> dict[str, Any]:
        user = _user(request)
        collector.pass_over(body.offer, user)
        return _progress(collector, user)

    @app.get("/api/last")
    def last(request: Request) -> list[dict[str, Any]]:
        return [asdict(each) for each in collector.last(_user(request))]

    @app.get("/api/agreement")
    def agreement(request: Request) -> dict[str, Any]:
        _user(request)
        (pairs, agreed), verdict = collector.people_agree(), collector.verdict()
        return {"pairs": pairs, "people": agreed, "verdict": verdict and str(verdict)}

    @app.get("/api/progress")
    def progress(request: Request) -> dict[str, Any]:
        return _progress(collector, _user(request))

    @app.get("/image/{offer}")
    def image(offer: str, request: Request) -> Response:
        picture = collector.picture(offer, _user(request))
        # An offer's key is used once, so its picture never changes.
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(picture.content, media_type=picture.kind, headers=headers)

    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        UserError: when the address is not this machine's, or the port is taken.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return _bound(socket.socket(family, socket.SOCK_STREAM), address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port {port} is in use: name another, or 0 for a free one."
            ) from error
        raise UserError(f"--host {host} --port {port} cannot be used: {error.strerror}.") from error
    except UnicodeError as error:
        raise UserError(f"--host {host[:99]} is no name of a machine: {error}.") from error


def _bound(listener: socket.socket, address: Any) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def server_of(app: FastAPI) -> uvicorn.Server:
    """Return a server whose `run(sockets=[…])` ends at Ctrl-C. It logs no addresses: the first
    one that a person opens may hold the token."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            log_level="error",  # whatever strangers send is answered, and not worth a line
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
    )


class Connection(H11Protocol):
    """A connection that is closed where the other side keeps it waiting, or newer ones need room.

    The time runs from its beginning, or from the last answer: slow and endless headers and bodies,
    idle connections and answers that nobody reads are all late. Where there are too many
    connections, the one that has waited longest goes, so that whoever comes next is answered.
    """

    since: float
    _look: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self._look = self.loop.call_later(PATIENCE, self._leave_if_late)
        there = [each for each in self.connections if not each.transport.is_closing()]
        others = (each for each in there if isinstance(each, Connection) and each is not self)
        waiting = [each for each in others if each._waits()]
        # Those that are being answered soon are not: a few more may come meanwhile.
        if len(there) > (MOST_CONNECTIONS if waiting else 2 * MOST_CONNECTIONS):
            min(waiting, key=lambda each: each.since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        if self.conn.trailing_data[0]:  # no browser asks again before it has the answer
            self.transport.close()
        super().on_response_complete()

    def _waits(self) -> bool:
        """Whether the other side is to do something: to send a request, or to take its answer."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered or self.cycle.more_body or self.transport.get_write_buffer_size() > 0

    def _leave_if_late(self) -> None:
        late = self.loop.time() - self.since >= PATIENCE
        if late and self._waits():
            self.transport.abort()
        else:
            rest = PATIENCE if late else self.since + PATIENCE - self.loop.time()
            self._look = self.loop.call_later(rest, self._leave_if_late)


def _add_guard(app: FastAPI, guard: Guard) -> None:
    @app.middleware("http")
    async def check(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        refusal = guard.refusal(request)
        if refusal is not None:
            # What is left of the request is not read.
            closing = {"Connection": "close"}
            response: Response = JSONResponse({"error": refusal.reason}, refusal.status, closing)
        else:
            response = await call_next(request)
        if guard.token is not None and refusal is None and guard.brings_token(request):
            response.set_cookie(
                guard.cookie, guard.token, max_age=_YEAR, httponly=True, samesite="strict"
            )
        for name, value in _HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        return response


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        content: dict[str, Any] = {"error": str(error)}
        if isinstance(error, AlreadyJudged):
            content["answer"] = error.answer
        if isinstance(error, Unnamed):
            content["needs"] = "name"
            return JSONResponse(content, 401)
        return JSONResponse(content, _STATUS.get(type(error), 422))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        first = next((each for each in found if each["type"] in _NO_TEXT), found[0])
        place = ".".join(map(str, first["loc"]))
        status = 400 if first["type"] in _NO_TEXT else 422
        return JSONResponse({"error": f"{place}: {first['msg']}."}, status)

    @app.exception_handler(HTTPException)
    async def no_such_thing(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": f"{error.detail}."}, error.status_code, error.headers)


def _add_files(app: FastAPI) -> None:
    folder = files("visgrpo.collecting") / "templates"
    for path, (name, kind) in _FILES.items():
        app.get(path)(_answering((folder / name).read_bytes(), kind))


def _answering(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind)


def _progress(collector: Collector, user: str) -> dict[str, Any]:
    learning = collector.learner.state if collector.learner else LearningState()
    return {
        "person": user,
        "progress": {**asdict(collector.progress(user)), "skipped": len(collector.skipped)},
        "learning": asdict(learning) if collector.learner else None,
    }


def _user(request: Request) -> str:
    name = request.cookies.get(PERSON_COOKIE)
    if name is None:
        raise Unnamed("Say who judges first.")
    return _clean_name(unquote(name))


def _clean_name(name: str) -> str:
    """Return a name without spaces around it; it is only ever shown as text."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"A name has 1 to {LONGEST_NAME} letters, and no line breaks.")
    return name


MOST_BYTES = 64 * 1024  # of a request; a judgement has a few hundred
_MOST_DIGITS = 20  # of a number that says so: longer ones Python would refuse to read
