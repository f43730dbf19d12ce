"""An environment of its own for the other libraries, which shares torch with this one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.peers.libraries import LIBRARIES


def make(folder: Path) -> str:
    """Make the environment where there is none, and install what is compared.

    Args:
        folder: where; a folder that holds one already is taken as it is.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed, for want of a network say.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / "installed"
    wanted = sorted({package for package, _ in LIBRARIES.values() if package})
    if not done.exists() or done.read_text().split() != wanted:
        venv.create(folder, with_pip=True)
        _share(python)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        done.write_text("\n".join(wanted))
    return str(python)


def _share(python: Path) -> None:
    """Let it see this environment's packages behind its own; those packages stay as they are."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    Path(target, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
