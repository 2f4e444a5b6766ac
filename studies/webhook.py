"""Web addresses that take messages: what is legal, what of it may be seen, and the POST itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

#: Seconds that an address may be silent.
ANSWER_SECONDS: Final = 5.0
_HIDDEN: Final = "***"


class Undelivered(Exception):
    """A message was not taken.

    Args:
        reason: in words, without the address.
        is_final: sending it again would not help.
    """

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.is_final = is_final


def validate_url(url: str) -> str:
    """``url``, if it is one that messages can be sent to; raises :exc:`ValueError` without its secret."""
    legal = "write http://HOST/… or https://HOST/…"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"the URL holds spaces, control characters or letters beyond ASCII; percent-encode them: {legal}"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"the URL's host or port cannot be understood; {legal}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the URL does not begin with http:// or https://; {legal}")
    if not host:
        raise ValueError(f"the URL names no host; {legal}")
    if parts.username is not None:
        raise ValueError(f"a user and password before the host are not supported; {legal}")
    if parts.path == f"/{_HIDDEN}":
        raise ValueError("this is what is shown instead of the URL, which may hold a secret; write the whole URL")
    return url


def mask_url(url: str) -> str:
    """What may be seen of ``url``: ``https://hooks.slack.com/***``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{_HIDDEN}"


def post(url: str, message: Mapping[str, Any]) -> None:
    """Send ``message`` as JSON.

    Raises:
        Undelivered: it was not answered by a 2xx.
    """
    request = urllib.request.Request(
        url,
        data=json.dumps(message, allow_nan=False).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "studyhall"},
    )
    try:
        # The standard library's: requests would be one more dependency, for one POST.
        with _opener.open(request, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        with error:
            is_final = 300 <= error.code < 500 and error.code not in (408, 429)
            reason = f"it answers {error.code} {error.reason}"
            if error.code < 400:
                reason += ", and a POST is not sent on; give the address that this leads to"
            raise Undelivered(reason, is_final=is_final) from None
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        cause = getattr(error, "reason", error)
        reason = " ".join(str(getattr(cause, "strerror", None) or cause or type(cause).__name__).split())
        raise Undelivered(reason.replace(url, mask_url(url)), is_final=False) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A redirected POST would become a GET."""


_opener = urllib.request.build_opener(_NoRedirects)
