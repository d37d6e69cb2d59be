"""SentenceTransformer loads a folder of MMForRetrieval as it is, and what its users know works with media too."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, TripletEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives, paraphrase_mining, semantic_search

from modeling_mm import MMForRetrieval, MMProcessor
from tests.fakes.pipeline_parts import COLORS, build, noise
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference
from tests.fakes.videos import make_video
from tests.fakes.without_package import run_without_package

SIZE = 8
WORDS = ["a cat", "a dog and a bird", "hello there"]


def save(folder: Path, **fields) -> Path:
    model, processor = build(MMForRetrieval, projection_dim=SIZE, **fields)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("retriever"))


@pytest.fixture(scope="module")
def sentences(folder):
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ours(folder):
    return MMForRetrieval.from_pretrained(folder).eval(), MMProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image, audio and a video as files."""
    found = {"image": "image.png", "audio": "audio.wav", "video": "video.mp4"}
    found = {name: tmp_path_factory.mktemp("media") / file for name, file in found.items()}
    picture("blue").save(found["image"])
    soundfile.write(found["audio"], noise(seed=4), RATE)
    found["video"].write_bytes(make_video())
    return {name: str(path) for name, path in found.items()}


@torch.no_grad()
def embed(ours, text: str = "", **media) -> np.ndarray:
    model, processor = ours
    return model.embed(**processor(text=text, return_tensors="pt", **media))[0].numpy()


def both(files) -> dict[str, tuple]:
    """Inputs of sentence-transformers, each with the text and the media that the processor takes for it."""
    long = {"array": noise(2.3), "sampling_rate": RATE}
    red, blue = picture("red"), picture("blue")
    return {
        "text": ("a cat", {"text": "a cat"}),
        "a control token in a text": ("a <|image|>", {"text": "a <\U000f0000|image|>"}),
        "an image": (red, {"images": [red]}),
        "an image's path": (files["image"], {"images": [files["image"]]}),
        "samples": ({"array": noise(), "sampling_rate": RATE}, {"audio": [(noise(), RATE)]}),
        "samples at the encoder's rate": (noise(seed=2), {"audio": [(noise(seed=2), RATE)]}),
        "several windows": (long, {"audio": [(noise(2.3), RATE)]}),
        "a path of audio": (files["audio"], {"audio": [files["audio"]]}),
        "a path of a video": (files["video"], {"text": "<|video|>", "videos": [files["video"]]}),
        "an image before its text": ({"image": red, "text": "a cat"}, {"text": "<|image|>a cat", "images": [red]}),
        "a text before its image": ({"text": "a cat", "image": red}, {"text": "a cat<|image|>", "images": [red]}),
        "everything": (
            {"image": [red, blue], "text": "hello there", "audio": long},
            {"text": "<|image|><|image|>hello there<|audio|>", "images": [red, blue], "audio": [(noise(2.3), RATE)]},
        ),
    }


def test_every_input_has_the_embedding_of_the_model_alone_and_among_others(sentences, ours, files):
    pairs = both(files)
    expected = {name: embed(ours, **given) for name, (_, given) in pairs.items()}
    for name, (given, _) in pairs.items():
        assert difference(torch.tensor(sentences.encode(given)), torch.tensor(expected[name])) < 1e-5, name
    found = sentences.encode([given for given, _ in pairs.values()], batch_size=5)
    assert np.abs(found - np.stack([*expected.values()])).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert len({tuple(row.round(3)) for row in found}) == len(pairs)


def test_the_model_says_what_it_takes_and_how_much(sentences):
    assert type(sentences[0].model) is MMForRetrieval and type(sentences[0].processor) is MMProcessor
    assert set(sentences.modalities) == {"text", "image", "audio", "video", "message"}
    assert sentences.get_embedding_dimension() == SIZE and sentences.max_seq_length == 256
    assert sentences.similarity_fn_name == "cosine"


def test_a_model_without_a_modality_reads_paths_of_it_as_text(tmp_path, files):
    found = SentenceTransformer(str(save(tmp_path, audio=None)), device="cpu")
    assert set(found.modalities) == {"text", "image", "video", "message"}
    inputs = found.preprocess([files["audio"]])
    assert found.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == files["audio"]


def test_long_texts_are_cut_to_the_positions(sentences, ours):
    long = "a cat " * 300
    model, processor = ours
    cut = processor(text=long, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        assert difference(torch.tensor(sentences.encode(long)), model.embed(**cut)[0]) < 1e-5
    short = sentences.encode(long, processing_kwargs={"text": {"max_length": 5}})
    assert difference(torch.tensor(short), torch.tensor(embed(ours, "a cat a cat a cat"[:9]))) > 1e-3


def test_a_prompt_stands_before_the_input(sentences, ours):
    found = sentences.encode({"image": picture("red"), "text": "a cat"}, prompt="hello ")
    assert np.abs(found - embed(ours, "hello <|image|>a cat", images=[picture("red")])).max() < 1e-5


def test_vectors_can_be_truncated_by_its_option(folder, sentences):
    short = SentenceTransformer(str(folder), device="cpu", truncate_dim=3).encode(WORDS, normalize_embeddings=True)
    whole = sentences.encode(WORDS)[:, :3]
    assert np.abs(short - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() < 1e-6


def test_search_mining_and_evaluators_take_media(sentences):
    pictures = [picture(color) for color in COLORS]
    captions = sentences.encode(WORDS, convert_to_tensor=True)
    items = sentences.encode(pictures, convert_to_tensor=True)
    similarities = sentences.similarity(captions, items)
    hits = semantic_search(captions, items, top_k=3)
    for row, found in zip(similarities, hits, strict=True):
        assert [hit["corpus_id"] for hit in found] == row.argsort(descending=True).tolist()
    mined = paraphrase_mining(sentences, [*WORDS, "a cat"], max_pairs=10)
    assert mined[0][0] == pytest.approx(1.0, abs=1e-5) and set(mined[0][1:]) == {0, 3}

    best = {str(number): {str(row.argmax().item())} for number, row in enumerate(similarities)}
    numbered = [{str(number): item for number, item in enumerate(items)} for items in (WORDS, pictures)]
    retrieval = InformationRetrievalEvaluator(*numbered, best, accuracy_at_k=[1], write_csv=False)
    assert retrieval(sentences)["cosine_accuracy@1"] == 1.0
    columns = [[pictures[row.argmax()] for row in similarities], [pictures[row.argmin()] for row in similarities]]
    assert TripletEvaluator(WORDS, *columns, write_csv=False)(sentences)["cosine_accuracy"] == 1.0


def test_hard_negatives_are_mined(sentences):
    rows = Dataset.from_dict({"query": ["a cat", "hello"], "answer": ["a dog", "hello there"]})
    mined = mine_hard_negatives(rows, sentences, num_negatives=1, verbose=False)
    assert mined["negative"] == ["hello there", "a dog"]


def test_a_saved_model_keeps_prompts_and_weights_and_has_a_card(sentences, tmp_path, ours):
    sentences.prompts["query"] = "hello "
    try:
        sentences.save_pretrained(str(tmp_path))
    finally:
        sentences.prompts["query"] = ""
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert again.prompts["query"] == "hello "
    assert np.abs(again.encode_query("a cat") - embed(ours, "hello a cat")).max() < 1e-5
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "sentence-transformers" in card and "MMForRetrieval" in card and f"{SIZE} dimensions" in card
    model = MMForRetrieval.from_pretrained(tmp_path)
    assert all(torch.equal(value, ours[0].state_dict()[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    assert SentenceTransformer(str(tmp_path), device="cpu").prompts["query"] == "hello "


def test_its_trainer_learns_with_media_and_short_vectors(tmp_path, folder):
    model = SentenceTransformer(str(folder), device="cpu")
    rows = Dataset.from_dict({"caption": WORDS, "image": [picture(color) for color in COLORS]})
    options = {"max_steps": 20, "per_device_train_batch_size": 3, "learning_rate": 3e-3, "use_cpu": True}
    options |= {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [SIZE, 4])
    trainer = SentenceTransformerTrainer(
        model, SentenceTransformerTrainingArguments(str(tmp_path), **options), rows, loss=loss
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    pictures, captions = (model.encode(list(items), truncate_dim=4) for items in (rows["image"], WORDS))
    assert model.similarity(captions, pictures).argmax(-1).tolist() == [0, 1, 2]


def test_no_code_of_the_folder_is_needed_and_it_is_enough_without_the_package(folder, tmp_path, ours):
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    assert [module["type"].split(".")[0] for module in modules] == ["sentence_transformers"]
    script = f"""
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(folder)!r}, device="cpu", trust_remote_code=True)
print(type(model[0].model).__module__.split(".")[0], model.encode("a cat").tolist())
"""
    printed = run_without_package(script, tmp_path).strip().splitlines()[-1]
    module, _, values = printed.partition(" ")
    assert module == "transformers_modules"
    assert np.abs(np.array(json.loads(values)) - embed(ours, "a cat")).max() < 1e-5
