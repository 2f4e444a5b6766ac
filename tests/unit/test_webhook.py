"""Addresses for messages: which are legal, what of them is shown, and how a POST ends."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from studies import StudySpec
from studies.errors import SpecError, SpecMismatch
from studies.notify import webhook
from studies.notify.webhook import Undelivered, post
from studies.spec.locations import mask_url
from tests.support.postgres import free_port
from tests.support.webhook import SECRET, Webhook

URL = f"https://hooks.example.org{SECRET}"


def spec(**notify: Any) -> StudySpec:
    return StudySpec.from_dict({"name": "study", "objective": {"path": "tests:objective"}, "notify": notify})


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:8000", "http://[::1]:80/x", "HTTPS://host/a?b=c#d"])
def test_http_and_https_are_legal(url: str) -> None:
    assert spec(url=url).notify.url == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "does not begin with http:// or https://"),
        ("hooks.example.org/c4n4ry", "does not begin with http:// or https://"),
        ("ftp://host/c4n4ry", "does not begin with http:// or https://"),
        ("file:///c4n4ry", "does not begin with http:// or https://"),
        ("https:///c4n4ry", "names no host"),
        ("https://host:99999/c4n4ry", "host or port cannot be understood"),
        ("https://[::1/c4n4ry", "host or port cannot be understood"),
        ("https://host/c4n4ry\n", "holds spaces, control characters"),
        ("https://host/c4n4ry x", "holds spaces, control characters"),
        ("https://höst/c4n4ry", "letters beyond ASCII"),
        ("https://user:c4n4ry@host/", "a user and password before the host are not supported"),
        ("https://host/***", "this is what is shown instead of the URL"),
        (7, "notify.url: should be a valid string"),
        (["https://host/c4n4ry"], "notify.url: should be a valid string"),
    ],
)
def test_whatever_else_is_an_error_that_keeps_the_secret(url: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(url=url)
    assert words in str(caught.value)
    assert str(caught.value).startswith("spec: notify.url: ")
    assert "c4n4ry" not in str(caught.value)


def test_other_mistakes_in_the_section_keep_it_too() -> None:
    data = {"name": "study", "objective": {"path": "tests:objective"}}
    for notify in (URL, [URL], {"adress": URL}):
        with pytest.raises(SpecError) as caught:
            StudySpec.from_dict({**data, "notify": notify})
        assert "notify" in str(caught.value)
        assert "c4n4ry" not in str(caught.value)
    with pytest.raises(SpecError, match=r"notify.events.0 = 'bests': should be 'best', 'finished', 'failures' or"):
        spec(url=URL, events=["bests"])
    with pytest.raises(SpecError, match=r"notify.events = \[\]: should have at least one item"):
        spec(url=URL, events=[])


def test_a_spec_is_shown_and_stored_without_the_secret() -> None:
    told = spec(url=URL, events=["best"])
    for text in (repr(told), told.to_json(), json.dumps(told.to_file())):
        assert "c4n4ry" not in text
    assert told.to_file()["notify"] == {"url": "https://hooks.example.org/***", "events": ["best"]}
    assert StudySpec.from_json(told.to_json(), URL) == told
    assert StudySpec.from_json(told.to_json()).notify.url is None


def test_whom_to_tell_is_not_what_makes_a_study() -> None:
    assert spec(url=URL).sha256 == spec().sha256
    older = {key: value for key, value in json.loads(spec().to_json()).items() if key != "notify"}
    stored = StudySpec.from_json(json.dumps(older))
    assert stored == spec()
    stored.require_same(spec(), stored.budget)


@pytest.mark.parametrize(
    ("stored", "given", "words"),
    [
        (None, URL, "notify.url is absent, not \"https://hooks.example.org/***\""),
        (URL, None, "notify.url is \"https://hooks.example.org/***\", not absent"),
        (URL, URL + "1", "notify.url is another one at \"https://hooks.example.org/***\""),
    ],
)  # fmt: skip
def test_a_difference_is_shown_without_the_secret(stored: str | None, given: str | None, words: str) -> None:
    with pytest.raises(SpecMismatch) as caught:
        spec(**({"url": stored} if stored else {})).require_same(
            spec(**({"url": given} if given else {})), spec().budget
        )
    assert words in str(caught.value)
    assert "leave it out, and tell this command alone with --notify URL" in str(caught.value)
    assert "c4n4ry" not in str(caught.value)


def test_what_may_be_seen_is_the_host() -> None:
    assert mask_url(URL) == "https://hooks.example.org/***"
    assert mask_url("http://[::1]:80") == "http://[::1]:80/***"


@pytest.mark.parametrize(
    ("status", "reason", "is_final"),
    [
        (500, "it answers 500 Internal Server Error", False),
        (503, "it answers 503 Service Unavailable", False),
        (429, "it answers 429 Too Many Requests", False),
        (408, "it answers 408 Request Timeout", False),
        (404, "it answers 404 Not Found", True),
        (302, "it answers 302 Found, and a POST is not sent on; give the address that this leads to", True),
        (308, "it answers 308 Permanent Redirect, and a POST is not sent on; give the address", True),
    ],
)
def test_what_is_no_2xx_is_tried_again_or_given_up(status: int, reason: str, is_final: bool) -> None:
    with Webhook() as there:
        there.status = status
        with pytest.raises(Undelivered) as caught:
            post(there.url, {"text": "hello"})
        assert str(caught.value).startswith(reason)
        assert caught.value.is_final == is_final
        assert not there.messages
        there.status = 200
        post(there.url, {"text": "hellö"})
        assert there.messages == [{"text": "hellö"}]
        assert there.headers[-1]["Content-Type"] == "application/json"


def test_an_address_that_is_not_there_or_hangs_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Undelivered, match="Connection refused") as caught:
        post(f"http://127.0.0.1:{free_port()}{SECRET}", {})
    assert not caught.value.is_final
    with pytest.raises(Undelivered) as caught:
        post(f"http://nowhere.invalid{SECRET}", {})
    assert not caught.value.is_final
    assert "c4n4ry" not in str(caught.value)
    monkeypatch.setattr(webhook, "ANSWER_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Undelivered, match="timed out") as caught:
            post(f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET}", {})
        assert not caught.value.is_final


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.1.1", "[fe80::1]", "[fe80::1%25lo]", "[::ffff:169.254.169.254]"),
        *("[2002:a9fe:a9fe::]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16"),
        *("0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"),
    ],
)
def test_no_study_makes_a_machine_call_what_is_its_own(host: str) -> None:
    with pytest.raises(Undelivered, match="is for a machine's own use") as caught:
        post(f"http://{host}:1{SECRET}", {})
    assert caught.value.is_final
    assert "c4n4ry" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("where", ["169.254.169.254", "fe80::1", "100.100.100.200"])
def test_a_name_is_judged_by_what_it_is_resolved_to_and_resolved_once(
    scheme: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert host == "rebinding.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", where)]

    with Webhook() as there:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(Undelivered, match="is for a machine's own use"):
            post(there.url.replace("http", scheme).replace("127.0.0.1", "rebinding.example"), {})
        assert not there.tries


def test_an_address_is_judged_before_a_proxy_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Webhook() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix(SECRET))
        with pytest.raises(Undelivered, match="is for a machine's own use"):
            post("http://169.254.169.254/latest", {})
        assert not proxy.tries


def test_https_still_says_whom_it_speaks_to() -> None:
    with Webhook() as plain, pytest.raises(Undelivered, match=r"(?i)ssl|tls|wrong version") as caught:
        post(plain.url.replace("http", "https"), {})
    assert not caught.value.is_final
