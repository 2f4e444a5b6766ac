"""Storage URLs: what is understood, what is refused, and that a password never shows."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
from urllib.parse import quote, unquote

import psycopg2.extensions
import pytest
from sqlalchemy.engine import make_url

from studies.errors import StorageURLError
from studies.storage.url import DEFAULTS, StorageURL, connection_error

RAW = [
    "p@ss",
    "a:b",
    "a/b",
    "a#b",
    "a?b",
    "100%",
    "50%off",
    "a%zzb",
    "[x]",
    "a b",
    "ü€😀",
    "@",
    ":",
    "/",
    "?",
]
RAW += ["#", "%", "@:/#?% []", "p@h:5/x?y=1", "a&b=c", "'\"\\", "+", "//", "x@@", "%%", "%4", "%ff"]


def sqlalchemy_arguments(url: StorageURL) -> dict[str, str]:
    parsed = make_url(url.sqlalchemy)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    # SQLAlchemy writes the ports of several hosts that have none as commas.
    return {key: str(value) for key, value in arguments.items() if str(value).strip("," if key == "port" else "")}


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2", "PostgreSQL"])
def test_every_scheme_of_postgresql_means_the_same(scheme: str) -> None:
    url = StorageURL.parse(f"{scheme}://ann:secret@db.example:5433/studies")
    assert url == StorageURL(user="ann", password="secret", hosts=(("db.example", 5433),), database="studies")


def test_libpq_gets_a_timeout_and_a_name_unless_the_url_sets_them() -> None:
    url = StorageURL.parse("postgresql://ann@db/studies")
    assert url.libpq == {
        "host": "db",
        "user": "ann",
        "dbname": "studies",
        "connect_timeout": "10",
        "client_encoding": "UTF8",
        "application_name": "studyhall",
    }
    own = StorageURL.parse("postgresql://ann@db/studies?connect_timeout=3&application_name=mine").libpq
    assert (own["connect_timeout"], own["application_name"]) == ("3", "mine")


@pytest.mark.parametrize("password", RAW)
def test_a_raw_password_is_taken_as_the_person_meant_it(password: str) -> None:
    for address in (
        "db/studies",
        "db:5433/studies?sslmode=require",
        "[::1]:5433/studies",
        "/studies?host=/run/pg",
    ):
        url = StorageURL.parse(f"postgresql://ann:{password}@{address}")
        assert (url.user, url.password, url.database) == ("ann", password, "studies")
        assert sqlalchemy_arguments(url) == url.libpq


def test_any_encoded_password_survives_every_way_out() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    alphabet = [*map(chr, range(1, 0x250)), *"@:/#?%[] &=+", *"€漢字😀"]
    for _ in range(500):
        password = "".join(draw.choices(alphabet, k=draw.randint(1, 12)))
        url = StorageURL.parse(f"postgresql://ann:{quote(password, safe='')}@db/studies")
        assert url.password == password
        assert url.libpq["password"] == password
        assert sqlalchemy_arguments(url) == url.libpq
        assert StorageURL.parse(url.sqlalchemy).libpq == url.libpq


@pytest.mark.parametrize("password", ["s3cret-Ünïque", "p@ss:/#?% word", "%41bc"])
def test_the_password_never_shows(password: str) -> None:
    url = StorageURL.parse(f"postgresql://ann:{quote(password, safe='')}@db/studies?sslpassword=t0psecret")
    for shown in (repr(url), str(url), f"{url}", f"{url!r:>200}", url.display, repr([url]), repr({"u": url})):
        assert password not in unquote(shown)
        assert quote(password, safe="") not in shown
        assert "t0psecret" not in shown
    assert str(url) == "postgresql://ann:***@db/studies?sslpassword=***"


@pytest.mark.parametrize(
    ("text", "libpq"),
    [
        ("postgresql://u@h1:1,h2:2/d", {"user": "u", "host": "h1,h2", "port": "1,2"}),
        ("postgresql://h1,h2:2/d", {"host": "h1,h2", "port": ",2"}),
        ("postgresql://[::1]:5/d", {"host": "::1", "port": "5"}),
        ("postgresql://[::1],[fe80::1%25eth0]:7/d", {"host": "::1,fe80::1%eth0", "port": ",7"}),
        ("postgresql:///d?host=/my sockets", {"host": "/my sockets"}),
        ("postgresql:///d?host=%2Fmy%20sockets%3A1&port=6000", {"host": "/my sockets:1", "port": "6000"}),
        ("postgresql+psycopg2:///d?host=/my+sockets", {"host": "/my sockets"}),
        ("postgresql:///d?host=/c++", {"host": "/c++"}),
        ("postgresql+psycopg2:///d?host=h1:1&host=h2:2", {"host": "h1,h2", "port": "1,2"}),
        ("postgresql://%2Frun%2Fpg/d", {"host": "/run/pg"}),
        ("postgresql://:5433/d", {"port": "5433"}),
        ("postgresql:///d", {}),
        ("postgresql://u:p@h/d?", {"user": "u", "password": "p", "host": "h"}),
        ("postgresql://h/d?user=u&password=p%40", {"user": "u", "password": "p@", "host": "h"}),
        ("postgresql://h/d?sslcert=/a b&sslmode=allow", {"host": "h", "sslcert": "/a b", "sslmode": "allow"}),
        ("postgresql://u@h/d?application_name=a@b", {"user": "u", "host": "h", "application_name": "a@b"}),
        ("  postgresql://h/d\n", {"host": "h"}),
    ],
)  # fmt: skip
def test_every_kind_of_address_is_kept(text: str, libpq: dict[str, str]) -> None:
    url = StorageURL.parse(text)
    assert url.libpq == {**DEFAULTS, "dbname": "d", **libpq}
    assert sqlalchemy_arguments(url) == url.libpq
    assert StorageURL.parse(url.sqlalchemy).libpq == url.libpq
    psycopg2.extensions.make_dsn(**url.libpq)


def test_a_database_may_have_any_name() -> None:
    url = StorageURL.parse("postgresql://u@h/my%20st%C3%BCdies%3F")
    assert url.libpq["dbname"] == "my stüdies?"
    assert sqlalchemy_arguments(url) == url.libpq
    assert StorageURL.parse(url.sqlalchemy).libpq == url.libpq


def test_a_service_file_may_name_the_database() -> None:
    url = StorageURL.parse("postgresql://?service=studies")
    assert url.libpq["service"] == "studies"
    assert "dbname" not in url.libpq
    assert sqlalchemy_arguments(url) == url.libpq


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("sqlite:///study.db", "SQLite cannot be shared between machines"),
        ("mysql+pymysql://u:hunter2@h/d", "MySQL is not supported"),
        ("redis://:hunter2@h", "Redis is not supported"),
        ("mongodb://u:hunter2@h/d", "the scheme 'mongodb' is not PostgreSQL's"),
        ("jdbc:postgresql://h/d?password=hunter2", "leave out the leading jdbc:"),
        ("postgresql+asyncpg://u:hunter2@h/d", "the driver 'asyncpg' is not supported"),
        ("study.db", "it has no scheme; a file cannot hold studies"),
        ("/data/study.db", "it has no scheme; a file cannot hold studies"),
        ("u:hunter2@h/d", "it has no scheme"),
        ("host=h password=hunter2", "it has no scheme"),
        ("postgresql:u:hunter2@h/d", "two slashes are missing"),
        ("postgresql://u:hunter2@h", "it names no database"),
        ("postgresql://u:hunter2@h/", "it names no database"),
        ("postgresql://", "it names no database"),
        ("postgresql://u:hunter2@h:0/d", "the port is not a number from 1 to 65535"),
        ("postgresql://u:hunter2@h:70000/d", "the port is not a number from 1 to 65535"),
        ("postgresql://u:hunter2@h:abc/d", "the port is not a number from 1 to 65535"),
        ("postgresql://u:hunter2/d", "the port is not a number from 1 to 65535"),
        ("postgresql://u:hunter2@::1:5432/d", "an IPv6 address is written in brackets"),
        ("postgresql://u:hunter2@[::1/d", "an IPv6 address is written in brackets"),
        ("postgresql://u:hunter2@my host/d", "the host cannot be read"),
        ("postgresql://u:hunter2@h1,h2,h3/d?port=1,2", "it has 2 ports for 3 hosts; give one for all, or one for each"),
        ("postgresql://u:hunter2@h/d?ssl_mode=require", "'ssl_mode' is unknown (did you mean 'sslmode'?)"),
        ("postgresql://h/d?password=x&hunter2=1", "the option is unknown"),
        ("postgresql://u:hunter2%00@h/d", "a NUL character"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_reason_and_what_is_legal(text: str, reason: str) -> None:
    with pytest.raises(StorageURLError) as caught:
        StorageURL.parse(text)
    message = str(caught.value)
    assert reason in message
    assert "write postgresql://USER:PASSWORD@HOST:5432/DATABASE" in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_an_ipv6_address_among_several_hosts_needs_no_brackets_in_the_option() -> None:
    url = StorageURL.parse("postgresql://u@/d?host=::1,db.example")
    assert url.hosts == (("::1", None), ("db.example", None))
    assert StorageURL.parse(url.sqlalchemy).libpq == url.libpq


def test_no_text_whatever_raises_anything_but_a_refusal() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    parts = [
        "postgresql://",
        "u",
        ":",
        "@",
        "/",
        "?",
        "[",
        "]",
        "::1",
        ",",
        "host=",
        "&",
        "=",
        "%",
        "%00",
        "port=",
        "5",
        "d",
    ]
    for _ in range(3000):
        text = "".join(draw.choices(parts, k=draw.randint(0, 12)))
        try:
            url = StorageURL.parse(draw.choice(["", "postgresql://"]) + text)
        except StorageURLError:
            continue
        assert StorageURL.parse(url.sqlalchemy).libpq == url.libpq, text


def test_a_url_is_a_value() -> None:
    url = StorageURL.parse("postgresql://u:p@h/d?sslmode=require")
    assert url == StorageURL.parse("postgres://u:p@h/d?sslmode=require")
    assert len({url, copy.copy(url), pickle.loads(pickle.dumps(url))}) == 1
    assert url != StorageURL.parse("postgresql://u:q@h/d?sslmode=require")
    with pytest.raises(AttributeError):
        url.user = "x"  # type: ignore[misc]


def test_a_url_is_read_without_sqlalchemy() -> None:
    code = "from studies.storage.url import *; StorageURL.parse('postgresql://h/d').sqlalchemy"
    code = f"import sys; {code}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sqlalchemy", "optuna", "psycopg2"} & set(loaded)


@pytest.mark.parametrize(
    "told",
    [
        "odd: password=hunter2 host=h",
        "odd: password='hunt\\'er hunter2' x",
        "odd: postgresql://u:hunter2@h/d",
        "odd: hunter2",
        "odd: hunter%402",
        "odd: hunter@2",
    ],
)
@pytest.mark.parametrize("password", ["hunter2", "hunter%402"])
def test_libpqs_words_are_passed_on_without_the_password(told: str, password: str) -> None:
    url = StorageURL.parse(f"postgresql://u:{password}@h/d")
    message = str(connection_error(url, Exception(told)))
    assert "h port 5432" in message
    assert password not in message
    assert unquote(password) not in message
    assert "\n" not in message


def test_an_unknown_failure_is_told_in_libpqs_words() -> None:
    url = StorageURL.parse("postgresql://postgres:postgres@h/d")
    message = str(connection_error(url, Exception('role "postgres" is not\n permitted to log in')))
    assert message == 'cannot use PostgreSQL at h port 5432: role "postgres" is not permitted to log in'
