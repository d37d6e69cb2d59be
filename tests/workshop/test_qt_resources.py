"""Qt's resource files: written by hand, read back exactly, and refused where they are damaged."""

import struct

import pytest

from scripts.workshop.qt_resources import read_qt_resources
from tests.workshop.qt_writer import COMPRESSED, PLAIN, ZSTD, write_qt_resources

FILES = {
    "a/b/é.txt": "naïve".encode(),
    "a/empty": b"",
    "a/b/c/deep.bin": bytes(range(256)) * 20,
    "top": b"qres",
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("kind", [PLAIN, COMPRESSED], ids=["plain", "compressed"])
def test_files_are_read_back_with_their_paths(tmp_path, kind: int, version: int) -> None:
    path = write_qt_resources(tmp_path / "x.rcc", FILES, kind, version)
    found = list(read_qt_resources(path))
    assert dict(found) == FILES and len(found) == len(FILES)


def test_compressed_files_are_smaller(tmp_path) -> None:
    plain, packed = (write_qt_resources(tmp_path / f"{kind}", FILES, kind) for kind in (PLAIN, COMPRESSED))
    assert packed.stat().st_size < plain.stat().st_size - 4000


def test_a_file_without_entries_is_empty(tmp_path) -> None:
    assert list(read_qt_resources(write_qt_resources(tmp_path / "x.rcc", {}))) == []


@pytest.mark.parametrize("content", [b"", b"qre", b"PK\x03\x04" + bytes(30)])
def test_other_files_are_refused_by_their_beginning(tmp_path, content: bytes) -> None:
    path = tmp_path / "x.rcc"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.rcc is not a Qt resource file: it begins with b'.*', not b'qres'"):
        list(read_qt_resources(path))


def test_an_unknown_version_is_refused(tmp_path) -> None:
    path = write_qt_resources(tmp_path / "x.rcc", FILES, version=4)
    with pytest.raises(ValueError, match=r"has version 4 of the format; expected one of \(1, 2, 3\)"):
        list(read_qt_resources(path))


@pytest.mark.parametrize("kind", [PLAIN, COMPRESSED], ids=["plain", "compressed"])
def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path, kind: int) -> None:
    """The tree is written last, so that every byte but those of the last entry's time is needed."""
    whole = write_qt_resources(tmp_path / "x.rcc", FILES, kind).read_bytes()
    for length in [*range(4, 60), *range(60, len(whole) - 8, 97), len(whole) - 9]:
        (tmp_path / "x.rcc").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.rcc is cut short: it has \d+ bytes, and its tables name byte \d+"):
            list(read_qt_resources(tmp_path / "x.rcc"))


def test_zstd_is_refused_by_the_name_of_the_file(tmp_path) -> None:
    path = write_qt_resources(tmp_path / "x.rcc", {"a/b.txt": b"x"}, ZSTD)
    with pytest.raises(ValueError, match=r"x\.rcc: a/b\.txt is compressed by zstd"):
        list(read_qt_resources(path))


def test_damaged_data_are_refused_by_the_name_of_the_file(tmp_path) -> None:
    path = write_qt_resources(tmp_path / "x.rcc", {"a/b.txt": b"some text"})
    content = bytearray(path.read_bytes())
    content[24 + 8] ^= 0xFF  # the first byte behind the header and two lengths
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.rcc is damaged: a/b\.txt cannot be decompressed"):
        list(read_qt_resources(path))


def test_a_folder_that_holds_itself_is_refused(tmp_path) -> None:
    path = write_qt_resources(tmp_path / "x.rcc", {"a/b.txt": b"x"}, version=1)
    content = bytearray(path.read_bytes())
    (tree,) = struct.unpack(">I", content[8:12])
    content[tree + 14 + 10 : tree + 14 + 14] = struct.pack(">I", 1)  # the first child of entry 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: folder 'a' lies within itself"):
        list(read_qt_resources(path))
