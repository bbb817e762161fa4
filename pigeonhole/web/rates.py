"""How often somebody may ask: requests are counted in this process, or for several processes in Redis."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limits.storage import Storage
    from limits.strategies import RateLimiter

PATIENCE = 0.25  # seconds for Redis to take a connection, or to answer
ASKED_AGAIN_AFTER = 10  # seconds on our own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """Where somebody stands: may this request pass, how many more may within the window, and when does it end?

    `rule` is the limit for people, `60 per 1 minute`; `reset_in` is in seconds.
    """

    is_within: bool
    rule: str
    limit: int
    remaining: int
    reset_in: int

    @property
    def headers(self) -> Mapping[str, str]:
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_in),
        }


class Rates:
    """Counts by `rate`, like `60/minute` or `10/second; 1000/day`; in `storage`, like `redis://host`, if one is named.

    Windows are fixed, and begin with somebody's first request: a number is all that is kept of each, which bounds
    memory, and when they may ask again is exact. Around a window's end twice as many may come, which does no harm here:
    what is too much for the service it refuses as overloaded.
    """

    def __init__(self, rate: str, storage: str | None = None) -> None:
        from limits import parse_many
        from limits.storage import MemoryStorage
        from limits.strategies import FixedWindowRateLimiter

        self._limits = sorted(parse_many(rate))
        self._here = FixedWindowRateLimiter(MemoryStorage())
        self._shared = FixedWindowRateLimiter(_redis(storage)) if storage else None
        self._alone_until: float | None = None  # whatever threads make of it at once, one of them is right

    def count(self, who: str) -> Standing:
        """Count a request of `who`; where Redis does not answer, in this process."""
        from limits.errors import StorageError

        if self._shared and self._is_worth_asking():
            try:
                standing = self._counted(self._shared, who)
                self._alone_until = None
                return standing
            except StorageError:
                self._go_alone()
        return self._counted(self._here, who)

    def _counted(self, counter: RateLimiter, who: str) -> Standing:
        standings = []
        for limit in self._limits:
            is_within = counter.hit(limit, who)
            reset, remaining = counter.get_window_stats(limit, who)
            seconds = max(1, math.ceil(reset - time.time()))
            standings.append(Standing(is_within, str(limit), limit.amount, remaining, seconds))
            if not is_within:
                break
        return min(standings, key=lambda standing: (standing.is_within, standing.remaining))

    def _is_worth_asking(self) -> bool:
        if self._alone_until is None:
            return True
        if time.monotonic() < self._alone_until:
            return False
        self._alone_until = time.monotonic() + ASKED_AGAIN_AFTER  # the others need not wait for what this one finds
        return True

    def _go_alone(self) -> None:
        is_news, self._alone_until = self._alone_until is None, time.monotonic() + ASKED_AGAIN_AFTER
        if is_news:
            log.warning("RATE_LIMIT_STORAGE does not answer; until it does, each worker counts for itself.")


def _redis(address: str) -> Storage:
    """Redis at `address`, which is asked once, and not for long: by itself its client would try for seconds."""
    from limits.storage import Storage, storage_from_string
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: Any = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "retry": Retry(NoBackoff(), 0)}
    storage = storage_from_string(address, wrap_exceptions=True, key_prefix="pigeonhole", **options)
    assert isinstance(storage, Storage)
    return storage
