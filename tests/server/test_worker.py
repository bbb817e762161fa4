"""The worker against clients that are slow, rude or too many, over real sockets."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import GUNICORN, Server, StartServer, picture, wait_until_up
from tests.test_serving import END, HEAD, PART, connected

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
UPLOAD = HEAD + b"Content-Length: %d\r\n\r\n" % len(PART + END) + PART + END
PNG = picture("red", (4000, 3000))
LARGE = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG
SECONDS = 2  # to receive a request, of the servers here
AT_ONCE = 0.25  # seconds


@pytest.fixture(scope="module")
def impatient(start_server: StartServer, server_uploads: Path) -> Server:
    return start_server(UPLOADS=str(server_uploads), RECEIVE_SECONDS=str(SECONDS), WORKERS="1")


def all_of(connection: socket.socket) -> bytes:
    """All that comes until the other end is closed."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of one answer that has a length."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65_536) or b"\r\n\r\n"
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
    while len(body) < length:
        body += connection.recv(65_536)
    return int(head.split()[1]), body


@contextmanager
def crowd(server: Server, count: int, said: bytes = b"") -> Iterator[Sequence[socket.socket]]:
    """So many clients that say something and then nothing."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(count)]
        for client in clients:
            client.sendall(said)
        yield clients


def seconds_to_ping(server: Server) -> float:
    began = time.monotonic()
    with connected(server) as connection:
        connection.sendall(PING)
        assert answer(connection)[0] == 200
    return time.monotonic() - began


SLOW = {
    "idle": b"",
    "half a head": b"POST /predict HTTP/1.1\r\nHo",
    "half a body": UPLOAD[:-100],
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n400\r\nabc",
}


@pytest.mark.parametrize("said", SLOW.values(), ids=SLOW.keys())
def test_a_slow_client_is_cut_off(impatient: Server, said: bytes) -> None:
    """Who has not said all in time gets 408 in JSON, or just the end of the connection if nothing was said."""
    began = time.monotonic()
    with connected(impatient) as connection:
        connection.sendall(said)
        got = all_of(connection)
    assert SECONDS - 0.1 < time.monotonic() - began < SECONDS + 2
    assert (b" 408 " in got, b'"code":"slow_upload"' in got, b"Connection: close" in got) == (bool(said),) * 3


def test_dripping_buys_no_time(impatient: Server) -> None:
    """A byte now and then keeps nothing open: the deadline is for the whole request."""
    began = time.monotonic()
    with connected(impatient) as connection, suppress(OSError):
        for byte in UPLOAD[:150]:
            connection.sendall(bytes([byte]))
            time.sleep(0.2)
    assert time.monotonic() - began < SECONDS + 8  # it is heard out for five more, so that it gets its answer


def test_a_crowd_of_slow_clients(server: Server) -> None:
    """A thousand idle clients and a hundred that stopped in the middle are not in the way of others."""
    with crowd(server, 1000), crowd(server, 50, UPLOAD[:-100]), crowd(server, 50, b"GET /pi"):
        pings = sorted(seconds_to_ping(server) for _ in range(9))
        with connected(server) as connection:
            connection.sendall(UPLOAD)
            assert answer(connection)[0] == 200
    assert pings[4] < AT_ONCE


def test_more_than_there_is_room_for(start_server: StartServer, uploads: Path) -> None:
    """Where no more connections fit, those that have been idle longest make room."""
    server = start_server(UPLOADS=str(uploads), MAX_CONNECTIONS="50")
    with crowd(server, 200) as idle, connected(server) as busy:
        busy.sendall(UPLOAD)
        assert answer(busy)[0] == 200
        assert seconds_to_ping(server) < 1
        idle[0].settimeout(1)
        assert idle[0].recv(1) == b""
    assert server.stop() == 0


def test_pipelined_requests(server: Server) -> None:
    """Requests sent at once are answered in their order."""
    pieces = [PING, UPLOAD, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", UPLOAD]
    with connected(server) as connection:
        connection.sendall(b"".join(pieces) + PING.replace(b"Host", b"Connection: close\r\nHost"))
        statuses = re.findall(rb"HTTP/1.1 (\d+)", all_of(connection))
    assert statuses == [b"200", b"200", b"404", b"200", b"200"]


def test_behind_a_refused_request(server: Server) -> None:
    """What follows a request that the server refused is nobody's request."""
    with connected(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nA: \0\r\n\r\n" + PING)
        got = all_of(connection)
    assert (got.count(b"HTTP/1.1"), b"pong" in got) == (1, False)
    assert b'"code":"bad_request"' in got


def test_behind_a_refused_body(server: Server) -> None:
    """What follows a request whose body was refused is nobody's request: it may be the rest of that body."""
    short = HEAD + b"Content-Length: 9\r\n\r\n" + b"not a form" + PING
    with connected(server) as connection:
        connection.sendall(short)
        got = all_of(connection)
    assert (got.count(b"HTTP/1.1"), got.count(b"Connection: close"), b"pong" in got) == (1, 1, False)


def test_too_large_and_told_so(server: Server) -> None:
    """A client that sends far too much and reads afterwards gets to read why, and was not told to go on."""
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: 20000000\r\n\r\n"
    with connected(server) as connection:
        connection.sendall(head + bytes(20_000_000))
        connection.shutdown(socket.SHUT_WR)
        got = all_of(connection)
    assert got.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in got


def test_half_closed_and_still_listening(server: Server) -> None:
    """A client that closes its sending half after a whole request gets its answer."""
    with connected(server) as connection:
        connection.sendall(UPLOAD)
        connection.shutdown(socket.SHUT_WR)
        assert all_of(connection).startswith(b"HTTP/1.1 200")


def test_a_slow_reader_holds_no_thread(start_server: StartServer, uploads: Path) -> None:
    """Clients that ask much and read nothing leave the only thread to others."""
    server = start_server(UPLOADS=str(uploads), THREADS="1")
    asked = UPLOAD.replace(b"/predict", b"/predict?explain=1") * 20
    with crowd(server, 10, asked), connected(server) as connection:
        connection.sendall(UPLOAD)
        assert answer(connection)[0] == 200
        assert seconds_to_ping(server) < 1
    assert server.stop() == 0


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle(start_server: StartServer, uploads: Path, by: signal.Signals) -> None:
    """A request that was accepted before the service is stopped is answered, also if its end comes later."""
    server = start_server(UPLOADS=str(uploads))
    with connected(server) as connection:
        connection.sendall(UPLOAD[:-100])
        assert seconds_to_ping(server) < 5  # so it is accepted
        server.process.send_signal(by)
        time.sleep(0.5)
        connection.sendall(UPLOAD[-100:])
        assert answer(connection)[0] == 200
    assert server.process.wait(10) == 0


def test_more_than_can_wait(start_server: StartServer, uploads: Path) -> None:
    """Of many requests at once, what does not fit into the queue is refused at once; pings have a way of their own."""
    server = start_server(UPLOADS=str(uploads), THREADS="1", MAX_WAITING="2")
    with crowd(server, 30, LARGE) as clients, ThreadPoolExecutor(30) as pool:
        assert seconds_to_ping(server) < AT_ONCE * 2
        answers = list(pool.map(answer, clients))
    statuses = [status for status, _ in answers]
    assert (set(statuses), 3 <= statuses.count(200) < 15) == ({200, 503}, True)
    assert all(b'"code":"overloaded"' in body for status, body in answers if status == 503)
    assert server.stop() == 0


def test_turns_that_come_too_late(start_server: StartServer, uploads: Path) -> None:
    """A request that waited longer than anybody would is not worked for."""
    server = start_server(UPLOADS=str(uploads), THREADS="1", ANSWER_SECONDS="0.3")
    with crowd(server, 20, LARGE) as clients, ThreadPoolExecutor(20) as pool:
        statuses = [status for status, _ in pool.map(answer, clients)]
    assert {200, 503} == set(statuses)
    assert server.stop() == 0


def test_few_descriptors(start_server: StartServer, uploads: Path) -> None:
    """With 64 descriptors and 200 clients the service goes on, without a busy loop, and recovers."""
    command = ("sh", "-c", "ulimit -n 64; exec " + shlex.join(GUNICORN))
    server = start_server(command=command, UPLOADS=str(uploads))
    with crowd(server, 200, b"GET /pi"):
        assert seconds_to_ping(server) < 2
    with connected(server) as connection:
        connection.sendall(UPLOAD)
        assert answer(connection)[0] == 200
    assert server.stop() == 0


def test_stalled_uploads_make_room(start_server: StartServer, uploads: Path) -> None:
    """Where clients hold all that may be received and stop before the end, the one that came first goes."""
    server = start_server(UPLOADS=str(uploads), MAX_BODY_BYTES="200000")
    body = PART.ljust(199_000 - len(END), b"\0")
    stalled = HEAD + b"Content-Length: 199999\r\n\r\n" + body
    with crowd(server, 1, stalled) as first, crowd(server, 19, stalled), connected(server) as connection:
        connection.sendall(UPLOAD)
        assert answer(connection)[0] == 200
        assert b'"code":"overloaded"' in answer(first[0])[1]
    assert server.stop() == 0


def test_pages_of_others_may_read_refusals(start_server: StartServer, uploads: Path) -> None:
    """Where another origin's pages may read answers, they may read those that Flask never saw, and no others may."""
    server = start_server(UPLOADS=str(uploads), CORS_ORIGINS="https://example.com")
    for origin in (b"https://example.com", b"https://example.org"):
        with connected(server) as connection:
            connection.sendall(HEAD + b"Origin: " + origin + b"\r\nContent-Length: 99999999\r\n\r\n")
            got = all_of(connection)
        allowed = b"\r\nAccess-Control-Allow-Origin: https://example.com\r\n" in got
        assert (b" 413 " in got, allowed) == (True, origin.endswith(b".com"))
    assert server.stop() == 0


def test_who_has_just_come_stays(start_server: StartServer, uploads: Path) -> None:
    """Where all connections are taken by half-said requests, a client that connects and waits a moment is served."""
    server = start_server(UPLOADS=str(uploads), MAX_CONNECTIONS="60")
    with crowd(server, 80, b"GET /pi"), connected(server) as connection:
        time.sleep(0.1)
        connection.sendall(PING)
        assert answer(connection)[0] == 200
    assert server.stop() == 0


def test_answers_outlive_what_comes_late(server: Server) -> None:
    """What a client says behind a refused request does not cost it the answers that it has not read yet."""
    large = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    refused = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: text/x\r\nContent-Length: 2\r\n\r\nhi"
    with connected(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(large + refused)
        time.sleep(0.5)
        connection.sendall(PING * 3)
        time.sleep(0.2)
        got = all_of(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"415"]
    assert got.endswith(b"}\n")


def test_no_waiting_room(start_server: StartServer, uploads: Path) -> None:
    """Without a waiting room, one client after the other is served all the same."""
    server = start_server(UPLOADS=str(uploads), THREADS="1", MAX_WAITING="0")
    with connected(server) as connection:
        for request in [UPLOAD, PING] * 40:
            connection.sendall(request)
            assert answer(connection)[0] == 200
    assert server.stop() == 0


def test_an_address_without_a_path(server: Server) -> None:
    """`http://host` is the page, and sends nobody to another host."""
    with connected(server) as connection:
        connection.sendall(b"GET http://a HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n")
        got = all_of(connection)
    assert (got[:15], b"Location" in got) == (b"HTTP/1.1 200 OK", False)


def test_a_syntax_error_while_reloading(start_server: StartServer, tmp_path: Path) -> None:
    """Under --reload a syntax error is told and waited out: once it is mended, the service is there."""
    module = tmp_path / "edited.py"
    module.write_text("app = \n")
    command = [*GUNICORN[:-1], "--reload", "edited:app"]
    server = start_server(command=command, wait=False, PYTHONPATH=str(tmp_path))
    deadline = time.monotonic() + 30
    while "SyntaxError" not in server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)  # gunicorn looks at the files once a second, and has to have seen this one
    assert server.process.poll() is None
    module.write_text("from app import app\n")
    wait_until_up(server)
    assert server.stop() == 0
