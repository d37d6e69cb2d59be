"""Runs code as on a machine where modeling_mm is not installed."""

import os
import subprocess
from pathlib import Path

from tests.fakes.quick_python import BARE_PYTHON

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "modeling_mm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
"""


def run_without_package(script: str, folder: Path) -> str:
    """What a script prints in a process from which the package is hidden; `folder` is scratch space."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [BARE_PYTHON, "-c", HIDE + script], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout
