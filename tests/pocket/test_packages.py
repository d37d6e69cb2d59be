"""Fetching packages, with stand-ins for the registries' tools: what comes, what is said where it fails."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts.pocket import packages
from scripts.pocket.packages import fetch_package, unpack_npm, unpack_wheel


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """A folder of tools that come before all others."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def tool(folder: Path, name: str, script: str) -> None:
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


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_package_of_npm(tools, tmp_path) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/emoji.json": "[]"})
    tool(tools, "npm", f'echo "$@" > {tmp_path}/asked; cp {archive} scope-emoji-1.2.tgz; echo scope-emoji-1.2.tgz')
    folder = fetch_package("npm:@scope/emoji@1.2", tmp_path / "all")
    assert folder == tmp_path / "all/npm-scope-emoji-1.2"
    assert (folder / "package/emoji.json").read_text() == "[]"
    assert (tmp_path / "asked").read_text().split() == ["pack", "--silent", "@scope/emoji@1.2"]
    assert only(tmp_path / "all") == ["npm-scope-emoji-1.2"]


def test_a_package_of_debian(tools, tmp_path) -> None:
    """A stand-in for dpkg-deb too: it need not be there."""
    tool(tools, "apt-get", f'echo "$@" > {tmp_path}/asked; echo archive > stamps_1_all.deb')
    tool(tools, "dpkg-deb", 'mkdir -p "$3/usr" && cp "$2" "$3/usr/stamp" && test "$1" = --extract')
    folder = fetch_package("debian:stamps", tmp_path / "all")
    assert folder == tmp_path / "all/debian-stamps"
    assert (folder / "usr/stamp").read_text() == "archive\n"
    assert (tmp_path / "asked").read_text().split() == ["download", "--quiet", "stamps"]


def test_a_package_of_pypi(tools, tmp_path, monkeypatch) -> None:
    archive = wheel(tmp_path / "it.whl", **{"weights/model.bin": "w"})
    tool(tools, "python", f'echo "$@" > {tmp_path}/asked; cp {archive} weights-1.0-py3-none-any.whl')
    command, pattern, unpack = packages.FETCHERS["pypi"]
    assert command[0] == sys.executable
    monkeypatch.setitem(packages.FETCHERS, "pypi", ([str(tools / "python"), *command[1:]], pattern, unpack))
    folder = fetch_package("pypi:weights==1.0", tmp_path / "all")
    assert folder == tmp_path / "all/pypi-weights==1.0"
    assert (folder / "weights/model.bin").read_text() == "w"
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["-m", "pip", "download"] and asked[-1] == "weights==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(asked)  # nothing of it is run


def test_a_package_that_is_there_is_not_fetched_again(tools, tmp_path) -> None:
    tool(tools, "npm", "exit 1")
    (tmp_path / "npm-emoji-1.2").mkdir()
    assert fetch_package("npm:emoji@1.2", tmp_path) == tmp_path / "npm-emoji-1.2"


@pytest.mark.parametrize("name", ["emoji", "cargo:emoji", "npm:", ""])
def test_other_names_are_refused(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=r"does not name a package; expected one of debian:NAME, npm:NAME, pypi:NAME"):
        fetch_package(name, tmp_path)


def test_a_missing_tool_is_named_with_the_folder_to_unpack_into(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"fetches npm:emoji@1\.2, is not installed.*npm-emoji-1\.2 by hand"):
        fetch_package("npm:emoji@1.2", tmp_path / "all")


def test_a_failure_says_what_the_tool_said(tools, tmp_path) -> None:
    tool(tools, "npm", "echo 404 Not Found >&2; exit 1")
    with pytest.raises(RuntimeError, match=r"npm pack --silent emoji@1\.2 failed: 404 Not Found"):
        fetch_package("npm:emoji@1.2", tmp_path / "all")
    tool(tools, "apt-get", "echo Unable to locate package >&2; exit 100")
    with pytest.raises(RuntimeError, match=r"run `apt-get update` first\?.*Unable to locate package"):
        fetch_package("debian:stamps", tmp_path / "all")
    assert only(tmp_path / "all") == []


def test_a_tool_that_leaves_nothing_has_failed(tools, tmp_path) -> None:
    tool(tools, "npm", "echo nothing to do >&2")
    with pytest.raises(RuntimeError, match="nothing to do"):
        fetch_package("npm:emoji@1.2", tmp_path / "all")
    assert only(tmp_path / "all") == []


def test_an_archive_that_is_cut_off_leaves_nothing(tools, tmp_path) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/a": "a" * 5000, "package/b": os.urandom(2000).hex()})
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(archive.read_bytes()[:-500])
    tool(tools, "npm", f"cp {cut} emoji-1.2.tgz")
    with pytest.raises((EOFError, tarfile.ReadError)):
        fetch_package("npm:emoji@1.2", tmp_path / "all")
    assert only(tmp_path / "all") == []


def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(tools, tmp_path, monkeypatch) -> None:
    archive = tarball(tmp_path / "it.tgz", **{"package/a": "a"})
    tool(tools, "npm", f"cp {archive} emoji-1.2.tgz")

    def interrupted(given: Path, target: Path) -> None:
        unpack_npm(given, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(packages.FETCHERS, "npm", (*packages.FETCHERS["npm"][:2], interrupted))
        with pytest.raises(KeyboardInterrupt):
            fetch_package("npm:emoji@1.2", tmp_path / "all")
    assert only(tmp_path / "all") == []
    assert (fetch_package("npm:emoji@1.2", tmp_path / "all") / "package/a").read_text() == "a"


@pytest.mark.parametrize("name", ["../outside", "/tmp/modeling-mm-outside"])
def test_archives_cannot_write_elsewhere(tmp_path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with contextlib.suppress(tarfile.FilterError):  # "../" is refused, a leading "/" is taken off
        unpack_npm(tarball(tmp_path / "it.tgz", **{name: "evil"}), tmp_path / "in/target")
    unpack_wheel(wheel(tmp_path / "it.whl", **{name: "evil"}), tmp_path / "in/other")
    assert not (tmp_path / "in/outside").exists() and not Path("/tmp/modeling-mm-outside").exists()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_real_archive_of_debian(tmp_path) -> None:
    source = tmp_path / "source"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "usr").mkdir()
    (source / "usr/stamp").write_text("picture")
    (source / "DEBIAN/control").write_text(
        "Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(source), str(tmp_path / "it.deb")],
        check=True,
        capture_output=True,
    )
    packages.unpack_debian(tmp_path / "it.deb", tmp_path / "target")
    assert (tmp_path / "target/usr/stamp").read_text() == "picture"
