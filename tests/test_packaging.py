"""The package mapping of pyproject.toml against what is on disk."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    found = set()
    for folder, _, files in os.walk(ROOT / "ecospa_fx", followlinks=True):
        if "__init__.py" in files:
            found.add(".".join(Path(folder).relative_to(ROOT).parts))
    return found


def test_listed_packages_are_the_packages_on_disk() -> None:
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_passes_is_a_relative_link_into_the_package() -> None:
    assert os.readlink(ROOT / "ecospa_fx" / "passes") == "../passes"


def test_version_is_the_one_in_pyproject() -> None:
    import ecospa_fx

    assert ecospa_fx.__version__ == PYPROJECT["project"]["version"]


def test_passes_refuses_to_be_imported_under_another_name() -> None:
    result = subprocess.run([sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "ImportError: this package is `ecospa_fx.passes`, and it was imported as `passes`" in result.stderr


def test_passes_imports_under_its_own_name() -> None:
    import ecospa_fx.passes

    assert ecospa_fx.passes.__name__ == "ecospa_fx.passes"
