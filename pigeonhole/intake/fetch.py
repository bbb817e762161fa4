"""Fetch a picture from an address that a client chose, without letting it reach anything but public web servers.

What could be turned against somebody is decided before the first packet: the address (see `addresses`), and every
network address its name has. The name is looked up once for each hop, and what is dialled is an address that this
look-up found and that was found public, so a name that answers differently the next time changes nothing; TLS, SNI and
Host keep the name. Nothing is sent along but `HEADERS`: no cookies, no credentials, nothing of the client's, and no
proxy is asked. Whatever the server does, the fetch ends after a number of seconds and of bytes, and the socket is
closed, not drained.

A refusal says nothing that the client could not know of a public server: not what a name was found to be, not whether a
port is open, not a word of what was answered.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_address
from threading import BoundedSemaphore
from typing import IO, TYPE_CHECKING

from pigeonhole.errors import Overloaded, PigeonholeError, URLFailed, URLNotAllowed
from pigeonhole.intake.addresses import NOT_PUBLIC, IPAddress, WebAddress, is_public, redirected, web_address

if TYPE_CHECKING:
    import dns.resolver
    from httpcore import NetworkStream, Response
else:
    NetworkStream = object  # httpcore takes 60 ms and 10 MB, so it is imported by the first fetch

SECONDS = 8.0  # for everything: looking up, connecting, redirects, the last byte
CONNECT_SECONDS = 3.0  # for one network address
LOOKUP_SECONDS = 4.0  # for one name; dnspython, waiting to ask again, can be 0.2 s late after 4, and 0.8 s after 8
MAX_REDIRECTS = 3
MAX_DIALLED = 3  # network addresses of one name: nobody gets us to knock on a thousand doors
MAX_AROUND = 64 * 1024  # bytes that are no content: heads, the sizes of chunks, trailers
FRAMING = 16  # chunks may take a sixteenth more than their content: in chunks of a byte, 10 MB keep a core busy for 5 s

USER_AGENT = "Pigeonhole (image classifier)"  # a service refuses to fetch for another, or for itself
HEADERS = (
    ("User-Agent", USER_AGENT),
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)
REDIRECTS = (301, 302, 303, 307, 308)

Resolve = Callable[[str, float], Sequence[IPAddress]]
"""A host name and the seconds left -> all its addresses, none if there are none; raises if nobody knows."""

Connect = Callable[[IPAddress, int, float], socket.socket]
"""An address, a port and the seconds left -> a connected socket."""


def resolver_of(resolver: dns.resolver.Resolver) -> Resolve:
    """Look names up with `resolver`, IPv4 before IPv6; neither /etc/hosts nor search domains take part."""
    from dns.name import from_text
    from dns.resolver import NXDOMAIN

    def resolve(host: str, seconds: float) -> Sequence[IPAddress]:
        name, deadline = from_text(host + "."), _Deadline(seconds)
        try:
            return [
                ip_address(record.address)
                for kind in ("A", "AAAA")
                for record in resolver.resolve(name, kind, lifetime=deadline.left(), raise_on_no_answer=False)
            ]
        except NXDOMAIN:
            return []

    return resolve


def resolve(host: str, seconds: float) -> Sequence[IPAddress]:
    """Ask this machine's name servers, as they are set now."""
    from dns.resolver import Resolver

    return resolver_of(Resolver())(host, seconds)


def connect(address: IPAddress, port: int, seconds: float) -> socket.socket:
    """Dial, but not ourselves: to its own public address a machine gets past what guards it from outside.

    Raises:
        OSError: nobody answers.
        URLNotAllowed: both ends are this machine.
    """
    connected = socket.create_connection((str(address), port), seconds)
    if connected.getsockname()[0] == connected.getpeername()[0]:
        connected.close()
        raise URLNotAllowed(NOT_PUBLIC)
    return connected


class Fetcher:
    """Fetches pictures of at most `limit` bytes, at most `at_once` at the same time; the others are refused."""

    def __init__(
        self,
        limit: int,
        at_once: int,
        *,
        resolve: Resolve = resolve,
        connect: Connect = connect,
        trust: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self._limit = limit
        self._resolve, self._connect, self._given_trust = resolve, connect, trust
        self._seconds, self._connect_seconds = seconds, connect_seconds
        self._places = BoundedSemaphore(at_once)  # guards threads: a fetch can hold one for `seconds`

    def fetch(self, url: str, into: IO[bytes]) -> None:
        """Write what is at `url` into `into`; of a fetch that fails, a part may have been written.

        Raises:
            BadURL: `url` is no address.
            URLNotAllowed: it, or one that it redirects to, is not of a public web server.
            URLFailed: the server does not answer with a file of the allowed size in the allowed time.
            Overloaded: as many are being fetched as may be.
        """
        address = web_address(url)
        if not self._places.acquire(blocking=False):
            raise Overloaded("as many addresses as possible are being fetched already; please try again.")
        try:
            self._follow(address, into, _Deadline(self._seconds))
        finally:
            self._places.release()

    def _follow(self, address: WebAddress, into: IO[bytes], deadline: _Deadline) -> None:
        for _ in range(1 + MAX_REDIRECTS):
            with self._answer(address, deadline) as (answer, wire):
                _check_encoding(answer)
                if answer.status not in REDIRECTS:
                    return self._receive(answer, wire, into)
                address = redirected(address, _location(answer))
        raise URLFailed(f"the address redirects more than {MAX_REDIRECTS} times.")

    @contextmanager
    def _answer(self, address: WebAddress, deadline: _Deadline) -> Iterator[tuple[Response, _Wire]]:
        """The answer's head; its body is still to be read from the wire."""
        from httpcore import URL, HTTP11Connection, Request

        host = str(address.host)
        url = URL(scheme=address.scheme, host=host, port=address.port, target=address.target)
        request = Request("GET", url, headers=[("Host", address.netloc), *HEADERS])
        with self._trouble():
            wire = _Wire(self._dial(address, deadline), deadline, MAX_AROUND)
        try:
            with self._trouble():
                if address.scheme == "https":
                    wire.encrypt(self._trust, host)
                answer = HTTP11Connection(url.origin, wire).handle_request(request)
            yield answer, wire
        finally:
            wire.close()

    def _dial(self, address: WebAddress, deadline: _Deadline) -> socket.socket:
        found = self._public(address.host, deadline)
        failures = []
        for candidate in found[:MAX_DIALLED]:
            try:
                return self._connect(candidate, address.port, min(self._connect_seconds, deadline.left()))
            except OSError as error:
                failures.append(error)
        raise ExceptionGroup("no address answers", failures)

    def _public(self, host: str | IPAddress, deadline: _Deadline) -> Sequence[IPAddress]:
        """The addresses of `host`, at least one and all public; none and a private one are refused alike.

        Else a client could ask which names there are inside.
        """
        found = self._resolve(host, min(LOOKUP_SECONDS, deadline.left())) if isinstance(host, str) else [host]
        if not found or not all(map(is_public, found)):
            raise URLNotAllowed(NOT_PUBLIC)
        return found

    def _receive(self, answer: Response, wire: _Wire, into: IO[bytes]) -> None:
        if answer.status != 200:
            raise URLFailed(f"the server of the address answered with status {answer.status}, not 200.")
        if any(int(length) > self._limit for length in _values(answer, b"content-length")):
            raise self._too_large()
        count = 0
        for chunk in self._chunks(answer):
            count += len(chunk)
            if count > self._limit:
                raise self._too_large()
            into.write(chunk)
            wire.bytes_left += len(chunk) + len(chunk) // FRAMING

    def _chunks(self, answer: Response) -> Iterator[bytes]:
        with self._trouble():
            yield from answer.iter_stream()

    def _too_large(self) -> URLFailed:
        return URLFailed(f"the file at the address is larger than {self._limit} bytes.")

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """One sentence for whatever goes wrong on the way: a name, a closed port, a certificate, a broken answer."""
        try:
            yield
        except (PigeonholeError, MemoryError):
            raise
        except Exception as error:  # dnspython, ssl, httpcore and h11 raise dozens of kinds, ValueError among them
            raise URLFailed(
                "the picture cannot be fetched: a public web server has to send it, under https:// with a valid "
                f"certificate, within {self._seconds:g} seconds."
            ) from error

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        return self._given_trust or ssl.create_default_context()


class _Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, more than none.

        Raises:
            TimeoutError: there are none.
        """
        if (left := self._end - time.monotonic()) > 0:
            return left
        raise TimeoutError


class _Wire(NetworkStream):
    """A socket that ends at a deadline, however slowly it drips, and after about so many bytes, whatever they are."""

    def __init__(self, connected: socket.socket, deadline: _Deadline, bytes_left: int) -> None:
        self._socket, self._deadline, self.bytes_left = connected, deadline, bytes_left

    def encrypt(self, trust: ssl.SSLContext, host: str) -> None:
        self._socket.settimeout(self._deadline.left())
        self._socket = trust.wrap_socket(self._socket, server_hostname=host)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.bytes_left <= 0:
            raise ConnectionAbortedError
        self._socket.settimeout(self._deadline.left())
        data = self._socket.recv(max_bytes)
        self.bytes_left -= len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._socket.settimeout(self._deadline.left())
        self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()


def _values(answer: Response, name: bytes) -> list[bytes]:
    return [value for header, value in answer.headers if header.lower() == name]


def _check_encoding(answer: Response) -> None:
    codings = b",".join(_values(answer, b"content-encoding")).lower().split(b",")
    if any(coding.strip() not in (b"", b"identity") for coding in codings):
        raise URLFailed("the server of the address compresses its answer, although it was asked not to.")


def _location(answer: Response) -> bytes:
    locations = _values(answer, b"location")
    if len(locations) != 1:
        raise URLFailed("the server of the address redirects to no address, or to several.")
    return locations[0]
