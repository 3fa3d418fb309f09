"""The documentation site: built with warnings as errors, its notebooks executed, its reference complete."""

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import sparsemix

ROOT = Path(__file__).parent.parent
INTERNAL = ("sparsemix.cli", "sparsemix._utils", "sparsemix.__main__")


def homes():
    """Where the public names are defined."""
    for found in pkgutil.walk_packages(sparsemix.__path__, "sparsemix."):
        if not found.name.startswith(INTERNAL):
            module = import_module(found.name)
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if callable(value) and getattr(value, "__module__", "").startswith("sparsemix."):
                    yield f"{value.__module__}.{getattr(value, '__qualname__', name)}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_site_is_built_without_warnings_and_documents_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "--fail-on-warning", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True, text=True, cwd=tmp_path, timeout=400,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    with (tmp_path / "site" / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    documented = {name for kind in inventory.values() for name in kind}
    assert set(homes()) - documented == set()
    assert "M MACs" in (tmp_path / "site" / "notebooks" / "budget.html").read_text()  # it was executed
