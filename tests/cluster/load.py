"""Clients that send photos for a while, and what came of each request."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

HEAD = {"Content-Type": "image/jpeg"}


def load(url: str, photos: Sequence[bytes], seconds: float, clients: int = 8) -> Counter[str]:
    """Counts of `sent`, `right` (a 200 with the answer that this photo had first), `wrong`, a status, and `lost`."""
    host = url.removeprefix("http://")
    counts: Counter[str] = Counter()
    answers: dict[int, bytes] = {}
    lock = threading.Lock()  # guards both
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        turn = number
        while time.monotonic() < until:
            which = turn % len(photos)
            outcome, body = ask(connection, photos[which])
            with lock:
                counts["sent"] += 1
                if outcome == "200":
                    outcome = "right" if answers.setdefault(which, body) == body else "wrong"
                counts[outcome] += 1
            turn += 1
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return counts


def ask(connection: http.client.HTTPConnection, photo: bytes) -> tuple[str, bytes]:
    try:
        connection.request("POST", "/predict?top=3", photo, HEAD)
        response = connection.getresponse()
        return str(response.status), response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return "lost", b""


def meanwhile(work: Callable[[], object], after: float) -> threading.Thread:
    """Start `work` in a thread `after` seconds from now."""
    thread = threading.Timer(after, work)
    thread.start()
    return thread
