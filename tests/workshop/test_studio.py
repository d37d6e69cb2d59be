"""The data of mm-studio, its folder to train from, and what is measured of it."""

import json
import re
import shutil
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import modeling_mm
from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.cli import main as train_main
from modeling_mm.codecs import load_codec
from modeling_mm.data import load_chats
from modeling_mm.hub import measured_digests, weights_digest
from modeling_mm.utils import write_lines
from scripts.workshop import builders, phrases, studio_folder, studio_measures
from scripts.workshop.builders import (
    mixed_sentences,
    other_sentences,
    sentences_of_frequent,
    split_by_words,
    words_of,
)
from scripts.workshop.corpus import read_description, read_lines, read_rows
from scripts.workshop.released_folder import note_weights
from scripts.workshop.sources import read_cldr_keywords
from scripts.workshop.studio_chats import (
    DRAW,
    DRAWS,
    HAND,
    build_studio_chats,
    drawing_prompt,
    seeded,
    training_prompt,
)
from scripts.workshop.studio_folder import build_studio
from scripts.workshop.studio_measures import Recognizer, measure, prompts
from scripts.workshop.studio_release import release_studio
from tests.fakes.own_codecs import own_codec
from tests.workshop.tiny_packages import make_builder

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ["a red fox", "a red hen", "a fox ran", "the hen ran", "a red fox ran", "the red hen", "odd zebus moo"]


@pytest.fixture(scope="module")
def chats(packages, built, tmp_path_factory):
    """Return a folder with the corpora of the chats of the studio, and these."""
    folder = tmp_path_factory.mktemp("corpora")
    for name in ("images", "studio-speech"):
        (folder / name).symlink_to(built / name)
    build_studio_chats(folder, make_builder(packages))
    return folder


def examples(corpora, split, task):
    path = corpora / f"studio/{split}/{task}.jsonl"
    return read_lines(path) if path.is_file() else []


def prompt_of(example):
    return example["messages"][0]["content"][0]["text"] if len(example["messages"]) == 2 else None


# ---- Sentences ------------------------------------------------------------------------------------------------------


def test_sentences_are_made_of_the_most_frequent_words():
    assert sentences_of_frequent(SENTENCES, 6) == sorted(set(SENTENCES) - {"odd zebus moo"})
    assert sentences_of_frequent([*SENTENCES, "Fox!", "FOX"], 3) == ["FOX", "Fox!", "a red fox"]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_every_word_of_a_held_out_sentence_is_in_training(share):
    sentences = [f"{one} {two} {three}" for one in "abcdefg" for two in "hijk" for three in "lmnopqrstu"] + [
        "rare one"
    ]
    splits = split_by_words(sentences, {"test_sentences": share, "validation": 0.1})
    assert sorted(each for split in splits.values() for each in split) == sorted(sentences)
    assert len(splits["test_sentences"]) > 0.7 * share * len(sentences)
    known = {word for sentence in splits["train"] for word in words_of(sentence)}
    assert all(known.issuperset(words_of(each)) for each in splits["test_sentences"] + splits["validation"])
    for seed in "xyz":  # a word of one sentence: training gets it, whatever its draw
        assert f"only{seed} b" in split_by_words([f"only{seed} b", *sentences], {"test_sentences": 0.9})["train"]


def test_sentences_are_mixed_of_beginnings_and_ends():
    held_out = {"a red ran", "the hen"}
    made = mixed_sentences(SENTENCES, 12, (2, 3), held_out)
    assert made == mixed_sentences(SENTENCES, 12, (2, 3), held_out) and len(made) == len({*made}) == 12
    assert not {*made} & ({*SENTENCES} | held_out) and all(len(text.split()) in (2, 3) for text in made)
    pairs = [(one.split(), two.split()) for one in SENTENCES for two in SENTENCES]
    mixtures = {
        " ".join(one[:i] + two[j:]) for one, two in pairs for i in range(1, len(one) + 1) for j in range(len(two))
    }
    assert {*made} <= mixtures
    assert sorted(mixed_sentences(["a b"], 20, (2, 3), ())) == ["a a b", "a b b"]


def test_other_sentences_are_none_that_are_taken():
    taken = {"The red HEN!", "a fox ran"}
    assert other_sentences(SENTENCES, 100, taken) == ["a red fox", "a red fox ran", "odd zebus moo", "the hen ran"]
    some = other_sentences(SENTENCES, 3, taken)
    assert len(some) == 3 and some == sorted(some) == other_sentences(SENTENCES, 3, taken)


def test_one_voice_speaks_the_names_of_known_concepts_and_no_others(built):
    rows = {row["text"]: row for row in read_rows(built / "studio-speech", "train")}
    assert {row["voice"] for row in rows.values()} == {"flite/slt"}
    train, held_out = (
        {row["name_en"] for split in splits for row in read_rows(built / "images", split)}
        for splits in (("train",), ("validation", "test_concepts"))
    )
    plain = {name for name in train if name.replace(" ", "").isalpha()}
    assert plain <= {*rows} and not held_out & {*rows}
    assert any(text.endswith("is here") for text in rows)  # a sentence
    given = [f"the {word} is here" for start in range(4) for word in "abcdefghijklmnopqrst"[start::4]]
    rarer = {*given} - {*sentences_of_frequent(given, 12)}
    assert len(rarer & {*rows}) == 3 < len(rarer)


def test_held_out_sentences_are_not_among_the_others(packages, monkeypatch):
    splits = {"train": ["the a is here"], "test_sentences": ["the b is here"], "validation": ["the c is here"]}
    monkeypatch.setattr(builders, "split_by_words", lambda *_: {name: [*texts] for name, texts in splits.items()})
    description = read_description("studio-speech")
    description = replace(description, settings={**description.settings, "mixed": 0})
    files = [*builders.studio_speech_files(make_builder(packages), description)]
    train = [each.columns["text"] for each in files if each.split == "train"]
    assert {*train} >= {f"the {word} is here" for word in "adefghijklmnopqrst"} and len(train) == len({*train})
    assert not {*train} & {"the b is here", "the c is here"}


# ---- Chats ----------------------------------------------------------------------------------------------------------


def test_images_by_one_hand_are_drawn_for_names_keywords_and_nothing(chats, packages):
    rows = {row["file_name"]: row for row in read_rows(chats / "images", "train")}
    found = examples(chats, "train", "draw")
    answers = Counter(example["messages"][-1]["content"][0]["path"].removeprefix("../../images/") for example in found)
    assert {*answers} == {name for name, row in rows.items() if row["hand"] == HAND}
    assert set(answers.values()) == {DRAWS}
    asked = [prompt_of(example) for example in found]
    assert None in asked and asked.count(None) < len(asked) / 5
    named = [prompt for prompt in asked if prompt]
    assert any("beast" in prompt for prompt in named) and any("beast" not in prompt for prompt in named)
    for wording in DRAW:
        start, _, end = wording.casefold().partition("{text}")
        assert any(each.casefold().startswith(start) and each.casefold().endswith(end) for each in named), wording


def test_a_training_prompt_has_one_of_many_forms():
    row, words = {"name_en": "Ape", "file_name": "train/ape.png"}, ["beast", "hairy", "jungle", "tail"]
    made = [training_prompt(row, words, seeded("draw", row, number)) for number in range(400)]
    assert 20 < made.count(None) < 70
    prompts = [each for each in made if each is not None]
    assert len({*prompts}) > 250, "hardly one twice"
    nameless = [each for each in prompts if "ape" not in each.casefold()]
    assert 30 < len(nameless) < 80 and all(sum(word in each for word in words) in (2, 3) for each in nameless)
    for article in ("an", "the"):
        assert 20 < sum(f"{article} ape" in each.casefold() for each in prompts) < 90
    assert not any("a ape" in each.casefold() for each in prompts)
    assert 40 < sum(each == each.lower() for each in prompts) < 140
    few = [training_prompt(row, words[:1], seeded("draw", row, number)) for number in range(100)]
    assert all(each is None or "ape" in each.casefold() for each in few), "one keyword alone names too little"
    fox = {**row, "name_en": "fox"}
    assert any("a fox" in each for number in range(50) if (each := training_prompt(fox, [], seeded("", row, number))))


def test_a_prompt_has_at_most_three_keywords_in_any_order():
    row = {"name_en": "ape", "file_name": "train/ape.png"}
    words = ["w1", "w2", "w3", "w4"]
    made = {drawing_prompt(row, words, seeded("draw", row, number), DRAW[:1]) for number in range(40)}
    assert "Draw ape" in made and all(prompt.count("w") in (1, 4) for prompt in made)  # "Draw" has one
    assert len(made) > 4


def test_the_wordings_of_tests_are_in_no_training_example(chats):
    train = {prompt_of(example) for example in examples(chats, "train", "draw")}
    for split in ("test_wordings", "test_concepts", "validation"):
        found, starts = examples(chats, split, "draw"), tuple(w.partition("{")[0] for w in phrases.DRAW_UNSEEN)
        assert found and not train & {prompt_of(example) for example in found}
        assert all(prompt_of(each).startswith(starts) for each in found)


def test_a_sentence_is_answered_by_its_recording(chats):
    texts = {row["file_name"]: row["text"] for row in read_rows(chats / "studio-speech", "train")}
    for example in examples(chats, "train", "say"):
        (part,) = example["messages"][-1]["content"]
        assert part["type"] == "audio"
        assert prompt_of(example) == f"Say: {texts[part['path'].removeprefix('../../studio-speech/')]}"
        assert (chats / "studio/train" / part["path"]).is_file()


def test_chats_need_their_corpora(packages, tmp_path):
    with pytest.raises(FileNotFoundError, match="lacks the corpora images, studio-speech of the chats"):
        build_studio_chats(tmp_path, make_builder(packages))


def test_keywords_are_those_of_the_character(packages):
    folder = next(packages.glob("npm-cldr*"))
    assert read_cldr_keywords(folder)["\U0001f400"] == ["beast", "big", "sort 0"]


# ---- Folder and figures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studio(chats, tmp_path_factory):
    """Return the folder of a tiny model that has learned nothing."""
    root = tmp_path_factory.mktemp("studio")
    for kind in ("image", "audio"):
        own_codec(kind, **({"sampling_rate": 800} if kind == "audio" else {})).save_pretrained(root / kind)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "VOCABULARY": 280, "POSITIONS": 128}.items():
            patch.setattr(studio_folder, name, value)
        build_studio(
            Namespace(folder=root / "base", corpora=chats, image_codec=root / "image", audio_codec=root / "audio")
        )
    return root


def test_the_folder_holds_a_decoder_that_writes_both_codecs(studio):
    model = MMForConditionalGeneration.from_pretrained(studio / "base").eval()
    processor = MMProcessor.from_pretrained(studio / "base")
    processor.use_codecs(model)
    assert {*processor.written} == {"image", "audio"}
    assert model.generation_config.do_sample and model.generation_config.temperature == 0.5
    media = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.model.image_codec.encode(media), load_codec(studio / "image").encode(media))
    inputs = processor(text="Draw", return_tensors="pt")
    ids = model.generate(**inputs, output_modalities=("image",), max_new_tokens=70)
    (part,) = processor.decode_media(ids[0, inputs["input_ids"].shape[1] :])
    assert part["type"] == "image" and part["image"].size == (16, 16) and "is_cut" not in part


def test_its_tokenizer_knows_the_words_of_the_prompts(studio):
    processor = MMProcessor.from_pretrained(studio / "base")
    assert len(processor.tokenizer("Draw a thing")["input_ids"]) < len("Draw a thing") / 2


def test_an_image_is_recognized_as_itself(packages, built):
    recognizer = Recognizer(packages)
    rows = read_rows(built / "images", "train")
    recognizer.fill(built / "images", rows)
    images = [studio_measures.small(built / "images" / row["file_name"]) for row in rows[:6]]
    right = recognizer.figures(images, rows[:6], "x")
    assert right["x_top1"] == right["x_top5"] == 1.0
    others = [next(row for row in rows if row["concept"] != each["concept"]) for each in rows[:6]]
    assert recognizer.figures(images, others, "x")["x_top1"] == 0.0
    most = Counter(row["kind"] for row in rows[:6]).most_common(1)[0][1] / 6
    assert right["x_majority"] == pytest.approx(most)


@pytest.fixture
def with_sentence(chats, tmp_path):
    """Return the corpora with a sentence that is held out, as the tiny ones have none."""
    folder = tmp_path / "corpora"
    shutil.copytree(chats / "studio", folder / "studio")
    (folder / "images").symlink_to((chats / "images").resolve())
    (speech := folder / "studio-speech/test_sentences").mkdir(parents=True)
    example = examples(chats, "train", "say")[0]
    (part,) = example["messages"][-1]["content"]
    shutil.copy(chats / "studio/train" / part["path"], speech / "0.flac")
    part["path"] = "../../studio-speech/test_sentences/0.flac"
    write_lines(speech / "metadata.jsonl", [{"file_name": "0.flac", "text": "hello"}])
    write_lines(folder / "studio/test_sentences/say.jsonl", [example])
    return folder


def test_everything_is_measured_and_kept(studio, with_sentence, packages, tmp_path, monkeypatch):
    heard = []

    def word_error_rate(transcriber, paths, truths):
        heard.append((transcriber, [Path(path).name for path in paths], truths))
        assert all(np.isfinite(soundfile.read(path)[0]).all() for path in paths)
        return float(len(heard))

    monkeypatch.setattr(studio_measures, "word_error_rate", word_error_rate)
    arguments = Namespace(model=studio / "base", out=tmp_path / "out", corpora=with_sentence, packages=packages)
    vars(arguments).update(transcriber="ears", drawings=2, sentences=1, gallery=8, guidance_scale=1.5)
    figures = measure(arguments)
    assert heard == [("ears", ["000.wav"], ["hello"]), ("ears", ["0.flac"], ["hello"])]
    assert figures["wer"] == 1.0 and figures["wer_teacher"] == 2.0 and figures["real_time_factor"] > 0
    assert (figures["known_samples"], figures["unseen_samples"], figures["speech_samples"]) == (2, 2, 1)
    assert {f"{kind}_{name}" for kind in ("known", "unseen", "unseen_hand") for name in ("top1", "top5")} <= {*figures}
    assert json.loads((tmp_path / "out/figures.json").read_text()) == figures
    with Image.open(tmp_path / "out/images.png") as sheet:
        assert sheet.size == (6 * 16, 16)
    assert [path.name for path in (tmp_path / "out/sounds").iterdir()] == ["000.wav"]
    kept = json.loads((tmp_path / "out/prompts.json").read_text())
    asked = [prompt_of(examples(with_sentence, split, "draw")[0]) for split in ("test_wordings", "test_concepts")]
    assert kept["audio"] == ["hello"] and {*asked} <= {*kept["images"]}


def test_it_is_trained_and_released_with_what_it_drew(studio, chats, with_sentence, packages, tmp_path, monkeypatch):
    trained, released, figures = tmp_path / "trained", tmp_path / "released", tmp_path / "figures"
    monkeypatch.chdir(ROOT)
    data = [{"source": str(chats / f"studio/train/{task}.jsonl"), "limit": 8} for task in ("draw", "say")]
    values = {"model.pretrained": studio / "base", "data.train": json.dumps(data), "data.pack_length": 128}
    values |= {"data.encoder_cache": tmp_path / "cache", "training.output_dir": trained, "training.max_steps": 2}
    values |= {"training.lr_scheduler_kwargs": '{"num_decay_steps": 1}', "training.warmup_steps": 0}
    assert train_main(["train", "configuration/recipes/mm-studio.yaml", *(f"{k}={v}" for k, v in values.items())]) == 0
    assert not torch.equal(head_of(studio / "base"), head_of(trained))

    release_studio(Namespace(trained=trained, released=released, figures=None, found=None))
    half = load_file(released / "model.safetensors")
    assert {tensor.dtype for tensor in half.values() if tensor.is_floating_point()} == {torch.float16}
    assert torch.equal(head_of(released), head_of(trained).half().float())
    package = Path(modeling_mm.__file__).parent
    assert (released / "modeling_mm.py").resolve() == package / "modeling_mm.py"

    monkeypatch.setattr(studio_measures, "word_error_rate", lambda *_: 0.25)
    arguments = {"model": released, "out": figures, "corpora": with_sentence, "packages": packages}
    options = {"transcriber": "ears", "drawings": 2, "sentences": 1, "gallery": 8, "guidance_scale": None}
    measured = measure(Namespace(**arguments, **options))
    before = (released / "model.safetensors").stat()
    release_studio(Namespace(trained=trained, released=released, figures=figures, found=None))
    assert (released / "model.safetensors").stat() == before  # the figures are those of these weights
    card = (released / "README.md").read_text(encoding="utf-8")
    assert f"| {measured['known_top5']:.3f} |" in card.replace("  ", " ") and "0.250" in card
    assert re.search(r"known things in wordings that training lacks \| all \| 2 \|", card)
    assert re.search(r"sentences that training lacks \| all \| 1 \|", card)
    assert "- [hello](sounds/000.wav)" in card and (released / "sounds/000.wav").is_file()
    assert "![36 drawings](images.png)" in card and (released / "images.png").is_file()
    assert ModelCard(card).data.pipeline_tag == "any-to-any" and "## What is found" not in card

    found = write_found(tmp_path / "found")
    both = Namespace(trained=trained, released=released, figures=figures, found=found)
    with pytest.raises(ValueError, match=r"found: figures of weights that it does not name, but .* Measure "):
        release_studio(both)
    note_weights(found, studio / "base")
    with pytest.raises(ValueError, match=f"figures of {weights_digest(studio / 'base')}"):
        release_studio(both)
    note_weights(found, released)
    release_studio(both)
    text = (released / "README.md").read_text(encoding="utf-8")
    assert measured_digests(card) == measured_digests(text) == [weights_digest(released)]
    assert "| scenes of known things by a hand that training lacks (9), this model | 0.250 | 0.500 | 0.750 |" in text
    assert text.count("this model |") == 2 and text.count("a Conditional DETR on the same encoder states |") == 1
    assert "![6 scenes](found.png)" in text and (released / "found.png").read_bytes() == b"sheet"
    names = {metric.metric_name for metric in ModelCard(text).data.eval_results}
    assert {"found_ap50", "found_places_ap50", "found_referring", "known_top5"} <= names

    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        local = code.replace('"modeling-mm/mm-studio"', repr(str(released))).replace(
            "max_new_tokens=250", "max_new_tokens=80"
        )
        exec(compile(local, "README.md", "exec"), {})
    for name in ("image.png", "apple.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (16, 16)


def write_found(folder: Path) -> Path:
    """Write figures as `find_figures` does, and return their folder."""
    folder.mkdir()
    values = {"ap": 0.1, "ap50": 0.25, "any_ap50": 0.5, "referring": 0.75, "scenes": 9}
    splits = ("test_hand, ours", "test_hand, DETR", "test_concepts, ours")
    (folder / "figures.json").write_text(json.dumps(dict.fromkeys(splits, values)), encoding="utf-8")
    (folder / "found.png").write_bytes(b"sheet")
    return folder


def head_of(folder):
    """Return the table of a folder's head."""
    return (
        MMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).get_output_embeddings().weight.detach()
    )


def test_prompts_come_in_their_order(chats):
    rows = load_chats(chats / "studio/test_concepts/draw.jsonl")
    assert [row.id for row in prompts(chats, "test_concepts", "draw", 2)] == [rows[0].id, rows[1].id]
