"""hub/weights.py: the digest of a folder's weights, as the Hub shows it."""

import hashlib

import pytest

from modeling_mm.hub import measured_digests, measured_on, weights_digest


def test_one_file_has_its_own_sum(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1_000_000)  # more than is read at once
    (tmp_path / "adapter_model.safetensors").write_bytes(b"others")
    assert weights_digest(tmp_path) == hashlib.sha256(b"weights" * 1_000_000).hexdigest()


def test_every_shard_counts_and_so_does_its_place(tmp_path):
    found = set()
    for contents in ((b"a", b"b"), (b"b", b"a"), (b"a", b"c"), (b"a",)):
        for path in tmp_path.iterdir():
            path.unlink()
        for number, content in enumerate(contents, 1):
            (tmp_path / f"model-{number:05}-of-{len(contents):05}.safetensors").write_bytes(content)
        found.add(weights_digest(tmp_path))
    assert len(found) == 4


def test_a_folder_without_weights_has_none_and_nothing_is_said_of_them(tmp_path):
    assert weights_digest(tmp_path) is None and measured_on(None) == ""


@pytest.mark.parametrize("text", ["", "a SHA-256 of `abc`", measured_on("g" * 64)])
def test_other_texts_state_nothing(text):
    assert measured_digests(text) == []
