"""Writing files atomically."""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
from pathlib import Path
from typing import Final

from studies.errors import StudyhallError

#: Bytes of a study's name in a file's: a file system takes 255, with the ending.
_MOST_BYTES: Final = 200


def file_name(study: str, ending: str) -> str:
    """The name of the file about ``study``, unique to it: ``digits.html``.

    A name that is illegal for files is changed and gets a hash: ``a_b-c14cddc0.html`` of ``a/b``.
    """
    safe = re.sub(r"[^\w.-]", "_", study).encode()[:_MOST_BYTES].decode(errors="ignore").lstrip(".-")
    if safe == study:
        return safe + ending
    digest = hashlib.sha256(study.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe or 'study'}-{digest}{ending}"


def require_writable(path: Path) -> None:
    """Raise :exc:`StudyhallError` unless a file can be written at ``path``. Writes nothing there."""
    try:
        folder = path.parent.resolve()
        is_link = path.is_symlink()  # which is replaced, whatever it leads to
        if path.is_dir() and not is_link:
            raise StudyhallError(f"{path} is a folder; name a file in it: -o {path / 'FILE'}")
        if path.exists() and not (is_link or path.is_file()):
            raise StudyhallError(f"{path} is no ordinary file; name another one: -o FILE")
        if not folder.is_dir():
            raise StudyhallError(f"{path} can't be written: there is no folder {folder}; make it, or name another file")
        # By trying: modes tell nothing of read-only mounts, quotas and access lists.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _cannot_write(path, error) from error


def write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: to a temporary file first, then renamed: no reader sees a part of it.

    An existing file is replaced; of a link the link itself, not its target.

    Raises:
        StudyhallError: it can't be written.
    """
    # In the same folder: a rename is atomic within one file system only.
    beside = path.parent.resolve() / f".studyhall-{secrets.token_hex(8)}.part"
    try:
        try:
            with beside.open("xb") as stream:  # "x": never through a link that somebody laid there
                stream.write(data)
            beside.replace(beside.with_name(path.name))
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StudyhallError:
    return StudyhallError(f"{path} can't be written: {error.strerror or error}; name another file")
