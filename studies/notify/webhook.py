"""Web addresses that take messages: what is legal, what of it may be seen, and the POST itself.

A study names its address, and every machine that looks at the study calls it. So a message goes out by HTTP alone,
as a POST of our own JSON whose answer nobody reads; redirects are not followed; and no link-local address is called,
where clouds hand out the machine's credentials. Private networks are legal: that is where chat servers stand.
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

#: Seconds that an address may be silent.
ANSWER_SECONDS: Final = 5.0
#: Of clouds, beyond link-local addresses: Alibaba's, Azure's, Oracle's, and Amazon's by IPv6.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class Undelivered(Exception):
    """A message was not taken.

    Args:
        reason: in words, without the address.
        is_final: sending it again would not help.
    """

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.is_final = is_final


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
    host = urlsplit(url).hostname or ""
    if ":" in host or host.replace(".", "").isdecimal():  # a name is looked up, and judged, when it is connected to
        _require_callable(host)
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
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        cause = getattr(error, "reason", error)
        reason = in_one_line(str(getattr(cause, "strerror", None) or cause or type(cause).__name__))
        raise Undelivered(reason.replace(url, mask_url(url)), is_final=False) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A redirected POST would become a GET."""


def _require_callable(address: str) -> None:
    """Raise :exc:`Undelivered` for an address that no study may make a machine call."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return  # an old spelling, such as 2852039166; it is judged once it is resolved
    inner = (ip.ipv4_mapped or ip.sixtofour) if isinstance(ip, ipaddress.IPv6Address) else None
    if ip in _NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    for each in [ip] if inner is None else [ip, inner]:
        if each.is_link_local or each.is_multicast or each.is_unspecified or each in _METADATA:
            reason = f"{address} is for a machine's own use (link-local, metadata, multicast), and takes no messages"
            raise Undelivered(reason, is_final=True)


def _connect(address: tuple[str, int], timeout: float, _source: object = None) -> socket.socket:
    """As :func:`socket.create_connection`, to an address that was judged: the name is not looked up again."""
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
