"""The storage URL: which PostgreSQL database holds the studies.

An error names the wrong part of a URL and never quotes it: in a URL that cannot be parsed, the password may be
anywhere.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote

from studies.errors import StorageUnreachable, StorageURLError, TooManyConnections, nearest
from studies.text import counted

LEGAL: Final = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"
MASK: Final = "***"
#: UTF-8 whatever the database's own encoding is: a server that was made in the C locale has none.
DEFAULTS: Final = {"connect_timeout": "10", "application_name": "studyhall", "client_encoding": "UTF8"}

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg2")
_REFUSED = {
    "sqlite": "SQLite cannot be shared between machines and locks up under many workers",
    "mysql": "MySQL is not supported: budgets and leases are held by PostgreSQL itself",
    "redis": "Redis is not supported: studies live in PostgreSQL",
    "jdbc": "a JDBC URL is for Java: leave out the leading jdbc:",
}
# The options of libpq 18. Others are refused here by name: libpq's own error would quote the whole URL.
_WORDS = """
    application_name channel_binding client_encoding connect_timeout dbname fallback_application_name
    gssdelegation gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle
    keepalives_interval krbsrvname load_balance_hosts max_protocol_version min_protocol_version
    oauth_client_id oauth_client_secret oauth_issuer oauth_scope options passfile password port
    replication require_auth requirepeer scram_client_key scram_server_key service servicefile sslcert
    sslcertmode sslcompression sslcrl sslcrldir sslkey sslkeylogfile ssl_max_protocol_version
    ssl_min_protocol_version sslmode sslnegotiation sslpassword sslrootcert sslsni
    target_session_attrs tcp_user_timeout user
"""
_OPTIONS = frozenset(_WORDS.split())
_SECRET = frozenset({"sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
_PAIR = f"(?:{'|'.join(sorted(_OPTIONS))})=[^&]*"
_QUERY = re.compile(f"(?:{_PAIR}(?:&{_PAIR})*)?")
# A name or an IPv4 address, an IPv6 address with its zone, or a directory with a socket.
_HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?|/.*", re.DOTALL)

Address = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True, repr=False)
class StorageURL:
    """Where the studies are. Its text and repr mask the secrets; ``sqlalchemy`` and ``libpq`` contain them."""

    user: str | None = None
    password: str | None = None
    hosts: tuple[Address, ...] = ()
    """Host name, IP address or socket directory, each with its port; tried in this order."""
    database: str | None = None
    """``None`` only if the option ``service`` names it."""
    options: tuple[tuple[str, str], ...] = ()
    """Further libpq options (``sslmode``, ``service``, …), sorted by name."""

    @classmethod
    def parse(cls, text: str) -> StorageURL:
        """Read a URL as a person writes it: the password may be percent-encoded or raw.

        Raises:
            StorageURLError: it is not a PostgreSQL URL, or one part of it is wrong.
        """
        scheme, rest = _split_scheme(text.strip())
        rest, query = _split_query(rest)
        userinfo, _, address = rest.rpartition("@")  # a raw password may hold @ too: the last one counts
        if not query:
            address, _, query = address.partition("?")
        hosts, _, database = address.partition("/")
        user, _, password = userinfo.partition(":")
        # libpq leaves + alone in a query; SQLAlchemy reads, and writes, it as a space.
        options = _read_query(query, plus_is_space=scheme == "postgresql+psycopg2")
        is_option = "host" in options  # where no port can follow it
        url = cls(
            user=options.pop("user", _decode(user)) or None,
            password=options.pop("password", _decode(password)) or None,
            hosts=_split_hosts(options.pop("host", _decode(hosts)), options.pop("port", None), is_option),
            database=options.pop("dbname", _decode(database)) or None,
            options=tuple(sorted(options.items())),
        )
        return url._checked()

    def _checked(self) -> StorageURL:
        if "\0" in "".join(map(str, self.libpq.values())):
            raise _refusal("it holds a NUL character (%00), which PostgreSQL cannot take")
        if not self.database and "service" not in dict(self.options):
            # PostgreSQL would take the user's name, and the studies would be in an unexpected database.
            raise _refusal("it names no database")
        return self

    @property
    def libpq(self) -> dict[str, Any]:
        """The keyword arguments of ``psycopg2.connect``, password included."""
        kwargs = {"user": self.user, "password": self.password, "dbname": self.database}
        kwargs |= self._address_options()
        return {**DEFAULTS, **{key: value for key, value in kwargs.items() if value}, **dict(self.options)}

    @property
    def sqlalchemy(self) -> str:
        """The URL for SQLAlchemy, Optuna and optuna-dashboard, password included."""
        options = {**DEFAULTS, **dict(self.options)}
        return self._render("postgresql+psycopg2", quote(self.password or "", safe=""), options)

    @property
    def display(self) -> str:
        """The URL to show to a person: every secret is masked."""
        options = {key: MASK if key in _SECRET else value for key, value in self.options}
        options = {key: value for key, value in options.items() if DEFAULTS.get(key) != value}
        return self._render("postgresql", MASK if self.password else "", options)

    @property
    def without_secrets(self) -> str:
        """The URL for a script or manifest, without secrets: those reach the workers by other means."""
        options = tuple((key, value) for key, value in self.options if key not in _SECRET)
        return replace(self, password=None, options=options).display

    @property
    def is_of_this_machine(self) -> bool:
        """Whether each of its hosts is this machine itself, or a socket on it."""
        return bool(self.hosts) and all(host in _LOOPBACK or host.startswith("/") for host, _ in self.hosts)

    @property
    def where(self) -> str:
        """The server in words: ``db.example port 5432``."""
        if not self.hosts:
            return "the default address"
        return ", ".join(f"{host or 'the default address'} port {port or 5432}" for host, port in self.hosts)

    @property
    def is_read_only(self) -> bool:
        """Whether its sessions are made read-only by the URL itself."""
        return "default_transaction_read_only=on" in dict(self.options).get("options", "")

    def _address_options(self) -> dict[str, str]:
        options = {"host": ",".join(host for host, _ in self.hosts)}
        if any(port for _, port in self.hosts):
            options["port"] = ",".join(str(port or "") for _, port in self.hosts)
        return options

    def _render(self, scheme: str, password: str, options: dict[str, str]) -> str:
        query = dict(options)
        address = ""
        # Several hosts or a socket directory fit only into the query: SQLAlchemy reads them nowhere else.
        if len(self.hosts) == 1 and "/" not in self.hosts[0][0] and "%" not in self.hosts[0][0]:
            host, port = self.hosts[0]
            address = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        elif self.hosts:
            query |= self._address_options()
        database = self.database or ""
        if not re.fullmatch(r"[\w.-]*", database, re.ASCII):
            query["dbname"], database = database, ""  # SQLAlchemy 2.0 does not decode it in its usual place
        login = quote(self.user or "", safe="") + (f":{password}" if password else "")
        tail = "&".join(f"{key}={quote(value, safe='/,*')}" for key, value in query.items())
        return f"{scheme}://{login}{'@' if login else ''}{address}/{database}{'?' if tail else ''}{tail}"

    def __str__(self) -> str:
        return self.display

    def __repr__(self) -> str:
        return f"StorageURL({self.display!r})"


def connection_error(url: StorageURL, exc: Exception) -> StorageUnreachable:
    """A failed connection in one line, with advice. ``exc`` is psycopg2's error, or SQLAlchemy's around it."""
    told = str(getattr(exc, "orig", None) or exc).strip()
    host, port = url.hosts[0] if url.hosts else ("", None)
    known = {
        "where": url.where,
        "url": url.display,
        "pg_isready": shlex.join(["pg_isready", "-h", host or "localhost", "-p", str(port or 5432)]),
    }
    # The first pattern that fits counts: a special case of a message stands before its general one.
    for pattern, (what, fix) in _ADVICE.items():
        if found := re.search(pattern, told):
            kind = TooManyConnections if pattern == _CROWDED else StorageUnreachable
            known |= found.groupdict()
            return kind(what.format(**known), fix=fix.format(**known))
    return StorageUnreachable(f"cannot use PostgreSQL at {url.where}: {_without_secrets(url, told)}")


_CROWDED: Final = r"too many (clients|connections)|connection slots are reserved"
#: A pattern of libpq's message, the problem, and the fix.
_ADVICE: Final = {
    r'password authentication failed for user "(?P<user>.*?)"': (
        "password authentication failed for user {user!r} at {where}:",
        "set the right password in the URL, PGPASSWORD or ~/.pgpass",
    ),
    r"no password supplied": (
        "the server at {where} asks for a password:",
        "set it in the URL, PGPASSWORD or ~/.pgpass",
    ),
    r'database "(?P<name>.*?)" does not exist': (
        "database {name!r} does not exist at {where}:",
        "create it (createdb {name}), or correct {url}",
    ),
    r'role "(?P<user>.*?)" does not exist': (
        "user {user!r} does not exist at {where}:",
        "create it (createuser {user}), or correct {url}",
    ),
    _CROWDED: ("too many connections at {where}:", "end some, raise its max_connections, or use PgBouncer"),
    r"(no pg_hba.conf entry.*(no encryption|SSL off))|requires? SSL": (
        "the server at {where} refuses unencrypted connections:",
        "add sslmode=require to the URL, or let this machine in by the server's pg_hba.conf",
    ),
    r"no pg_hba.conf entry|pg_hba.conf rejects": (
        "the server at {where} does not let this user or machine in:",
        "add it to its pg_hba.conf",
    ),
    r"server does not support SSL": (
        "the server at {where} does not speak SSL:",
        "switch it on there, or take sslmode out of the URL",
    ),
    r'could not translate host name "(?P<host>.*?)"': (
        "host {host!r} is not known on this machine:",
        "check its spelling in {url}, or the network",
    ),
    r"the database system is (?P<what>starting up|shutting down|in recovery mode|not yet accepting)": (
        "the server at {where} is not ready ({what}):",
        "try again in a moment",
    ),
    r'service "(?P<name>.*?)" not found': (
        "service {name!r} is in no service file:",
        "write it into ~/.pg_service.conf, or set PGSERVICEFILE",
    ),
    r"Connection refused|No such file or directory|time(out expired|d out)|No route|unreachable"
    r"|closed the connection unexpectedly|could not receive data": (
        "no PostgreSQL answers at {where}: start it, or correct {url}; see:",
        "{pg_isready}",
    ),
}


def _without_secrets(url: StorageURL, told: str) -> str:
    # libpq may quote the connection string it was given.
    told = re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", rf"\1{MASK}", told)
    told = " ".join(re.sub(r"(\w://)[^\s/]*@", rf"\1{MASK}@", told).split())
    public = {url.user, url.database, *(host for host, _ in url.hosts)}
    secrets = {value for key, value in url.options if key in _SECRET} | {url.password or ""}
    for secret in secrets - public - {""}:
        if any(form in told for form in (secret, quote(secret, safe=""))):
            # Masking a short password would show where it stood: nothing of the text is passed on.
            return "the connection failed (the reason is not shown, because it holds the password)"
    return told


def _split_scheme(text: str) -> tuple[str, str]:
    if not text:
        raise _refusal("it is empty")
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][\w+.:-]*", scheme):
        if re.match(r"postgres(ql)?:", text):
            raise _refusal("two slashes are missing after the scheme")
        raise _refusal("it has no scheme" + ("; a file cannot hold studies" if "@" not in text else ""))
    scheme = scheme.lower()
    if scheme in _SCHEMES:
        return scheme, rest
    family, _, driver = scheme.partition("+")
    if family in _SCHEMES:
        raise _refusal(f"the driver {driver!r} is not supported: leave it out")
    raise _refusal(_REFUSED.get(family.partition(":")[0], f"the scheme {scheme!r} is not PostgreSQL's"))


def _split_query(rest: str) -> tuple[str, str]:
    """Split off the query at the ``?`` that only options follow; another ``?`` belongs to a raw password."""
    for found in re.finditer(r"\?", rest):
        if _QUERY.fullmatch(rest, found.end()):
            return rest[: found.start()], rest[found.end() :]
    return rest, ""


def _read_query(query: str, plus_is_space: bool) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, _, value = pair.partition("=")
        if key not in _OPTIONS:
            # After an unencoded & in a password, the "key" would be a part of the password.
            shown = "" if "password" in query or not re.fullmatch(r"\w+", key) else f" {key!r}"
            raise _refusal(f"the option{shown} is unknown" + (f" ({nearest(key, _OPTIONS)})" if shown else ""))
        value = _decode(value.replace("+", " ") if plus_is_space else value)
        # SQLAlchemy lists several hosts by repeating the option.
        again = key in ("host", "port") and key in options
        options[key] = f"{options[key]},{value}" if again else value
    return options


def _decode(text: str) -> str:
    """Percent-decode. An invalid UTF-8 sequence stays unchanged: its ``%`` belongs to a raw password."""

    def decoded(found: re.Match[str]) -> str:
        try:
            return bytes.fromhex(found[0].replace("%", "")).decode()
        except UnicodeDecodeError:
            return found[0]

    return re.sub(r"(?:%[0-9A-Fa-f]{2})+", decoded, text)


def _split_hosts(hosts: str, ports: str | None, is_option: bool) -> tuple[Address, ...]:
    names: list[Address] = []
    for text in hosts.split(","):
        bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
        plain = re.fullmatch(r"([^:\[\]]*)(?::([^:]*))?", text)
        if bracketed:
            host, port = bracketed[1], bracketed[2]
        elif text.startswith("/") or (text.count(":") > 1 and (is_option or ports is not None)):
            host, port = text, None
        elif plain:
            host, port = plain[1], plain[2]
        else:
            raise _refusal("the host cannot be read (an IPv6 address is written in brackets: [::1]:5432)")
        if host and not _HOST.fullmatch(host):
            raise _refusal("the host cannot be read (a name, an IP address, or ?host=/socket/directory)")
        names.append((host, _port(port) if port else None))
    if ports is not None:
        numbers = [_port(port) if port else None for port in ports.split(",")]
        if len(numbers) not in (1, len(names)):
            given = f"{counted(len(numbers), 'port')} for {counted(len(names), 'host')}"
            raise _refusal(f"it has {given}; give one for all, or one for each")
        numbers *= len(names) if len(numbers) == 1 else 1
        names = [(host, number) for (host, _), number in zip(names, numbers, strict=True)]
    return () if names == [("", None)] else tuple(names)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise _refusal("the port is not a number from 1 to 65535")
    return int(text)


def _refusal(reason: str) -> StorageURLError:
    return StorageURLError(f"the storage URL cannot be used: {reason}; write {LEGAL}")
