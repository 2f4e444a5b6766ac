"""Failed logins slow down, in bounded memory, and keep nobody out who has the right one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from typing import Any

import pytest

from studies.serve import logins
from studies.serve.guard import Access, Guard
from studies.serve.logins import ADDRESSES, FORGET, FREE, FREE_IN_ALL, LONGEST, Failures

ACCESS = Access(viewer_password="look", token=None)


class Clock:
    """Stands still until it is told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_first_failures_are_free_and_each_further_one_waits_longer_up_to_a_limit() -> None:
    failures = Failures(Clock())
    waits = [failures.count("192.0.2.1") for _ in range(40)]
    free = int(FREE)
    assert waits[:free] == [0.0] * free
    assert waits[free:] == sorted(waits[free:])
    assert 0 < waits[free] < 1 < waits[-1] <= LONGEST
    assert failures.count("192.0.2.2") == 0


@pytest.mark.parametrize("attempts", [10, 1000, 100_000])
def test_it_is_forgotten_soon_however_long_it_went_on(attempts: int) -> None:
    clock = Clock()
    failures = Failures(clock)
    for _ in range(attempts):
        failures.count("192.0.2.1")
    clock.now += FORGET * 15
    assert failures.count("192.0.2.1") == 0


def test_many_addresses_together_are_slowed_down_in_bounded_memory() -> None:
    failures = Failures(Clock())
    waits = [failures.count(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(3 * ADDRESSES)]
    assert not any(waits[: int(FREE_IN_ALL)])
    assert all(waits[int(FREE_IN_ALL) :])
    assert len(failures._addresses) <= ADDRESSES


@pytest.mark.parametrize(
    "addresses",
    [
        [f"2001:db8:1:2::{n:x}" for n in range(20)],
        [f"2001:db8:1:2:{n:x}::1" for n in range(20)],
        ["not an address"] * 20,
        [""] * 20,
    ],
)
def test_an_attacker_has_no_new_address_for_the_asking(addresses: Iterable[str]) -> None:
    failures = Failures(Clock())
    assert [failures.count(address) for address in addresses][-1] > 0


def test_only_so_many_answers_are_held_back_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "WAITING", 3)

    async def attack() -> list[bool]:
        failures = Failures()
        waits = [asyncio.ensure_future(failures.wait(3600)) for _ in range(8)]
        for _ in range(3):
            await asyncio.sleep(0)
        done = [wait.done() for wait in waits]
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await failures.wait(0)  # there is room again
        return done

    assert asyncio.run(attack()) == [False] * 3 + [True] * 5


def test_a_guard_says_429_and_when_to_try_again_and_the_right_password_gets_in_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logins, "LONGEST", 0.01)

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    guard = Guard(application, ACCESS)

    async def ask(login: str | None, address: str = "192.0.2.1") -> tuple[int, dict[bytes, bytes]]:
        headers = [(b"authorization", b"Basic " + base64.b64encode(login.encode()))] if login else []
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "client": (address, 1)}
        await guard(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def attack() -> None:
        answers = [await ask(f"viewer:{n}") for n in range(12)]
        free = int(FREE)
        assert [status for status, _ in answers] == [401] * free + [429] * (12 - free)
        assert int(answers[-1][1][b"retry-after"]) >= 1
        # Whoever only has not logged in yet, as a browser at first, is no attacker.
        assert (await ask(None))[0] == 401
        assert (await ask("viewer:look"))[0] == 200
        assert (await ask("viewer:wrong", "192.0.2.2"))[0] == 401

    asyncio.run(attack())
