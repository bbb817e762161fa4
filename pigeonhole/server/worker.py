"""gunicorn's threaded worker with a front of its own: one event loop receives, threads answer, the loop sends.

A request goes to a thread when all of it is here, and its answer leaves without one. So clients that drip, stall or
read slowly hold sockets, each until a deadline, and never a thread; and of requests only so many wait, beyond which
they are refused at once. What is refused here is answered in the service's own JSON.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import resource
import selectors
import signal
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gunicorn.errors import ConfigError
from gunicorn.http import wsgi
from gunicorn.workers.gthread import ThreadWorker

from pigeonhole.errors import OUR_FAULT, Overloaded, RequestError, ServiceError, SlowUpload
from pigeonhole.server.connection import Connection, Outbox, State
from pigeonhole.server.incoming import WITHOUT_BODY, Incoming, Limits
from pigeonhole.server.lanes import Lane
from pigeonhole.server.refusals import TOO_MUCH, refusal, shared_with
from pigeonhole.web.log_lines import tell_request
from pigeonhole.web.metrics import NOWHERE

log = logging.getLogger(__name__)

QUICK_THREADS = 2  # for what needs no picture: a probe is answered while all others are at work
TICK = 0.25  # seconds between two looks at the deadlines
READ = 256 * 1024  # bytes at a time; each read may wait 5 ms for Python's lock, so that fewer are faster
ACCEPTED_AT_ONCE = 64  # connections, before others get their turn
EVICTED_OF = 100  # one of so many connections goes when there is no room for another
SEND_SECONDS = 10  # for a client to read its answer
SEND_BUFFER = 128 * 1024  # bytes; the kernel would hold 4 MB of answers for a client that does not read
LINGER_SECONDS = 5  # for a refused client to stop sending, so that it gets to read why
LINGER_BODIES = 4  # times the largest body
LAST_REQUEST_SECONDS = 2  # for a request that is on its way when the service stops
STALE_SECONDS = 1  # after which it is worth a look whether the client still waits
MOST_DESCRIPTORS = 65_536  # as many as anybody needs, where there is no limit
FILES_A_REQUEST = 3  # its socket and its files
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
TOO_MANY = "too many connections are open; please try again."
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


def is_app(wsgi: object) -> bool:
    """Under `--reload` gunicorn puts something else in the place of an app with a syntax error."""
    return hasattr(wsgi, "extensions")


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """A worker for `worker_class`; the app's `config["SETTINGS"]` has its limits."""

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.is_ssl:
            raise ConfigError("this worker speaks no TLS; put a proxy in front that does.")

    def init_process(self) -> None:
        _raise_descriptor_limit()
        super().init_process()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Ctrl-C, too, lets what was accepted be answered; pressed again, it does not."""
        if sig == signal.SIGINT and not self.alive:
            super().handle_quit(sig, frame)
        self.handle_exit(sig, frame)  # the master, interrupted, sends SIGQUIT

    def get_thread_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.cfg.threads, "answering")

    def run(self) -> None:
        """Serve until told to stop, then until all that was accepted is answered."""
        if not is_app(self.wsgi):
            self._await_change()
            return
        self._begin()
        while self.alive and self.is_parent_alive():
            self._turn()
        self._finish()
        self._end()

    def _await_change(self) -> None:
        while self.alive and self.is_parent_alive():
            self.notify()
            time.sleep(TICK)

    # the loop

    def _begin(self) -> None:
        self.alive: bool
        settings = self.wsgi.config["SETTINGS"]
        self._bodies: int = self.wsgi.extensions["measured"].room.bodies  # bytes of them that may be here
        self._limits = Limits(min(settings.max_body_bytes, self._bodies), settings.uploads)
        self._receive_seconds: float = settings.receive_seconds
        self._answer_seconds: float = settings.answer_seconds
        self._origins: frozenset[str] = settings.origins
        self._lane = Lane(self.tpool, self.cfg.threads, settings.max_waiting)
        self._quick_lane = Lane(ThreadPoolExecutor(QUICK_THREADS, "quick"), QUICK_THREADS, settings.max_waiting)
        self._metrics = self.wsgi.extensions["metrics"]
        self._metrics.waiting.set_function(lambda: self._lane.waiting)
        self._connections: set[Connection] = set()
        self._held = 0  # bytes of bodies
        self._swept = 0.0
        self._most = _room_for_connections(self.cfg.worker_connections, self.cfg.threads)
        for listener in self.sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # whom it accepts has it from there
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        self.set_accept_enabled(True)

    def _turn(self) -> None:
        self.notify()
        for key, _ in self.poller.select(TICK):
            key.data(key.fileobj)
        now = time.monotonic()
        if now - self._swept >= TICK:
            self._swept = now
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for connection in [one for one in self._connections if one.deadline < now]:
            self._guarded(self._end_patience, connection)
        if self.alive:
            self.set_accept_enabled(len(self._connections) < self._most or self._can_evict())

    def _end_patience(self, connection: Connection) -> None:
        if connection.state is State.RECEIVING and connection.incoming.has_begun:
            seconds = f"{self._receive_seconds:g} seconds"
            self._refuse(connection, SlowUpload(f"the request did not come within {seconds}."))
        else:
            self._drop(connection)

    def _finish(self) -> None:
        """Take nobody new, and answer whoever is here; whoever waits to be accepted counts as being here."""
        for listener in self.sockets:
            listener.setblocking(False)
            while len(self._connections) < self._most and self._accept_one(listener):
                pass
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        now = time.monotonic()
        for connection in self._connections:
            if connection.is_idle:
                connection.deadline = min(connection.deadline, now + LAST_REQUEST_SECONDS)
        while self._connections and time.monotonic() < now + self.cfg.graceful_timeout:
            self._turn()

    def _end(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self._lane.close()
        self._quick_lane.close()
        self.poller.close()
        self.method_queue.close()

    # accepting

    def accept(self, listener: socket.socket) -> None:
        """Take whoever waits at `listener`; where there is no room, those who have done nothing longest go first."""
        for _ in range(ACCEPTED_AT_ONCE):
            if not self._accept_one(listener):
                return
            if len(self._connections) > self._most and not self._evict():
                self.set_accept_enabled(False)  # until the next sweep
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            connected, client = listener.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS and self._accepting and not self._evict():
                self.set_accept_enabled(False)
            return False
        connected.setblocking(False)
        deadline = time.monotonic() + self._receive_seconds
        incoming = Incoming(self.cfg, client, 1, self._limits)
        connection = Connection(connected, client, listener.getsockname(), incoming, deadline)
        self._connections.add(connection)
        self._guarded(self._read, connection)
        return True

    def _can_evict(self) -> bool:
        return any(one.state is not State.ANSWERING for one in self._connections)

    def _evict(self) -> bool:
        """Close a few that wait for their client: refused and answered ones first, then those whose time is up soonest.

        Who has just come has most time, and stays.
        """
        waiting = [one for one in self._connections if one.state is not State.ANSWERING]
        few = max(1, self._most // EVICTED_OF)
        for connection in heapq.nsmallest(few, waiting, key=lambda one: (not one.is_served, one.deadline)):
            self._guarded(self._send_away, connection)
        return bool(waiting)

    def _send_away(self, connection: Connection) -> None:
        if connection.state is State.RECEIVING and not connection.is_idle:
            _sent_at_once(connection.socket, self._refused(connection, Overloaded(TOO_MANY)))
        self._drop(connection)

    # receiving

    def _read(self, connection: Connection) -> None:
        if connection.state is not State.RECEIVING:
            return  # it was refused to make room, after it was found to have something to read
        try:
            data = connection.socket.recv(READ)
        except BlockingIOError:
            self._watch(connection, selectors.EVENT_READ, self._read)
        except OSError:
            self._drop(connection)
        else:
            self._take(connection, data)

    def _take(self, connection: Connection, data: bytes) -> None:
        incoming = connection.incoming
        if not data and not incoming.has_begun:
            self._drop(connection)
            return
        begins = not incoming.has_begun
        try:
            self._feed(incoming, data)
            self._admit(incoming)
            self._make_room(connection)
        except (RequestError, ServiceError) as error:
            self._refuse(connection, error)
            return
        if begins:
            connection.deadline = incoming.began + self._receive_seconds
        if incoming.is_whole:
            self._hand_over(connection)
        else:
            if incoming.waits_for_word:
                self._say_go_on(connection)
            self._watch(connection, selectors.EVENT_READ, self._read)

    def _feed(self, incoming: Incoming, data: bytes) -> None:
        before = incoming.size
        try:
            if data:
                incoming.feed(data)
            else:
                incoming.end()
        finally:
            self._held += incoming.size - before

    def _admit(self, incoming: Incoming) -> None:
        """Raise Overloaded for a request whose head is here if it would not be served, before its body comes."""
        if incoming.request is not None and not self._lane_of(incoming).has_room:
            raise Overloaded("too many requests are waiting already; please try again.")

    def _make_room(self, newcomer: Connection) -> None:
        """Where too much is held, those go whose bodies have been coming longest; raises Overloaded if there are none.

        So clients that stop just before the end are in nobody's way.
        """
        while newcomer.incoming.size and self._held > self._bodies:
            receiving = [one for one in self._connections if one.state is State.RECEIVING and one.incoming.size]
            longest = min(receiving, key=lambda one: one.deadline, default=newcomer)
            if longest is newcomer:
                raise Overloaded(TOO_MUCH)
            self._refuse(longest, Overloaded(TOO_MUCH))

    def _lane_of(self, incoming: Incoming) -> Lane:
        return self._quick_lane if incoming.is_quick else self._lane

    def _say_go_on(self, connection: Connection) -> None:
        connection.incoming.request._expected_100_continue = False
        with suppress(OSError):  # who cannot take 25 bytes will be found out by its deadline
            connection.socket.send(GO_ON)

    # answering

    def _hand_over(self, connection: Connection) -> None:
        self._unwatch(connection)
        connection.await_thread()
        lane = self._lane_of(connection.incoming)
        future = lane.submit(self._answer, connection, lane)
        future.add_done_callback(lambda done: self.method_queue.defer(self._answered, connection, lane, done))

    def _answer(self, connection: Connection, lane: Lane) -> tuple[bytes, bool]:
        """In a thread: what could not be sent at once of the answer, and whether the connection stays open."""
        try:
            content, stays = self._answer_of(connection)
        finally:
            lane.done()  # before the client can ask again
        return _sent_at_once(connection.socket, content), stays

    def _answer_of(self, connection: Connection) -> tuple[bytes, bool]:
        try:
            self._check_turn(connection)
            return self._ask_app(connection)
        except Overloaded as error:
            return self._refused(connection, error), False
        except BaseException as error:  # an app that exits would end the loop
            trouble = ServiceError(OUR_FAULT)
            trouble.__cause__ = error
            return self._refused(connection, trouble), False

    def _check_turn(self, connection: Connection) -> None:
        """Raise Overloaded if its turn came too late, or nobody waits for it any more."""
        waited = time.monotonic() - connection.incoming.received
        if waited > self._answer_seconds:
            raise Overloaded("the request waited for too long; please try again.")
        if waited > STALE_SECONDS and connection.has_hung_up:
            raise Overloaded("the client hung up before its turn.")

    def _ask_app(self, connection: Connection) -> tuple[bytes, bool]:
        incoming, outbox = connection.incoming, Outbox()
        request = incoming.request
        request.body = incoming.body
        request._expected_100_continue = False
        response, environ = wsgi.create(
            request, outbox, connection.client, connection.server, self.cfg, response_class=Answer
        )
        environ["wsgi.multithread"] = True
        environ["PATH_INFO"] = environ["PATH_INFO"] or "/"  # of "http://host", RFC 9110, section 4.2.3
        environ["pigeonhole.began"] = incoming.began
        environ["pigeonhole.received"] = incoming.received
        environ["pigeonhole.deadline"] = incoming.received + self._answer_seconds
        environ["pigeonhole.draining"] = not self.alive
        self.nr += 1
        if self.nr >= self.max_requests:
            self.alive = False
        if not self.alive or not self.cfg.keepalive:
            response.force_close()

        def start_response(status: str, *rest: Any) -> Any:
            if status >= "4" and request.method not in WITHOUT_BODY:  # what follows may be the rest of its body
                response.force_close()
            return response.start_response(status, *rest)

        parts = self.wsgi(environ, start_response)
        try:
            for part in parts:
                response.write(part)
            response.close()
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return bytes(outbox.content), not response.should_close()

    def _answered(self, connection: Connection, lane: Lane, done: Future[tuple[bytes, bool]]) -> None:
        if done.cancelled():
            lane.done()
            self._drop(connection)
            return
        self._guarded(lambda one: self._send_rest(one, *done.result()), connection)

    def _send_rest(self, connection: Connection, unsent: bytes, stays: bool) -> None:
        connection.stays = stays
        self._send(connection, unsent)

    # refusing

    def _refuse(self, connection: Connection, error: RequestError | ServiceError) -> None:
        """Answer and close: where the next request would begin is not known, or not worth waiting for."""
        connection.stays = False
        content = self._refused(connection, error)
        self._release(connection)
        self._send(connection, content)

    def _refused(self, connection: Connection, error: RequestError | ServiceError) -> bytes:
        request_id = uuid.uuid4().hex
        self._tell(connection, error, request_id)
        request = connection.incoming.request
        head_only = getattr(request, "method", None) == "HEAD"
        return refusal(error, request_id, shared_with(self._origins, request), head_only)

    def _tell(self, connection: Connection, error: RequestError | ServiceError, request_id: str) -> None:
        """Count and log what Flask does not see."""
        incoming = connection.incoming
        request = incoming.request
        method, path = (request.method, unquote(request.path)) if request else ("-", "-")
        seconds = time.monotonic() - incoming.began
        self._metrics.request(NOWHERE, method, error.status, seconds)
        trouble = error if isinstance(error, ServiceError) and error.__cause__ else None
        tell_request(request_id, method, path, error.status, seconds, code=error.code, trouble=trouble)

    # sending

    def _send(self, connection: Connection, content: bytes) -> None:
        connection.state, connection.unsent = State.SENDING, memoryview(content)
        connection.deadline = time.monotonic() + SEND_SECONDS
        self._write(connection)

    def _write(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent) if connection.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if connection.unsent:
            self._watch(connection, selectors.EVENT_WRITE, self._write)
        elif connection.stays:
            self._await_next(connection)
        else:
            self._linger(connection)

    def _await_next(self, connection: Connection) -> None:
        surplus = connection.incoming.surplus
        self._release(connection)
        connection.number += 1
        connection.incoming = Incoming(self.cfg, connection.client, connection.number, self._limits)
        connection.state = State.RECEIVING
        seconds = self.cfg.keepalive if self.alive else LAST_REQUEST_SECONDS
        connection.deadline = time.monotonic() + seconds
        if surplus:
            self._take(connection, surplus)
        else:
            self._watch(connection, selectors.EVENT_READ, self._read)

    def _linger(self, connection: Connection) -> None:
        """Hear out who still sends: to close on what is unread resets the connection, and the answer may be lost."""
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_WR)
        self._release(connection)
        connection.patience = LINGER_BODIES * self._limits.body_bytes
        connection.state = State.LINGERING
        connection.deadline = time.monotonic() + LINGER_SECONDS
        self._watch(connection, selectors.EVENT_READ, self._discard)
        self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        try:
            size = len(connection.socket.recv(READ))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        connection.patience -= size
        if not size or connection.patience <= 0:
            self._drop(connection)

    # connections

    def _watch(self, connection: Connection, events: int, then: Callable[[Connection], None]) -> None:
        data = partial(self._guarded, then, connection)
        if not connection.events:
            self.poller.register(connection.socket, events, data)
        elif connection.events != events or connection.state is State.LINGERING:
            self.poller.modify(connection.socket, events, data)
        connection.events = events

    def _unwatch(self, connection: Connection) -> None:
        if connection.events:
            connection.events = 0
            with suppress(KeyError):  # it failed to be modified, and is forgotten by that
                self.poller.unregister(connection.socket)

    def _guarded(self, then: Callable[[Connection], None], connection: Connection, _: Any = None) -> None:
        """One connection's trouble is not the others'."""
        if connection not in self._connections:  # dropped since the event was reported
            return
        try:
            then(connection)
        except Exception:
            log.exception("a connection failed")
            self._drop(connection)

    def _release(self, connection: Connection) -> None:
        self._held -= connection.incoming.size
        connection.incoming.size = 0
        connection.incoming.close()

    def _drop(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._unwatch(connection)
        self._release(connection)
        connection.socket.close()
        connection.deadline = inf


class Answer(wsgi.Response):  # type: ignore[misc]
    """gunicorn's, which does not say that it is gunicorn's."""

    def default_headers(self) -> list[str]:
        return [line for line in super().default_headers() if not line.startswith("Server:")]


def _sent_at_once(to: socket.socket, content: bytes) -> bytes:
    """What is left of `content` when the client's end is full; an answer of usual size fits."""
    with suppress(OSError):  # the loop will see it too
        return content[to.send(content) :]
    return content


def _raise_descriptor_limit() -> None:
    """As many open files as the system lets this process have: many systems start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _room_for_connections(most: int, threads: int) -> int:
    """At most `most`, and so few that the requests which are answered find descriptors as well."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    descriptors = Path("/proc/self/fd")
    used = len(os.listdir(descriptors)) if descriptors.is_dir() else 32  # noqa: PTH208
    return max(threads, min(most, soft - used - FILES_A_REQUEST * (threads + QUICK_THREADS)))
