"""The rules of the design that no single module can keep: who imports whom, and when."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each layer may import from itself and from those after it.
LAYERS = (
    "studies.cli",
    "studies.launch",
    "studies.doctor",
    "studies.serve",
    "studies.mirror",
    "studies.report",
    "studies.study",
    "studies.session",
    "studies.progress",
    "studies.finalize",
    "studies.reproduce",
    "studies.train",
    "studies.worker",
    "studies.notify.notifier",
    "studies.notify.events",
    "studies.overview",
    "studies.warm_start",
    "studies.space",
    "studies.lifecycle",
    "studies.storage",
    "studies.trial",
    "studies.spec.study",
    "studies.spec.differences",
    "studies.objective",
    "studies.importing",
    "studies.stop_reasons",
    "studies.spec.params",
    "studies.spec.source",
    "studies.spec.samplers",
    "studies.search",
    "studies.spec.validation",
    "studies.spec.sections",
    "studies.spec.space",
    "studies.spec.constraints",
    "studies.spec.script",
    "studies.notify.webhook",
    "studies.notify",
    "studies.checkpoint_stores",
    "studies.spec.locations",
    "studies.spec",
    "studies.processes",
    "studies.environment",
    "studies.values",
    "studies.errors",
    "studies.text",
)


def imports(file: Path) -> set[str]:
    """Every module that ``file`` names in an import, at any depth but under TYPE_CHECKING."""
    names = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return names


def layer(module: str) -> int | None:
    return next((i for i, name in enumerate(LAYERS) if module == name or module.startswith(f"{name}.")), None)


FILES = sorted([*(ROOT / "studies").rglob("*.py"), *(ROOT / "objectives").rglob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    package = module.partition(".")[0]
    forbidden = {
        "studies": ("torch", "torchvision", "objectives"),
        "objectives": ("studies", "click", "mlflow", "optuna"),
    }
    named = imports(file)
    assert not [name for name in named if name.partition(".")[0] in forbidden[package]]
    if package == "studies" and module != "studies":
        own = layer(module)
        assert own is not None, f"{module} is in no layer"
        assert not [name for name in named if (other := layer(name)) is not None and other < own]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_neither_torch_nor_optuna_nor_mlflow(arguments: list[str]) -> None:
    heavy = ("torch", "optuna", "mlflow", "sqlalchemy", "plotly", "matplotlib")
    code = (
        f"import sys, atexit; from studies.cli import main; sys.argv[1:] = {arguments!r}; "
        f"atexit.register(lambda: print([m for m in {heavy} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code + "; main()"], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_the_public_names_are_these() -> None:
    import studies

    assert studies.__all__ == ["PostgresStorage", "Study", "StudySpec", "open_storage"]
    for name in studies.__all__:
        assert getattr(studies, name).__name__ == name
