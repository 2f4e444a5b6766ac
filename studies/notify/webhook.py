"""The POST of a notification.

A study names its address, and every machine that watches the study posts to it: whoever can write a study could make
machines send requests (SSRF). Therefore only our own JSON is sent, by HTTP POST; the answer is not read; redirects are
not followed; and link-local addresses are refused, where clouds hand out a machine's credentials. Private networks are
legal, as chat servers are there.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from studies.spec.locations import mask_url
from studies.text import in_one_line

#: Seconds to wait for an address.
ANSWER_SECONDS: Final = 5.0
#: Metadata services of clouds that are not link-local: Alibaba's, Azure's, Oracle's, and Amazon's by IPv6.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class Undelivered(Exception):
    """A message was not accepted.

    Args:
        reason: without the address, which may hold a secret.
        is_final: whether a retry is useless.
    """

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.is_final = is_final


def post(url: str, message: Mapping[str, Any]) -> None:
    """Send ``message`` as JSON.

    Raises:
        Undelivered: the answer was no 2xx, or there was none.
    """
    request = urllib.request.Request(
        url,
        data=json.dumps(message, allow_nan=False).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "studyhall"},
    )
    host = urlsplit(url).hostname or ""
    if ":" in host or host.replace(".", "").isdecimal():  # a name is resolved and checked by _connect
        _require_callable(host)
    try:
        # The standard library: one POST is not worth a dependency on requests.
        with _opener.open(request, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        with error:
            is_final = 300 <= error.code < 500 and error.code not in (408, 429)
            reason = f"it answers {error.code} {error.reason}"
            if error.code < 400:
                reason += ", and a POST is not sent on; give the address that this leads to"
            raise Undelivered(reason, is_final=is_final) from None
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        cause = getattr(error, "reason", error)
        reason = in_one_line(str(getattr(cause, "strerror", None) or cause or type(cause).__name__))
        raise Undelivered(reason.replace(url, mask_url(url)), is_final=False) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow no redirect: the POST would become a GET, to an unchecked address."""


def _require_callable(address: str) -> None:
    """Refuse an address that only the machine itself may call.

    Raises:
        Undelivered: it is link-local, multicast, unspecified, or a metadata service.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return  # an old spelling, such as 2852039166, which getaddrinfo resolves: checked after that
    inner = (ip.ipv4_mapped or ip.sixtofour) if isinstance(ip, ipaddress.IPv6Address) else None
    if ip in _NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    for each in [ip] if inner is None else [ip, inner]:
        if each.is_link_local or each.is_multicast or each.is_unspecified or each in _METADATA:
            reason = f"{address} is for a machine's own use (link-local, metadata, multicast), and takes no messages"
            raise Undelivered(reason, is_final=True)


def _connect(address: tuple[str, int], timeout: float, _source: object = None) -> socket.socket:
    """Like :func:`socket.create_connection`, to checked addresses: a second lookup may differ (DNS rebinding)."""
    found = [where[4] for where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM)]
    for host, *_ in found:
        _require_callable(str(host))
    for each in found[:-1]:
        with suppress(OSError):
            return socket.create_connection((str(each[0]), address[1]), timeout)
    return socket.create_connection((str(found[-1][0]), address[1]), timeout)


class _Plain(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = _connect


class _Secure(http.client.HTTPSConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = _connect


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, request)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Secure, request)


_opener = urllib.request.build_opener(_HTTP, _HTTPS, _NoRedirects)
