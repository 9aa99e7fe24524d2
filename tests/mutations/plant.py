"""Plant each fault of `faults.py` in a copy of the project, run the fast tests, and say which went unnoticed.

python tests/mutations/plant.py [WORDS OF A FAULT]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import FAULTS, Fault

PROJECT = Path(__file__).parents[2]
COPIED = ("src", "tests", "configs", "docs", "benchmarks", "pyproject.toml", "README.md", "Makefile")


def noticed_by(fault: Fault, project: Path) -> str:
    """The first test that fails with the fault, or an empty string; the project is as before afterwards."""
    path = project / "src" / "itr" / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    tests = [str(Path("tests") / name) for name in fault.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", *tests]
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    path.write_text(text, encoding="utf-8")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    if done.returncode and not failed:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return failed[0].split(" - ")[0] if failed else ""


def main(words: str) -> int:
    """Print a line for each fault; returns the number of faults that went unnoticed."""
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        project.mkdir()
        for name in COPIED:
            source = PROJECT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, project / name)
        if (PROJECT.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(PROJECT.parent / "shared")
        for fault in (fault for fault in FAULTS if words in fault.what):
            found = noticed_by(fault, project)
            unnoticed += not found
            print(f"{found or 'NOT NOTICED':<100} {fault.what}", flush=True)
    print(f"{unnoticed} not noticed")
    return unnoticed


if __name__ == "__main__":
    sys.exit(1 if main(" ".join(sys.argv[1:])) else 0)
