# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Packages of Debian, npm and PyPI as sources of data: downloaded by their own tools, unpacked, never installed."""

import hashlib
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


def fetch_package(name: str, folder: Path, sha256: str | None = None) -> Path:
    """
    Download and unpack one package, unless its folder exists.

    Args:
        name: `debian:NAME`, `npm:NAME@VERSION` or `pypi:NAME==VERSION`; Debian takes `NAME=VERSION` too.
        folder: the folder of all packages. A package's own folder below it appears when it is whole.
        sha256: the digest that the downloaded archive must have.

    Returns:
        The package's folder.

    Raises:
        ValueError: for a name of another form.
        FileNotFoundError: if the registry's tool is missing.
        RuntimeError: if the tool fails or the archive has another digest.
    """
    registry, _, package = name.partition(":")
    if registry not in FETCHERS or not package:
        forms = ", ".join(f"{registry}:NAME" for registry in FETCHERS)
        raise ValueError(f"{name!r} does not name a package; expected one of {forms}.")
    target = folder / f"{registry}-{package.replace('/', '-').replace('@', '-').strip('-')}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    command, pattern, unpack = FETCHERS[registry]
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(
            f"{command[0]}, which fetches {name}, is not installed. Install it, or unpack the package into {target} "
            "by hand."
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        result = subprocess.run([*command, package], cwd=temporary, capture_output=True, text=True)
        archives = sorted(Path(temporary).glob(pattern))
        if result.returncode != 0 or len(archives) != 1:
            hint = " (run `apt-get update` first?)" if registry == "debian" else ""
            raise RuntimeError(f"{' '.join([*command, package])} failed{hint}: {result.stderr.strip()[-500:]}")
        digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if sha256 not in (None, digest):
            raise RuntimeError(f"{name} has the SHA-256 {digest}, expected {sha256}. The package has changed.")
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


# Registry -> command, pattern of the file that it downloads, function that unpacks this file.
FETCHERS: dict[str, tuple[list[str], str, Unpack]] = {
    "debian": (["apt-get", "download", "--quiet"], "*.deb", unpack_debian),
    "npm": (["npm", "pack", "--silent"], "*.tgz", unpack_npm),
    "pypi": ([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"], "*.whl",
             unpack_wheel),
}  # fmt: skip
