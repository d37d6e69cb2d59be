"""Findings keep their form: one script each, pinned packages, and a row in the table of their README."""

import os
import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "findings"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.sh"))


def test_the_table_lists_every_script_once():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == SCRIPTS
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", *(f"{name}.sh" for name in SCRIPTS)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_finding_installs_pinned_packages_and_states_guess_and_sight(name):
    path = FOLDER / f"{name}.sh"
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    (packages,) = re.findall(r"pip install --quiet (.+)", text)
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages.split())
    assert "modeling_mm" not in text
    for part in ("set -e", "mktemp -d", "rm -rf", 'print(f"versions: ', 'print("guess: ', "seen: ", "assert "):
        assert part in text, part
    compile(text.split("<<'EOF'\n")[1].removesuffix("EOF\n"), path.name, "exec")
