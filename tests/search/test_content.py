"""content.py and embedding.py: what has content, and its embedding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from modeling_mm import MMForConditionalGeneration, MMForRetrieval
from modeling_mm.search import Embedder, Item
from modeling_mm.search.content import read_content, row_of, sign
from tests.fakes.pipeline_parts import build
from tests.fakes.processor_parts import RATE
from tests.search.conftest import save_stripes, save_tone


def content(item: Item):
    signature, media = sign(item)
    return read_content(item, media, signature)


@pytest.fixture
def image(tmp_path):
    return str(save_stripes(tmp_path / "a.png", 0))


@pytest.fixture
def audio(tmp_path):
    return str(save_tone(tmp_path / "a.wav", 440))


# ---- Content --------------------------------------------------------------------------------------------------------


def write_blank(path):
    Image.new("RGB", (6, 4), "white").save(path)
    return {"image": [str(path)]}


def write_silence(path, level: float = 0.0):
    soundfile.write(path, np.full(800, level, np.float32), RATE)
    return {"audio": [str(path)]}


# An item made in a folder, and a part of the message
NOTHING = {
    "empty": (lambda folder: Item(""), "Row 3: there is nothing in it, neither a text nor media."),
    "spaces": (lambda folder: Item(" \n"), "Row 3: there is nothing in it"),
    "blank": (lambda folder: Item(media=write_blank(folder / "x.png")), "has no content: all its pixels have one"),
    "silent": (lambda folder: Item(media=write_silence(folder / "x.wav")), "has no content: it is silent."),
    "offset": (lambda folder: Item("a", write_silence(folder / "x.wav", 0.3)), "has no content: it is silent."),
    "missing": (lambda folder: Item(media={"image": [str(folder / "no.png")]}), "no.png"),
    "damaged": (lambda folder: Item(media={"image": [b"\x89PNG nothing"]}), "Row 3: image 12 bytes: "),
    "long": (lambda folder: Item("é" * 40_000), "Row 3: a text of 80000 bytes"),
    "long id": (lambda folder: Item("a", id="x" * 70_000), "Row 3, its id: a text of 70000 bytes"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_an_item_without_content_is_refused_by_its_place(kind, tmp_path):
    make, message = NOTHING[kind]
    with pytest.raises(ValueError, match="Row 3") as error:
        content(replace(make(tmp_path), where="Row 3"))
    assert message in str(error.value)


def test_quiet_audio_and_nearly_blank_images_have_content(tmp_path):
    wave = np.zeros(800, np.float32)
    wave[3] = 2e-4
    soundfile.write(tmp_path / "x.wav", wave, RATE, subtype="FLOAT")
    picture = Image.new("RGB", (6, 4), "white")
    picture.putpixel((1, 1), (255, 255, 254))
    picture.save(tmp_path / "x.png")
    media = {"image": [str(tmp_path / "x.png")], "audio": [str(tmp_path / "x.wav")]}
    assert content(Item(media=media)).item.kind == "image+audio"


def test_a_signature_is_that_of_text_media_and_metadata(tmp_path, image, audio):
    item = Item("a", {"image": [image]}, metadata={"b": 1})
    others = [replace(item, text="b"), replace(item, metadata={"b": 2}), replace(item, media={"audio": [audio]})]
    others.append(replace(item, media={"image": [str(save_stripes(tmp_path / "b.png", 0))]}))  # the path counts
    assert len({sign(each)[0] for each in (item, *others)}) == 5
    before = sign(item)[0]
    assert before == sign(replace(item, id="x", where="there"))[0]
    save_stripes(tmp_path / "a.png", 1)
    assert sign(item)[0] != before
    assert content(item).item.id == sign(item)[0]  # a row without an id gets it


def test_media_that_are_bytes_are_kept_in_files(tmp_path, image):
    data = Path(image).read_bytes()
    for source, suffix in ((data, ""), ({"bytes": data, "path": "a.png"}, ".png")):
        row = row_of(content(Item(media={"image": [source]}, id="x")), {}, "here", tmp_path / "media")
        path = tmp_path / "media" / row.media["image"][0].rpartition("/")[2]
        assert path.read_bytes() == data and path.suffix == suffix
    assert row_of(content(Item(media={"image": [image]})), {}, "here", tmp_path).media == {"image": [image]}
    assert row_of(content(Item(media={"image": [Image.open(image)]})), {}, "here", tmp_path).media == {"image": [""]}


# ---- Embeddings -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def embed_alone(embedder, **inputs) -> np.ndarray:
    return embedder.model.embed(**embedder.processor(**inputs, return_tensors="pt"))[0].numpy()


def test_every_kind_is_embedded_as_the_model_does_it(embedder, image, audio):
    items = {
        "text": (Item("a cat"), {"text": "a cat"}),
        "image": (Item(media={"image": [image]}), {"text": "", "images": [image]}),
        "audio": (Item(media={"audio": [audio]}), {"text": "", "audio": [audio]}),
        "image+text": (Item("a cat", {"image": [image]}), {"text": "a cat", "images": [image]}),
        "image+audio": (
            Item(media={"image": [image], "audio": [audio]}),
            {"text": "", "images": [image], "audio": [audio]},
        ),
    }
    contents = [content(item) for item, _ in items.values()]
    vectors, failures = embedder.embed(contents * 2, batch_size=3)
    assert vectors.dtype == np.float32 and not failures
    for number, (item, inputs) in enumerate(items.values()):
        expected = embed_alone(embedder, **inputs)
        assert np.abs(vectors[number] - expected).max() < 1e-5
        assert np.abs(vectors[number + len(items)] - expected).max() < 1e-5
        assert np.abs(embedder.embed_item(item) - expected).max() < 1e-5
    assert len({tuple(vector.round(3)) for vector in vectors}) == len(items)


def test_media_alone_go_to_the_model_without_text(embedder, image, monkeypatch):
    """Else a model whose placeholders are hidden from its text would find nothing in them."""
    embed, given = embedder.model.embed, []
    monkeypatch.setattr(embedder.model, "embed", lambda **inputs: given.append(set(inputs)) or embed(**inputs))
    embedder.embed([content(Item(media={"image": [image]})), content(Item("a cat", {"image": [image]}))])
    media = {"pixel_values", "image_mask"}
    assert given == [media, media | {"input_ids", "attention_mask"}]


def test_an_item_that_the_model_does_not_take_is_named_and_the_others_are_embedded(embedder):
    items = [Item("a cat", where="row 0"), Item("a " * 300, where="row 1"), Item("a dog", where="row 2")]
    vectors, failures = embedder.embed([content(item) for item in items])
    assert [number for number, _ in failures] == [1] and str(failures[0][1]).startswith("row 1: ")
    assert np.abs(vectors[2] - embedder.embed_item(items[2])).max() < 1e-5 and not vectors[1].any()
    with pytest.raises(ValueError, match="row 1: "):
        embedder.embed_item(items[1])


def test_a_fingerprint_is_that_of_weights_and_vocabulary(embedder):
    model, processor = build(MMForRetrieval, projection_dim=8)
    same = Embedder(model, processor)
    assert same.fingerprint == embedder.fingerprint
    assert Embedder(model.double(), processor).fingerprint == embedder.fingerprint
    with torch.no_grad():
        model.float().logit_scale += 1
        assert Embedder(model, processor).fingerprint == embedder.fingerprint
        model.embedding_projection.weight[3, 3] += 1e-3
    assert Embedder(model, processor).fingerprint != embedder.fingerprint
    model, processor = build(MMForRetrieval, projection_dim=8)
    processor.tokenizer.add_tokens(["new"])
    assert Embedder(model, processor).fingerprint != embedder.fingerprint


def test_a_model_that_does_not_embed_is_refused():
    with pytest.raises(ValueError, match="got a MMForConditionalGeneration"):
        Embedder(*build(MMForConditionalGeneration))
