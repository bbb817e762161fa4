"""What is logged: lines of JSON on standard error, one a request; no photo, name, key or query is in them."""

from __future__ import annotations

import logging
import re
import select
import traceback
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pythonjsonlogger.json import JsonFormatter

from pigeonhole.errors import PigeonholeError, ServiceError

log = logging.getLogger(__name__)

MOST = 2048  # bytes of a line; a pipe takes up to 4096 in one piece, so lines of several workers do not mix
NAMES = {"asctime": "time", "levelname": "level", "exc_info": "traceback"}
LONG = ("traceback", "message")  # what may be too long for a line
KEPT = (1200, 400, 60)  # characters of its end, which says why; in JSON one takes up to 12 bytes
CUT = "…"


def start_logging(level: str) -> None:
    """Log to standard error what the service has to say from `level` on, a name in any case."""
    handler = Lines()
    handler.setFormatter(JSONLine())
    logging.basicConfig(handlers=[handler])
    # ours only: what Pillow says at debug level holds the photo's metadata
    logging.getLogger("pigeonhole").setLevel(level.upper())
    logging.captureWarnings(True)


def tell_request(
    request_id: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    *,
    code: str | None = None,
    trouble: BaseException | None = None,
    **more: int | str | None,
) -> None:
    """The one line of a request: `path` as it was asked for, without its query; `code` and `trouble` of a refusal.

    What of `more` is None is left out. Our own trouble, a status of 503, is told as an error.
    """
    fields: dict[str, Any] = {
        "request_id": request_id,
        "method": re.sub(r"[^!-~]", "?", method[:10]),
        "path": quote(path[:200], errors="replace")[:200],  # one printable word, whatever was asked for
        "status": status,
        "code": code,
        "milliseconds": round(seconds * 1000, 2),
        "traceback": shown(trouble) if trouble else None,
        **more,
    }
    told = {name: value for name, value in fields.items() if value is not None}
    log.log(logging.ERROR if status == ServiceError.status else logging.INFO, told)


def shown(trouble: BaseException) -> str:
    """Where it began, and why; the words of what nobody foresaw are left out, as they may quote what was sent."""
    root = trouble
    while root.__cause__:
        root = root.__cause__
    frames = "".join(traceback.format_tb(root.__traceback__))
    return f"{frames}{type(root).__name__}" + (f": {root}" if isinstance(trouble, PigeonholeError) else "")


class JSONLine(JsonFormatter):
    """A record as one line of printable ASCII, of `MOST` bytes."""

    def __init__(self) -> None:
        super().__init__(["asctime", "levelname", "message"], rename_fields=NAMES)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        if not log_data["message"]:
            del log_data["message"]
        long = [name for name in LONG if name in log_data]
        for most in KEPT if long else ():
            if len(self.jsonify_log_record(log_data)) <= MOST:
                break
            log_data.update({name: CUT + str(log_data[name])[-most:] for name in long})
        return log_data


class Lines(logging.StreamHandler[Any]):
    """Writes lines to standard error, as long as they are taken; no request fails or waits for one that is not."""

    lost = 0  # lines that were not taken, in this process

    def emit(self, record: logging.LogRecord) -> None:
        if self._has_room():
            super().emit(record)
        else:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        Lines.lost += 1

    def _has_room(self) -> bool:
        try:
            return bool(select.select([], [self.stream], [], 0)[1])
        except (OSError, ValueError, TypeError):  # it is closed, or no file of the system's; writing will tell
            return True
