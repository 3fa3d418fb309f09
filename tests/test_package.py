import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sparsemix

ROOT = Path(__file__).parent.parent
MODULES = ["sparsemix", *(m.name for m in pkgutil.walk_packages(sparsemix.__path__, "sparsemix."))]
MODULES.remove("sparsemix.__main__")  # runs a command
HEAVY = {"timm", "accelerate", "torchvision", "matplotlib", "sklearn", "tyro", "einops"}


def test_import_is_light():
    code = f"import sys, sparsemix; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{public}"
            assert not value.__doc__.startswith(f"{public}("), f"{name}.{public} has only its dataclass signature"


FLOORS = [
    {"_utils"},
    {"relaxations", "data"},
    {"supernet"},
    {"spaces", "inject", "measure"},
    {"models", "methods"},
    {"runs"},
    {"report", "speed"},
    {"compare", "reproduction"},
    {"cli"},
]
"""Folders from the ground up: each imports from lower floors, and from itself."""


def test_imports_run_downwards():
    floor = {folder: height for height, folders in enumerate(FLOORS) for folder in folders}
    for path in (ROOT / "sparsemix").rglob("*.py"):
        parts = path.relative_to(ROOT / "sparsemix").with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            if node.level == len(parts):  # from the package itself
                imported = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                for folder in imported:
                    allowed = folder in ("__version__", parts[0]) or floor[folder] < floor[parts[0]]
                    assert allowed, f"{'/'.join(parts)} imports {folder}"


@pytest.mark.parametrize(("package", "folders"), [("accelerate", {"runs", "cli"}), ("tyro", {"cli"})])
def test_who_knows_which_package(package, folders):
    for path in (ROOT / "sparsemix").rglob("*.py"):
        text = path.read_text()
        if f"import {package}" in text or f"from {package}" in text:
            assert path.relative_to(ROOT / "sparsemix").parts[0] in folders, path


def test_wheel_and_sdist(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    [wheel] = tmp_path.glob("*.whl")
    assert [*tmp_path.glob("*.tar.gz")]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "sparsemix/py.typed" in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]
    assert f"Version: {sparsemix.__version__}" in metadata
    required = {
        line.split()[1].split(">")[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and ";" not in line
    }
    assert required == {"torch", "torchvision", "timm", "einops", "accelerate"}
    assert "License-Expression: Apache-2.0" in metadata
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *tmp_path.glob("sparsemix-*")], check=True)


def test_the_installed_wheel_searches(tmp_path):
    """What a user gets: a new environment that holds the wheel and what it requires, and nothing else."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    [site] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    link_requirements(site, "sparsemix[search,plots]")
    subprocess.run([*pip, "check"], check=True)

    def run(*command):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)

    run(python, "-c", f"import sparsemix; assert sparsemix.__file__.startswith({str(site)!r}), sparsemix.__file__")
    command = tmp_path / "env" / "bin" / "sparsemix"
    flags = ["--preset", "proxy", "--epochs", "1", "--limit", "200", "--channels", "4", "--output", "run"]
    run(command, "search", "nb201", *flags)
    run(command, "report", "run")
    assert (tmp_path / "run" / "report.html").is_file()


def link_requirements(site, root):
    """Put what a requirement needs, and what that needs in turn, into another environment, as links: torch is large."""
    wanted, linked = [Requirement(root)], set()
    while wanted:
        requirement = wanted.pop()
        extras = requirement.extras or {""}
        at = [str(site)] if requirement.name == "sparsemix" else sys.path
        [found, *_] = distributions(name=requirement.name, path=at)
        if (requirement.name, *sorted(extras)) in linked:
            continue
        linked.add((requirement.name, *sorted(extras)))
        for top in {Path(file).parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
        needed = map(Requirement, found.requires or ())
        wanted += [r for r in needed if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]


def test_every_dependency_has_a_licence_in_the_docs():
    project = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0].split("dependencies = [")
    needed = {name for part in project[1:] for name in re.findall(r'"([a-z0-9-]+)>=', part)}
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \|", (ROOT / "docs" / "licences.md").read_text(), flags=re.MULTILINE))
    assert needed - listed == set()
    assert listed - needed == {"package"}
