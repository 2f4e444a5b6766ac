"""Failed logins: each further one from an address is answered later. A correct one never waits."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Failures that are answered at once: from one address, and in all.
FREE: Final = 5.0
FREE_IN_ALL: Final = 50.0
#: Seconds until one failure is forgotten.
FORGET: Final = 10.0
#: The longest delay of an answer in seconds.
LONGEST: Final = 8.0
#: Doublings of the delay, at most: the effect of a long attack ends soon after it.
DOUBLINGS: Final = 6.0
#: Addresses to remember, which bounds the memory; the oldest failure is forgotten first.
ADDRESSES: Final = 1024
#: Delayed answers at a time. Further ones are refused at once: each costs an open connection.
WAITING: Final = 128


@dataclass
class _Bucket:
    """A leaky bucket: each failure adds one, time drains it."""

    free: float
    level: float = 0.0
    since: float = 0.0

    def add(self, now: float) -> float:
        """Count a failure. Returns the excess over the limit."""
        self.level = max(0.0, self.level - (now - self.since) / FORGET) + 1.0
        self.level = min(self.level, self.free + DOUBLINGS)
        self.since = now
        return self.level - self.free


class Failures:
    """Counts failed logins, by address and in all, in bounded memory.

    Nobody is locked out: correct credentials are accepted at once, however many attempts failed.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = _Bucket(FREE_IN_ALL)
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()
        self._waiting = 0

    def count(self, address: str) -> float:
        """Count a failure of ``address``. Returns the delay of its answer in seconds."""
        key = _network(address)
        bucket = self._addresses.setdefault(key, _Bucket(FREE))
        self._addresses.move_to_end(key)
        if len(self._addresses) > ADDRESSES:
            self._addresses.popitem(last=False)
        now = self._clock()
        excess = max(bucket.add(now), self._all.add(now))
        return min(LONGEST, 2.0 ** (excess - 3.0)) if excess > 0 else 0.0

    async def wait(self, seconds: float) -> None:
        """Delay an answer, unless too many are delayed."""
        if self._waiting >= WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting -= 1


def retry_after(seconds: float) -> int:
    """Whole seconds, for the header Retry-After."""
    return max(1, math.ceil(seconds))


def _network(address: str) -> str:
    """The part of an address that a client can't choose: of IPv6 the upper half."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    return address if ip.version == 4 else str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
