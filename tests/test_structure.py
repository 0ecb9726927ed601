"""The house rules that a linter does not know: directions, what an import costs, the folders."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top down; a module may import what stands on a lower line. See docs/architecture.md.
LINES = [
    {"cli"},
    {"demo", "retraining", "studies"},
    {"experiments", "reproductions"},
    {"serving", "served_model"},
    {"training"},
    {"tracking", "checkpoints"},
    {"exports"},
    {"issuing", "testing"},
    {"report", "tables"},
    {"plots"},
    {"verification"},
    {"predictors", "devices"},
    {"nowcasters"},
    {"networks"},
    {"postprocessing"},
    {"frames", "spectral", "places", "calibration"},
    {"cache"},
    {"data"},
    {"config"},
    {"rainrate"},
    {"conventions"},
    {"clusters", "decisions", "durable", "turns"},
]
RANK = {name: rank for rank, names in enumerate(LINES) for name in names}
HEAVY = {"tensorflow", "keras", "mlflow", "pysteps", "scores", "matplotlib", "prefect"}


def _modules():
    return sorted((ROOT / "nowcast").rglob("*.py"))


def _home(path):
    return path.relative_to(ROOT / "nowcast").with_suffix("").parts[0]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def test_every_module_has_a_line():
    homes = {_home(path) for path in _modules()} - {"__init__"}
    assert homes == set(RANK)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    home = _home(path)
    if home == "__init__":
        return
    for module, name in _imports(path):
        parts = module.split(".")
        if parts[0] != "nowcast":
            assert parts[0] != "pipelines"
            continue
        used = parts[1] if len(parts) > 1 else name
        if used in RANK and used != home:
            assert RANK[used] > RANK[home], (
                f"{home} imports {used}, which stands above or beside it"
            )


def test_the_mlflow_folder_holds_no_python_and_does_not_shadow_the_library():
    assert (ROOT / "mlflow").is_dir()
    assert list((ROOT / "mlflow").rglob("*.py")) == []
    (origin,) = _fresh("import importlib.util; print(importlib.util.find_spec('mlflow').origin)")
    assert Path(origin).name == "__init__.py"
    assert ROOT / "mlflow" not in Path(origin).parents


def test_no_pipeline_bears_the_name_of_a_library():
    names = {path.stem for path in (ROOT / "pipelines").glob("*.py")}
    assert not names & (HEAVY | {"dask", "xarray", "numpy"})


def _fresh(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def test_importing_nowcast_loads_nothing_heavy():
    loaded = _fresh("import sys, nowcast; print(*sorted({m.split('.')[0] for m in sys.modules}))")
    assert not set(loaded) & (HEAVY | {"numpy", "xarray", "pandas", "dask", "pydantic"})


def test_importing_a_module_loads_nothing_heavy():
    """One after the other in one interpreter: what is heavy is told of the first to load it."""
    modules = [
        "nowcast.cli",
        "nowcast.data",
        "nowcast.frames",
        "nowcast.networks.convlstm",
        "nowcast.nowcasters.neural",
        "nowcast.training",
        "nowcast.tracking",
        "nowcast.verification",
        "nowcast.experiments",
        "nowcast.retraining",
        "nowcast.studies",
        "nowcast.demo",
        "nowcast.plots",
        "nowcast.report",
        "nowcast.exports",
    ]
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(module)\n"
        f"    print(*(f'{{module}}:{{one}}' for one in {HEAVY} & (set(sys.modules) - before)))\n"
    )
    assert _fresh(code) == []


def test_training_needs_neither_mlflow_nor_netcdf_nor_a_cluster_to_be_imported():
    """What it imports, not which backend: a training on another machine has only these."""
    code = (
        "import sys\n"
        "for name in ('mlflow', 'netCDF4', 'dask.distributed'):\n"
        "    sys.modules[name] = None\n"
        "import nowcast.training"
    )
    _fresh(code)


def test_public_names_are_there():
    import nowcast

    for name in nowcast.__all__:
        assert getattr(nowcast, name) is not None
    with pytest.raises(AttributeError, match="it has"):
        _ = nowcast.forecast


def test_the_tools_have_their_versions_pinned():
    pinned = (ROOT / "constraints.txt").read_text()
    for name in ("tensorflow", "mlflow", "prefect", "xarray", "dask", "hatchling"):
        assert f"\n{name}==" in pinned or name == "hatchling"
