"""The model card: what the model is, how it was chosen, how good it is, and how it was made.

After Mitchell et al., Model Cards for Model Reporting, arXiv 1810.03993.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from studies.finalize.choice import RULES, Candidate
from studies.text import number
from studies.values import to_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.spec.study import StudySpec

FILE: Final = "README.md"


def write(
    file: Path,
    study: str,
    spec: StudySpec,
    trial: FrozenTrial,
    final: Mapping[str, Any],
    environment: Mapping[str, Any],
    candidates: Sequence[Candidate] | None,
) -> None:
    """Write the card; what the objective has written to ``file`` becomes its middle."""
    own = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    metric = spec.metric_names[0]
    parts = [
        f"# {_plain(study)}",
        f"Trial {trial.number} of the study {_code(study)}, which {_plain(spec.goal)}. Its objective is "
        f"{_code(spec.objective.path)}. Retrained on training and validation data, and tested on {final['at']}.",
        "## Test",
        _table(("metric", "value"), [(name, number(value)) for name, value in final["metrics"].items()]),
        _looks(final["looks"]),
        "## Choice",
        _chosen(metric, trial, final, candidates),
        own,
        "## Parameters",
        _table(("parameter", "value"), [(name, to_text(value)) for name, value in trial.params.items()]),
        "## Environment",
        _table(("", ""), [(name, to_text(value)) for name, value in environment.items() if value is not None]),
    ]
    file.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _looks(looks: int) -> str:
    if looks == 1:
        return "The test data were used once, for this table."
    return f"This was test {looks} on the same test data, which biases the result."


def _chosen(metric: str, trial: FrozenTrial, final: Mapping[str, Any], candidates: Sequence[Candidate] | None) -> str:
    if candidates is None:
        return "A person named the trial; no candidates were compared."
    rows = [
        (
            f"{c.trial} (chosen)" if c.trial == trial.number else str(c.trial),
            number(c.tuned),
            f"{number(c.mean)} ± {c.std:.2g}" if c.is_complete else "failed",
            "" if c.n_parameters is None else f"{c.n_parameters:,}",
        )
        for c in candidates
    ]
    return "\n\n".join(
        [
            f"The {final['candidates']} best trials were trained again with {final['seeds']} fresh seeds each; "
            f"{RULES[final['rule']]} wins. Tuned values are those of the study, optimistic as the best of many.",
            _table(("trial", f"tuned {metric}", "mean ± std of fresh seeds", "weights and biases"), rows),
        ]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text in which Markdown finds no markup, and a table no further cell."""
    # A study's texts are data: unescaped, one could be a link or HTML. An underscore within a word is no markup, and
    # val_accuracy stays readable.
    return re.sub(r"[\\`*<>\[\]#|&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    shown = " ".join(text.split())
    # No backslash escapes a backtick within a code span.
    return f"`{shown}`" if "`" not in shown else _plain(shown)
