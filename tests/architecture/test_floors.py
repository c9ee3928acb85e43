"""The house rules: floors, doors, torch-free files, file length."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "framecast"
FILES = sorted(PACKAGE.rglob("*.py"))

# outside library -> the one file that may import it (a folder: any file in it); safetensors has two: our models, and
# the weights of feature networks that others wrote, read on a floor below; numba compiles two things, flows and codes
DOORS: dict[str, str | tuple[str, ...]] = {
    "av": "data/video_file.py",
    "PIL": "data/image_file.py",
    "lightning": "devices.py",
    "lightning_fabric": "devices.py",
    "safetensors": ("checkpoint.py", "nn/weight_file.py"),
    "huggingface_hub": "checkpoint.py",
    "jsonargparse": "cli/parsing.py",
    "rich": "cli/console.py",
    "yaml": "experiment.py",
    "tensorboard": "train/log.py",
    "matplotlib": "data/plot.py",
    "numba": ("data/simulate/", "systems/video_vqvae/compiled.py"),
    "jinja2": "evaluate/report.py",
}
TORCH_FREE = ["framecast", "framecast.task", "framecast.experiment", "framecast.systems", "framecast.cli.main"]
TORCH_FREE += [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in FILES
    if path.parent.name == "cli" or (path.name in {"config.py", "published.py"} and "systems" in path.parts)
]


def imports(path: Path) -> set[str]:
    """Top-level names of all outside modules a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_imports_go_down_only():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("library", DOORS)
def test_one_door_per_outside_library(library):
    doors = DOORS[library] if isinstance(DOORS[library], tuple) else (DOORS[library],)
    users = {str(path.relative_to(PACKAGE)) for path in FILES if library in imports(path)}
    assert all(any(user == door or (door.endswith("/") and user.startswith(door)) for door in doors) for user in users)


def module_graph() -> dict[str, set[str]]:
    """Which framecast module imports which, imports inside functions included."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[name] = {other for other in found if other in names and other != name}
    return graph


def test_no_import_cycles():
    graph, state = module_graph(), {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert state.get(module) != "open", " -> ".join((*path, module))
        state[module] = "open"
        for other in sorted(graph[module]):
            # a package's __init__ is not a cycle partner of the files inside it that it re-exports
            if not module.startswith(other + "."):
                visit(other, (*path, module))
        state[module] = "done"

    for module in graph:
        visit(module, ())
    assert len(graph) > 10


@pytest.mark.parametrize("module", sorted(set(TORCH_FREE)))
def test_imports_without_torch(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy', 'lightning_fabric'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_no_general_purpose_drawers():
    assert not [p for p in FILES if p.name in {"utils.py", "helpers.py", "misc.py", "base.py"} or "common" in p.parts]
