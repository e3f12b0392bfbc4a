"""Who may import whom: the lines of docs/architecture.md, held against the code itself."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cryosweep"

# A module may import modules of earlier lines, never one of its own line or of a later one.
LINES: tuple[tuple[str, ...], ...] = (
    ("geometry", "fourier", "kernels", "aberrations"),
    ("ctf", "mask", "resolution", "volume", "segmentation", "regularisation"),
    ("io.maps", "io.markers", "projector", "fulcrum"),
    (
        "io.particles",
        "io.segger",
        "io.chimerax",
        "likelihood",
        "shared_grid",
        "anisotropy",
        "accuracy",
        "scale",
    ),
    ("io", "rules"),
    ("search", "reconstruction", "selection"),
    ("refinement", "subtraction", "simulate", "sharpening", "local_resolution"),
    ("checkpoint", "consensus", "neighbours"),
    ("twin", "diagnostics", "tracking", "progress", "study.statistics", "study.points"),
    ("study.store", "study.assessment", "study.findings", "study.truth", "study.proposals"),
    ("study.comparison", "study.review"),
    ("study.figures", "study.pictures", "study.tables", "study.gather", "study.replicates"),
    ("study.meshes",),
    ("study.report",),
    ("study.sweep",),
    ("config", "study.resume", "study.recover"),
    ("composition", "job.stages", "job.files", "job.refining", "job.memory"),
    ("job.data", "job.checks", "job.refined"),
    ("job.scores",),
    ("job.starting",),
    ("job.masks", "job.outputs"),
    ("job.fulcrum", "job.subtraction", "job.postprocessing"),
    ("job.neighbours", "job.common"),
    ("job.run",),
    ("job",),
    ("commands",),
    ("file_commands.shared",),
    (
        "file_commands.mask",
        "file_commands.volume",
        "file_commands.fulcrum",
        "file_commands.fsc",
        "file_commands.anisotropy",
        "file_commands.sharpen",
        "file_commands.subtract",
        "file_commands.simulate",
        "file_commands.twin",
        "file_commands.store",
    ),
    (
        "file_commands.reconstruct",
        "file_commands.segment",
        "file_commands.local_resolution",
        "file_commands.consensus",
        "file_commands.regularise",
    ),
    ("file_commands",),
    ("app",),
    ("__main__",),
)
EMPTY = ("", "study")  # the packages themselves: documentation, and the version
NUMERICAL = LINES[: 1 + next(n for n, line in enumerate(LINES) if "consensus" in line)]

# What is not torch, numpy or the standard library belongs to these modules alone.
OWNERS: dict[str, tuple[str, ...]] = {
    "scipy": ("mask", "resolution", "simulate", "study.statistics", "study.truth"),
    "skimage": ("study.pictures", "study.meshes"),
    "PIL": ("study.pictures",),
    "h5py": ("io.segger",),
    "mrcfile": ("io.maps", "io.particles"),
    "starfile": ("io.particles",),
    "pandas": (
        "io.particles", "simulate", "study.assessment", "study.comparison", "study.tables",
        "job.memory", "job.refining", "job.scores", "job.starting", "job.outputs", "job.neighbours",
        "file_commands.fsc", "file_commands.segment", "file_commands.anisotropy",
    ),
    "matplotlib": ("diagnostics", "study.figures", "study.pictures"),
    "plotly": ("study.report", "study.figures", "study.meshes"),
    "mlflow": ("tracking",),
    "sqlalchemy": ("tracking",),
    "filelock": ("tracking", "study.store", "study.sweep", "study.proposals"),
    "hydra": ("study.points", "study.proposals", "study.sweep", "config", "composition", "app"),
    "optuna": ("study.proposals",),
    "omegaconf": ("study.sweep", "composition", "app"),
    "yaml": ("study.comparison", "composition"),
    "jinja2": ("study.report",),
    "tqdm": ("progress", "app"),
}  # fmt: skip

# Names under which libraries are installed; SQLAlchemy comes with MLflow, whose stores raise its errors.
# Libraries of an extra, imported where they are asked for.
OPTIONAL = {"optuna"}
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "sqlalchemy": "mlflow",
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
LINE_OF = {module: number for number, line in enumerate(LINES) for module in line}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> tuple[set[str], set[str]]:
    """Modules of the package, and other packages, that `module` imports anywhere, even for types alone."""
    own: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}; write it out"
            assert node.module is not None
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from cryosweep import job` imports a module, `from cryosweep.job import run_job` a name of one
            names = [part if part.removeprefix("cryosweep.") in MODULES else node.module for part in parts]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "cryosweep":
                own.add(rest)
            else:
                others.add(top)
    return own, others


def test_every_module_has_its_line() -> None:
    assert set(MODULES) == {*LINE_OF, *EMPTY}
    assert len(LINE_OF) == sum(map(len, LINES))
    for package in EMPTY:
        assert imported(package)[0] == set()


@pytest.mark.parametrize("module", LINE_OF)
def test_imports_run_one_way(module: str) -> None:
    own, _ = imported(module)
    wrong = {other for other in own - set(EMPTY) if LINE_OF[other] >= LINE_OF[module]}
    assert not wrong, (
        f"{module} (line {LINE_OF[module] + 1}) imports {sorted(wrong)}, which do not lie before it"
    )


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    _, others = imported(module)
    for library in others - set(sys.stdlib_module_names) - {"torch", "numpy"}:
        assert module in OWNERS.get(library, ()), f"{module} imports {library}"


def test_every_owner_uses_what_it_owns() -> None:
    for library, owners in OWNERS.items():
        for module in owners:
            assert library in imported(module)[1], f"{module} does not import {library} any more"


def test_every_library_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in project["dependencies"]}
    wanted = {DISTRIBUTIONS.get(library, library) for library in OWNERS}
    assert declared == (wanted - OPTIONAL) | {"torch", "numpy"}
    extras = {
        re.split(r"[<>=!~ ]", line)[0]
        for lines in project["optional-dependencies"].values()
        for line in lines
    }
    assert extras >= OPTIONAL


def test_numerical_code_knows_no_configuration_tracking_or_figures() -> None:
    modules = [module for line in NUMERICAL for module in line]
    assert len(modules) == 35
    for module in modules:
        assert imported(module)[1].isdisjoint(
            {"hydra", "omegaconf", "mlflow", "matplotlib", "plotly", "tqdm"}
        )


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_printed_past_the_one_place(module: str) -> None:
    """`commands.say` is the one way to standard output."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"{module}: print in line {node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr == "stdout":
            assert module == "commands", f"{module}: standard output in line {node.lineno}"


def test_the_page_says_the_same() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text lines\n(.*?)```", page, re.DOTALL)
    told = [tuple(line.split()[1:]) for line in block.splitlines()]
    assert told == list(LINES)
    assert [line.split()[0] for line in block.splitlines()] == [str(n + 1) for n in range(len(LINES))]
