"""Checkpoint locations and notification addresses: which are legal, and how they are masked.

Apart from the HTTP and S3 clients, which a study file is read without.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

LEGAL: Final = (
    "postgresql, a directory's absolute path (/shared/checkpoints), or s3://bucket/prefix, "
    "whose server and keys are set by AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_PART = r"/(?!\.\.?(/|$))"  # none is . or ..: such a path leads elsewhere than it seems
# The name of an S3 bucket has 3 to 63 characters.
_LOCATION = re.compile(rf"postgresql|s3://[A-Za-z0-9][\w.-]{{2,62}}({_PART}[\w.=+-]+)*|({_PART}[^/]+)+", re.A)
_HIDDEN: Final = "***"


def validate_location(location: str) -> str:
    """``location`` without slashes that mean nothing; ValueError, which shows no password, if it is not legal."""
    path = re.sub(r"(?<!:)/+", "/", location).rstrip("/")  # not those of s3://
    if _LOCATION.fullmatch(path) and path.isprintable():
        return path
    # A pasted storage URL, or keys in that of a bucket: never show them.
    shown = re.sub(r"\?.*", "?…", re.sub(r".*@", "***@", location, flags=re.S), flags=re.S)
    raise ValueError(f"{shown!r} is no place for checkpoints; legal: {LEGAL}")


def validate_url(url: str) -> str:
    """``url``, if it is one that messages can be sent to; raises :exc:`ValueError` without its secret."""
    legal = "write http://HOST/… or https://HOST/…"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"the URL holds spaces, control characters or letters beyond ASCII; percent-encode them: {legal}"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # urlsplit checks the port only when it is asked for
    except ValueError:
        # Without its cause, which quotes a part of the URL.
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
    """``url`` without its secret path: ``https://hooks.slack.com/***``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{_HIDDEN}"
