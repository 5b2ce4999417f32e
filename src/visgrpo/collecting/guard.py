"""Who may talk to the page's server: this machine's browsers, or whoever knows the token."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_BYTES = 64 * 1024  # of a request; a judgement has a few hundred
_MOST_DIGITS = 20  # of a number that says so: longer ones Python would refuse to read


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


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
