"""A trial's parameters as another program takes them: arguments, filled-in words, environment variables.

In arguments and words a value is its text, or JSON: ``0.001``, ``adamw``, ``true``, ``null``, ``[50, 50]``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from studies.errors import StudyhallError, nearest
from studies.values import to_text

#: How arguments say true and false: ``--bn`` and ``--no-bn``; ``--bn`` and nothing; ``--bn true`` and ``--bn false``.
BOOLEANS: Final = ("no", "flag", "value")

booleans_option = click.option(
    "--booleans",
    type=click.Choice(BOOLEANS),
    help="How arguments say false: no (the default) as --no-bn, flag by leaving --bn out, value as --bn false.",
)
prefix_option = click.option(
    "--prefix", default="", metavar="TEXT", help="What variables begin with: HP_ turns lr into HP_LR."
)

# Variables that shells, loaders, interpreters and common tools obey. Setting one of them breaks what runs next, or is
# undone in silence: bash ignores an assignment to GROUPS and counts on in SECONDS.
_RESERVED: Final = re.compile(
    "|".join(
        """
        _ PATH CDPATH FPATH MANPATH INFOPATH MODULEPATH IFS HOME ENV PWD OLDPWD SHELL SHELLOPTS BASH* ZSH* ZDOTDIR
        PS1 PS2 PS3 PS4 PROMPT PROMPT_COMMAND RANDOM SRANDOM SECONDS LINENO EPOCHSECONDS EPOCHREALTIME
        UID EUID GID EGID GROUPS PPID OPTARG OPTIND OPTERR REPLY MAPFILE COPROC DIRSTACK FUNCNAME PIPESTATUS
        FIGNORE GLOBIGNORE EXECIGNORE HISTFILE HISTSIZE HISTFILESIZE HISTCONTROL HISTIGNORE HISTTIMEFORMAT HISTCMD
        HISTCHARS SAVEHIST HOST HOSTNAME HOSTTYPE HOSTFILE MACHTYPE OSTYPE MAIL MAILPATH MAILCHECK INPUTRC IGNOREEOF
        TIMEFORMAT TMOUT FCEDIT CHILD_MAX POSIXLY_CORRECT
        USER USERNAME LOGNAME TERM TERMCAP TERMINFO COLORTERM COLUMNS LINES NO_COLOR FORCE_COLOR DISPLAY XAUTHORITY
        LANG LANGUAGE LC_* TZ TZDIR TMP TEMP TMPDIR EDITOR VISUAL PAGER LESS LESSOPEN LESSCLOSE BROWSER
        XDG_* SSH_* GIT_* SUDO_* DBUS_* HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY
        LD_* DYLD_* GCONV_PATH NLSPATH LOCALDOMAIN RES_OPTIONS MALLOC_* GLIBC_* CPATH LIBRARY_PATH
        PYTHON* VIRTUAL_ENV CONDA_* PIP_* UV_* PERL5* PERLLIB RUBYOPT RUBYLIB GEM_* CLASSPATH JAVA_*
        NODE_OPTIONS NODE_PATH NODE_ENV NODE_EXTRA_CA_CERTS OPENSSL_* SSL_CERT_* REQUESTS_CA_BUNDLE
        CUDA_* NVIDIA_* NCCL_* OMP_* MKL_* OPENBLAS_* TORCH_* PYTORCH_* XLA_* HF_*
        RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
        SLURM_* SBATCH_* KUBECONFIG KUBERNETES_* DOCKER_* AWS_* MLFLOW_* OPTUNA_* STUDYHALL*
        PGHOST PGHOSTADDR PGPORT PGUSER PGPASSWORD PGDATABASE PGPASSFILE PGSERVICE PGSERVICEFILE PGOPTIONS PGDATA
        """.replace("*", r"\w*").split()
    )
)
_NAME: Final = r"[^\W\d][\w.-]*"


def arguments(params: Mapping[str, Any], booleans: str | None = None) -> list[str]:
    """The parameters as a command line has them: ``["--lr", "0.001", "--no-bn"]``.

    None is left out, so that the program's own default holds. A value that begins with a dash is joined to its name
    (``--shift=-0.5``), since parsers take it for an option otherwise.

    Args:
        params: by name.
        booleans: one of :data:`BOOLEANS`, ``no`` by default.
    """
    found: list[str] = []
    for name, value in params.items():
        option, text = f"--{name}", to_text(value)
        if isinstance(value, bool) and booleans != "value":
            if value or booleans != "flag":
                found.append(option if value else f"--no-{name}")
        elif value is not None:
            found += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return found


def fill_in(words: Sequence[str], params: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The words of a command with each ``{name}`` replaced by the parameter's value, and whether there was any.

    ``{{name}}`` is left as ``{name}``; ``${name}``, which is a shell's, and any other braces are left alone.

    Raises:
        StudyhallError: a name in braces that is no parameter.
    """
    # Of the parameters' own names, which may hold any characters, the longest first.
    known = "|".join(re.escape(name) for name in sorted(params, key=len, reverse=True))
    braces = re.compile(
        rf"\$?(?:\{{\{{(?P<kept>{_NAME})\}}\}}|\{{(?:(?P<known>{known or '(?!)'})|(?P<unknown>{_NAME}))\}})"
    )
    count = 0

    def filled(found: re.Match[str]) -> str:
        nonlocal count
        if found[0].startswith("$"):
            return found[0]
        if found["kept"] is not None:
            return f"{{{found['kept']}}}"
        if found["known"] is None:
            name = found["unknown"]
            raise StudyhallError(
                f"{found[0]}: the trial has no parameter {name!r}; {nearest(name, params)} "
                f"(braces that are to stay are doubled: {{{{{name}}}}})"
            )
        count += 1
        return to_text(params[found["known"]])

    return [braces.sub(filled, word) for word in words], count > 0


def variables(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Environment variables named after the parameters: ``weight_decay`` → ``WEIGHT_DECAY``; empty for None.

    Args:
        params: by name.
        prefix: of each variable, for example ``HP_``.

    Raises:
        StudyhallError: two parameters would be the same variable; or one a variable that shells, loaders or other
            programs obey; or the prefix begins no name.
    """
    if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", prefix):
        raise StudyhallError(f"--prefix {prefix!r}: should be letters, digits and underscores, for example HP_")
    names: dict[str, str] = {}
    for name in params:
        variable = prefix + re.sub(r"\W", "_", name, flags=re.ASCII).upper()
        variable = f"_{variable}" if not variable or variable[0].isdigit() else variable
        if variable in names:
            raise StudyhallError(
                f"parameters {names[variable]!r} and {name!r} would both be the variable {variable}; use --format json"
            )
        if _RESERVED.fullmatch(variable.upper()):
            other = "another --prefix" if prefix else "--prefix HP_"
            raise StudyhallError(
                f"parameter {name!r} would be the variable {variable}, which shells or programs obey; give {other}"
            )
        names[variable] = name
    return {variable: "" if params[name] is None else to_text(params[name]) for variable, name in names.items()}


def quoted_arguments(params: Mapping[str, Any], booleans: str | None = None) -> str:
    """:func:`arguments` for a shell's ``eval``."""
    return shlex.join(arguments(params, booleans))


def quoted_variables(params: Mapping[str, Any], prefix: str = "", separator: str = "\n") -> str:
    """:func:`variables` for a shell's ``eval``, one in each line."""
    return separator.join(f"{name}={shlex.quote(text)}" for name, text in variables(params, prefix).items())
