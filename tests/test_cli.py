"""`modeling-mm`: each subcommand with a small model and real files, and its errors, which are one line each."""

import html
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import GPT2LMHeadModel

from modeling_mm import MMForPreTraining, MMForRetrieval, MMForSequenceClassification, MMProcessor
from modeling_mm.cli import COMMANDS, main, parse
from modeling_mm.cli.ask import mark_of
from modeling_mm.data import ChatRow
from modeling_mm.hub import measured_digests, measured_on, weights_digest
from modeling_mm.recipes import read_recipe
from modeling_mm.utils import find_resource
from tests.fakes.pipeline_parts import build
from tests.fakes.processor_parts import make, picture, sound
from tests.fakes.recipe_runs import plain_recipe
from tests.fakes.serving_parts import generated, model
from tests.fakes.tiny import WIDTH, gpt2, gpt2_config, joined, vit, whisper
from tests.fakes.tiny_chats import CHATS, processor

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT / "processing" / "corpora" / "unseen" / "questions.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that knows `CHATS`, with an image and an audio file beside it."""
    folder = tmp_path_factory.mktemp("cli")
    model().save_pretrained(folder / "tiny")
    processor().save_pretrained(folder / "tiny")
    for color in ("red", "blue"):
        picture(color).save(folder / f"{color}.png")
    soundfile.write(folder / "noise.wav", *sound(), "FLOAT")
    (folder / "text.png").write_text("no image")
    return folder


def ask(folder: Path, *arguments: str) -> int:
    return main(["ask", str(folder / "tiny"), "--device", "cpu", *arguments])


# ---- Help and errors ------------------------------------------------------------------------------------------------


def test_a_command_says_nothing_but_its_own(folder):
    """Run in a new process, because libraries print messages when they are imported."""
    done = subprocess.run(
        [sys.executable, "-m", "modeling_mm.cli", "ask", str(folder / "tiny"), "What do you see?"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["ask"], ["ask", "MODEL", "--nothing"], ["train"]])
def test_wrong_usage_ends_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.fullmatch(r"modeling-mm( \w+)?: error: .+", capsys.readouterr().err.splitlines()[-1])


def test_the_examples_of_the_help_are_understood():
    for name, command in COMMANDS.items():
        for example in command.examples:
            options = parse([name, *shlex.split(example, comments=True)])
            if name == "train" and not options.recipe.endswith(".yaml"):
                read_recipe(find_resource("recipes", options.recipe), options.overrides)


def test_the_origin_of_an_error_is_shown_if_asked_for():
    with pytest.raises(FileNotFoundError, match="There is no folder /nowhere"):
        main(["info", "/nowhere", "--traceback"])


def test_a_missing_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("modeling_mm.cli.train", "modeling_mm.recipes"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["train", "tiny-sample"]) == 1
    assert capsys.readouterr().err.endswith('Install the extra: pip install "modeling_mm[train]"\n')


# ---- ask ------------------------------------------------------------------------------------------------------------


def test_a_question_about_files_gets_the_models_answer(folder, capsys):
    assert ask(folder, "--image", str(folder / "red.png"), "What do you see?") == 0
    assert capsys.readouterr().out.strip() == "red"
    parts = [
        {"type": "image", "path": str(folder / "red.png")},
        {"type": "image", "path": str(folder / "blue.png")},
        {"type": "audio", "path": str(folder / "noise.wav")},
        {"type": "text", "text": "Look and listen."},
    ]
    images = ("--image", str(folder / "red.png"), "--image", str(folder / "blue.png"))
    assert ask(folder, "Look and listen.", *images, "--audio", str(folder / "noise.wav"), "--max-new-tokens", "5") == 0
    expected = generated([{"role": "user", "content": parts}], max_new_tokens=5)
    assert capsys.readouterr().out.strip() == expected.strip()


def test_the_answer_is_streamed(folder, monkeypatch):
    """Pieces arrive while the model generates, not after it."""
    written = []

    class Output:
        def write(self, text):
            written.append(text)
            return len(text)

        def flush(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Output())
        assert ask(folder, "--audio", str(folder / "noise.wav"), "What do you hear?") == 0
    assert "".join(written).strip() == "a cat, a dog and a bird"
    assert sum(bool(piece.strip()) for piece in written) > 2


def test_what_an_answer_looked_at_is_drawn(folder, tmp_path, capsys):
    image, audio = ("--image", str(folder / "blue.png")), ("--audio", str(folder / "noise.wav"))
    path = tmp_path / "new" / "looked.png"
    assert ask(folder, *image, *audio, "Look and listen.", "--attention", str(path)) == 0
    assert capsys.readouterr().out.splitlines() == ["a bird", f"Drawn: {path}"]
    assert path.stat().st_size > 10_000


def test_a_question_about_a_video_is_answered_and_drawn(folder, tmp_path, capsys):
    path = tmp_path / "looked.png"
    video = ("--video", str(ROOT / "processing" / "sample.mp4"))
    assert ask(folder, *video, "Look and listen.", "--attention", str(path)) == 0
    answer, drawn = capsys.readouterr().out.splitlines()
    assert answer and drawn == f"Drawn: {path}" and path.stat().st_size > 10_000


@pytest.mark.parametrize("method", ["gradient-attention", "integrated-gradients", "occlusion"])
def test_a_page_shows_where_an_answer_comes_from(method, folder, tmp_path, capsys):
    media = ("--image", str(folder / "blue.png"), "--audio", str(folder / "noise.wav"))
    path = tmp_path / "new" / "page.html"
    assert ask(folder, *media, "Look and listen.", "--attention", str(path), "--explain", method) == 0
    assert capsys.readouterr().out.splitlines() == ["a bird", f"Drawn: {path}"]
    text = path.read_text(encoding="utf-8")
    assert f"<h3>{method}</h3>" in text and "+ text" in text and text.count("<img") == 3 and "<audio" in text


def test_the_questions_of_a_file_are_answered_beside_their_truth(folder, tmp_path, capsys):
    lines = []
    for number, chat in enumerate(CHATS[:4]):
        (user, answer) = chat["messages"]
        content = [dict(part) for part in user["content"]]
        for part in content:
            if part["type"] == "image":
                part["image"].save(tmp_path / f"{number}.png")
            if part["type"] in ("image", "audio"):
                del part[part["type"]]
                part["path"] = f"{number}.png" if part["type"] == "image" else str(folder / "noise.wav")
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    path, drawn = tmp_path / "questions.jsonl", tmp_path / "looked.png"
    path.write_text("\n".join(lines))
    assert ask(folder, "--questions", str(path), "--limit", "3", "--attention", str(drawn)) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 are exactly right" in printed and printed.count("✓") == 3
    assert "0.png" in printed and "What do you see?" in printed and "A green square." in printed
    assert drawn.stat().st_size > 10_000
    whole = tmp_path / "whole.html"
    assert ask(folder, "--questions", str(path), "--attention", str(whole), "--explain", "occlusion") == 0
    page = whole.read_text(encoding="utf-8")
    assert "<p>3 answers, 3 of 3 exactly right</p>" in page and page.count("<section>") == 3 and "<audio" in page


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Give either a question"),
        (["What?", "--questions", "a.jsonl"], "Give either a question"),
        (["--questions", "missing.jsonl"], "The file missing.jsonl does not exist"),
        (["--image", "missing.png", "What?"], "--image: there is no file missing.png"),
        (["--video", "missing.mp4", "What?"], "--video: there is no file missing.mp4"),
        (["--image", "text.png", "What?"], "in no format that Pillow knows"),
        (["--audio", "text.png", "What?"], "cannot be decoded"),
        (["What? " * 500], "positions"),
        (["What?", "--device", "abacus"], "--device abacus: "),
        (["What?", "--attention", "a.png"], "no image and no audio|neither a picture nor a sound"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(arguments, word, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert ask(folder, *arguments) == 2
    printed = capsys.readouterr().err
    assert re.search(word, printed) and re.fullmatch(r"modeling-mm ask: .+\n", printed)


def test_a_model_without_the_encoder_says_so(tmp_path, folder, capsys):
    sees = make(audio=False)

    joined(vision=vit(image_size=8, patch_size=4), audio=None, tokenizer=sees).save_pretrained(tmp_path)
    sees.save_pretrained(tmp_path)
    assert main(["ask", str(tmp_path), "--audio", str(folder / "noise.wav"), "What?"]) == 2
    assert "no `feature_extractor`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ask", "info"])
def test_other_models_are_refused(command, tmp_path, capsys):
    GPT2LMHeadModel(gpt2_config()).save_pretrained(tmp_path / "gpt2")
    assert main([command, str(tmp_path / "gpt2"), *(["What?"] if command == "ask" else [])]) == 2
    assert "is a model of type 'gpt2'" in capsys.readouterr().err


# ---- faithfulness ---------------------------------------------------------------------------------------------------


def test_the_methods_of_explaining_are_compared(folder, tmp_path, capsys):
    content = [{"type": "image", "path": str(folder / "red.png")}, {"type": "text", "text": "What do you see?"}]
    turns = [[{"role": "user", "content": content}], [{"role": "user", "content": "hello"}]]
    lines = [json.dumps({"messages": [*turn, {"role": "assistant", "content": "red"}]}) for turn in turns]
    path, out = tmp_path / "questions.jsonl", tmp_path / "new" / "table.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    arguments = [
        "faithfulness",
        str(folder / "tiny"),
        str(path),
        "--points",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main([*arguments, "--methods", "attention"]) == 0
    printed = capsys.readouterr().out
    assert f"1 questions of {path}" in printed and out.read_text(encoding="utf-8").strip() in printed
    rows = [line.split(" | ")[0] for line in out.read_text(encoding="utf-8").splitlines()[2:]]
    assert rows == ["| attention", "| random"]
    path.write_text(lines[1], encoding="utf-8")
    assert main(arguments) == 2
    assert "no examples to explain" in capsys.readouterr().err


# ---- train ----------------------------------------------------------------------------------------------------------


def test_a_packaged_recipe_is_found_by_name_and_names_what_to_override(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "caption-gpt2-siglip", "data.train.0.source=my/captions"]) == 2
    printed = capsys.readouterr().err
    assert "names inputs that are not here: data.evaluation.0.source=data/captions" in printed
    assert printed.endswith("such as data.evaluation.0.source=PATH.\n") and "my/captions" not in printed
    assert main(["train", "caption-gpt2-siglop"]) == 2
    assert "Did you mean 'caption-gpt2-siglip'?" in capsys.readouterr().err


# ---- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_measuring_writes_figures_and_every_answer(cached, folder, tmp_path, capsys):
    values = plain_recipe(tmp_path)
    values["data"] |= {"test": {"held out": values["data"]["evaluation"]}}
    values["data"] |= {"encoder_cache": str(tmp_path / "cache")} if cached else {}
    path, out = tmp_path / "given.yaml", tmp_path / "figures"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["evaluate", str(path), str(folder / "tiny"), "--out", str(out), "--limit", "5"]
    assert main([*arguments, "training.generation_max_new_tokens=2"]) == 0
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 5 == sum(f["samples"] for f in figures if f["metric"] == "exact_match")
    assert {"answer", "text_only", "truth", "task"} <= answers[0].keys()
    table = (out / "figures.md").read_text(encoding="utf-8").strip()
    section = (out / "card.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out and table in section
    assert measured_digests(section) == [weights_digest(folder / "tiny")]
    page = (out / "examples.html").read_text(encoding="utf-8")
    assert "<h1>Evaluation of tiny</h1>" in page and all(html.escape(each["id"]) in page for each in answers[:1])
    assert (tmp_path / "cache").is_dir() == cached
    assert main([*arguments, "--examples", "-1"]) == 2
    assert "--examples: expected at least 0, got -1." in capsys.readouterr().err
    assert main([*arguments, "--only", "nowhere"]) == 2
    assert "no test set nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A classifier of `CHATS` whose label follows from a bias: it says "two" to everything."""
    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "one", 1: "two", 2: "three"}
    text = gpt2(vocab_size=len(processor().tokenizer), n_positions=128)
    parts = {"vision": vit(image_size=8, patch_size=4), "audio": whisper(max_source_positions=50)}
    found = joined(text, **parts, tokenizer=processor(), cls=MMForSequenceClassification, num_labels=3)
    found.config.id2label = labels
    with torch.no_grad():
        found.score.weight.zero_()
        last = torch.nn.Parameter(found.model.language_model.ln_f.bias * 0 + 1.0)
        found.model.language_model.ln_f.weight.zero_()
        found.model.language_model.ln_f.bias.copy_(last)
        found.score.weight[1] = 0.1
    found.save_pretrained(folder / "tiny")
    processor().save_pretrained(folder / "tiny")
    return folder


def test_a_classifier_is_measured_by_accuracy_f1_and_confusion(classifier, tmp_path, capsys):
    answers = ("one", "two", "two", "three")
    lines = [json.dumps({"prompt": f"question {i}", "completion": answer}) for i, answer in enumerate(answers)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    values = plain_recipe(tmp_path) | {"objective": "classification", "labels": ["one", "two", "three"]}
    values["data"] = {key: [{"source": str(tmp_path / "test.jsonl")}] for key in ("train", "evaluation")}
    values["task_metrics"] = {"": ["eer"]}
    path, out = tmp_path / "given.yaml", tmp_path / "figures"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["evaluate", str(path), str(classifier / "tiny"), "--out", str(out), "--no-text-only"]) == 0
    figures = {each["metric"]: each for each in json.loads((out / "figures.json").read_text(encoding="utf-8"))}
    assert figures.keys() == {"accuracy", "f1", "auroc", "eer"} and figures["f1"]["dataset"] == "evaluation"
    assert figures["auroc"]["model"] == figures["auroc"]["majority"] == pytest.approx(0.5), "the same scores for all"
    # Claims of "two": 2 of 8 false accepts, 2 of 4 false rejects. The rates meet a fifth of the way to accepting all.
    assert figures["eer"]["model"] == figures["eer"]["majority"] == pytest.approx(0.4)
    assert figures["accuracy"]["model"] == 0.5 and figures["f1"]["model"] == pytest.approx(2 / 3 / 3)
    table = "| one | 0 | 1 | 0 |\n| two | 0 | 2 | 0 |\n| three | 0 | 1 | 0 |"
    assert table in (out / "figures.md").read_text(encoding="utf-8") and table in capsys.readouterr().out
    (tmp_path / "test.jsonl").write_text(lines[0].replace('"one"', '"four"'), encoding="utf-8")
    assert main(["evaluate", str(path), str(classifier / "tiny"), "--out", str(out)]) == 2
    assert "the answer of row 0 is 'four', but the model's labels are one, two, three" in capsys.readouterr().err


@pytest.fixture(scope="module")
def retriever(tmp_path_factory) -> Path:
    """A model that embeds, with four captions of images, two of them in the same words."""
    folder = tmp_path_factory.mktemp("retriever")
    found, parts = build(MMForRetrieval, projection_dim=8, matryoshka_dims=[3])
    found.save_pretrained(folder / "tiny")
    parts.save_pretrained(folder / "tiny")
    lines = []
    for color, answer in zip(("red", "green", "blue", "white"), ("a cat", "a dog", "a cat", "hello"), strict=True):
        picture(color).save(folder / f"{color}.png")
        content = [{"type": "image", "path": str(folder / f"{color}.png")}, {"type": "text", "text": "What?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_every_pair_of_text_image_and_audio_has_all_figures_in_both_directions(retriever, tmp_path):
    colors, words = ("red", "green", "blue", "white"), ["a cat", "a dog", "a cat", "hello"]
    audio = [str(retriever / f"{number}.wav") for number in range(4)]
    for number, path in enumerate(audio):
        soundfile.write(path, np.roll(sound()[0], 99 * number) * np.linspace(0, 1 + number, 8000), sound()[1])
    images = [str(retriever / f"{color}.png") for color in colors]
    chats = []
    for image, wave, answer in zip(images, audio, words, strict=True):
        content = [
            {"type": "image", "path": image},
            {"type": "audio", "path": wave},
            {"type": "text", "text": "What?"},
        ]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        chats.append(json.dumps({"messages": messages}))
    (tmp_path / "test.jsonl").write_text("\n".join(chats), encoding="utf-8")
    values = plain_recipe(tmp_path) | {"objective": "retrieval"}
    values["data"]["test"] = {"captions": [{"source": str(tmp_path / "test.jsonl")}]}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["evaluate", str(tmp_path / "given.yaml"), str(retriever / "tiny"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) == 0
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    found = {(each["query"], each["item"]): each for each in figures if each["dimensions"] == 8}

    model, parts = MMForRetrieval.from_pretrained(retriever / "tiny"), MMProcessor.from_pretrained(retriever / "tiny")
    inputs = {
        "text": {"text": words},
        "image": {"text": [""] * 4, "images": [[each] for each in images]},
        "audio": {"text": [""] * 4, "audio": [[each] for each in audio]},
    }
    with torch.no_grad():
        embeds = {name: model.embed(**parts(**each, return_tensors="pt")).numpy() for name, each in inputs.items()}
    assert set(found) == set(itertools.permutations(embeds, 2))
    for (query, item), figure in found.items():
        firsts, precisions = [], []
        for row, scores in enumerate(embeds[query] @ embeds[item].T):
            matches = [words[place] == words[row] for place in (-scores).argsort()]
            places = [rank for rank, is_match in enumerate(matches, 1) if is_match]
            firsts.append(places[0])
            precisions.append(np.mean([number / rank for number, rank in enumerate(places, 1)]))
        expected = {f"recall_at_{k}": np.mean([first <= k for first in firsts]) for k in (1, 5, 10)}
        expected |= {"median_rank": np.median(firsts), "map": np.mean(precisions)}
        assert figure["figures"] == pytest.approx(expected), (query, item)


def test_a_model_that_embeds_is_measured_by_how_its_rows_find_each_other(retriever, tmp_path, capsys):
    path, out = tmp_path / "given.yaml", tmp_path / "figures"
    values = plain_recipe(tmp_path) | {"objective": "retrieval"}
    values["data"]["test"] = {"captions": [{"source": str(retriever / "test.jsonl")}]}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["evaluate", str(path), str(retriever / "tiny"), "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    found = {(each["query"], each["item"], each["dimensions"]): each for each in figures}
    assert list(found) == [(*pair, size) for size in (8, 3) for pair in (("text", "image"), ("image", "text"))]

    loaded, parts = MMForRetrieval.from_pretrained(retriever / "tiny"), MMProcessor.from_pretrained(retriever / "tiny")
    words = ["a cat", "a dog", "a cat", "hello"]
    same = torch.tensor([[one == other for other in words] for one in words])
    images = [[str(retriever / f"{color}.png")] for color in ("red", "green", "blue", "white")]
    with torch.no_grad():
        whole = loaded.embed(**parts(text=words, return_tensors="pt"))
        seen = loaded.embed(**parts(text=[""] * 4, images=images, return_tensors="pt"))
    for size in (8, 3):
        text, image = (torch.nn.functional.normalize(each[:, :size], dim=-1) for each in (whole, seen))
        for pair, scores in ((("image", "text"), image @ text.T), (("text", "image"), text @ image.T)):
            figure = found[(*pair, size)]
            expected = same.gather(1, scores.argmax(-1)[:, None]).float().mean().item()
            assert figure["figures"]["recall_at_1"] == pytest.approx(expected), (pair, size)
            assert (figure["dataset"], figure["rows"], figure["chance"]) == ("captions", 4, 6 / 16)
    table = (out / "figures.md").read_text(encoding="utf-8").strip()
    assert "| text | image | 3 |" in table and table in capsys.readouterr().out
    stated = measured_on(weights_digest(retriever / "tiny"))
    assert (out / "card.md").read_text(encoding="utf-8") == f"{table}\n\n{stated}\n"

    cache = tmp_path / "cache"
    assert main([*arguments, f"data.encoder_cache={cache}", "--no-cache"]) == 0 and not cache.exists()
    assert main([*arguments, f"data.encoder_cache={cache}"]) == 0
    cached = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert list(cache.glob("image-*/states.bin")) and cached == figures

    alone = json.dumps({"prompt": "What?", "completion": "a cat"})
    (tmp_path / "alone.jsonl").write_text(f"{alone}\n{alone}", encoding="utf-8")
    assert main([*arguments, f"data.test.captions.0.source={tmp_path / 'alone.jsonl'}"]) == 2
    assert "The set captions has no two rows with the same two of text" in capsys.readouterr().err


def test_a_pretrained_model_is_measured_by_its_objectives_and_answers(retriever, tmp_path, capsys):
    path, out, tiny = tmp_path / "given.yaml", tmp_path / "figures", tmp_path / "tiny"
    found, parts = build(MMForPreTraining, projection_dim=8, masked_lm_weight=0.0)
    found.save_pretrained(tiny)
    parts.save_pretrained(tiny)
    values = plain_recipe(tmp_path) | {"objective": "pretraining", "masking": {"modalities": 0.0}}
    values["data"]["test"] = {"captions": [{"source": str(retriever / "test.jsonl")}]}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["evaluate", str(path), str(tiny), "--out", str(out), "--device", "cpu"]) == 0
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    names = {"causal_lm_loss", "matching_loss", "matching_accuracy", "contrastive_loss"}
    assert set(figures["objectives"]["captions"]) == names
    assert [(each["query"], each["item"]) for each in figures["retrieval"]] == [("text", "image"), ("image", "text")]
    assert measured_digests((out / "card.md").read_text(encoding="utf-8")) == [weights_digest(tiny)]
    table = (out / "figures.md").read_text(encoding="utf-8").strip()
    assert "| captions | 4 | matching loss |" in table and "| text | image | 8 |" in table
    assert table in capsys.readouterr().out
    cache = f"data.encoder_cache={tmp_path / 'cache'}"
    assert main(["evaluate", str(path), str(tiny), "--out", str(tmp_path / "cached"), "--device", "cpu", cache]) == 0
    cached = json.loads((tmp_path / "cached" / "figures.json").read_text(encoding="utf-8"))
    assert list((tmp_path / "cache").glob("image-*/states.bin")) and cached["retrieval"] == figures["retrieval"]
    assert cached["objectives"]["captions"] == pytest.approx(figures["objectives"]["captions"], abs=1e-3)
    assert main(["ask", str(tiny), "What?", "--device", "cpu", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize(
    "kind, answer, expected",
    [("audio", "Good-bye.", "✓"), ("audio", "good bye", "≈"), ("audio", "good day", "✗"), ("image", "good bye", "✗")],
)
def test_words_of_speech_need_not_have_its_punctuation(kind, answer, expected):
    content = [{"type": kind, "path": "a"}]
    truth = {"role": "assistant", "content": [{"type": "text", "text": "Good-bye."}]}
    assert mark_of(ChatRow([{"role": "user", "content": content}, truth]), answer) == expected


def test_a_model_that_embeds_answers_nothing(retriever, capsys):
    assert main(["ask", str(retriever / "tiny"), "What?", "--device", "cpu"]) == 2
    printed = capsys.readouterr().err
    assert "is a MMForRetrieval. This command is for MMForConditionalGeneration or" in printed and "--match" in printed


def test_a_row_is_compared_with_texts_and_files(retriever, folder, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("a dog", encoding="utf-8")
    arguments = ["ask", str(retriever / "tiny"), "--device", "cpu", "--image", str(folder / "red.png")]
    matches = ["a cat", str(folder / "blue.png"), str(tmp_path / "note.txt")]
    compared = [each for match in matches for each in ("--match", match)]
    assert main([*arguments, *compared]) == 0
    loaded, parts = MMForRetrieval.from_pretrained(retriever / "tiny"), MMProcessor.from_pretrained(retriever / "tiny")
    images = parts(images=[[str(folder / "red.png")], [str(folder / "blue.png")]], return_tensors="pt")
    with torch.no_grad():
        red, blue = loaded.embed(pixel_values=images["pixel_values"])
        cat, dog = (loaded.embed(**parts(text=text, return_tensors="pt"))[0] for text in ("a cat", "a dog"))
    expected = sorted(zip([(red @ each).item() for each in (cat, blue, dog)], matches, strict=True), reverse=True)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-3:]]
    assert lines == [[f"{similarity:.3f}", match] for similarity, match in expected]
    page, figure = tmp_path / "new" / "match.html", tmp_path / "match.png"
    assert main([*arguments, "by night", *compared, "--attention", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<p>6 sides</p>" in text and "<h3>occlusion</h3>" in text and "image + by night \u2192 a cat" in text
    assert capsys.readouterr().out.splitlines()[-1] == f"Drawn: {page}"
    assert main([*arguments, *compared[:2], "--attention", str(figure), "--explain", "gradient-attention"]) == 0
    assert figure.stat().st_size > 10_000


def test_a_pretrained_model_compares_too(folder, tmp_path, capsys):
    found, parts = build(MMForPreTraining, projection_dim=8)
    found.save_pretrained(tmp_path / "tiny")
    parts.save_pretrained(tmp_path / "tiny")
    image = ("--image", str(folder / "red.png"))
    assert main(["ask", str(tmp_path / "tiny"), "--device", "cpu", *image, "--match", "a cat"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("a cat")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--match", "no-cat.png"], "--match: there is no file no-cat.png."),
        (["--match", "data.bin"], "--match data.bin: expected a text, or a file of type image, audio or .txt."),
        (["--match", " "], "A row of the match has nothing in it"),
        (["--match", "a " * 3000], "positions"),
        (["--match", "text.png"], "in no format that Pillow knows"),
        (["--match", "a cat", "--questions", "data.bin"], "Give either a question"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused_in_one_line(
    arguments, word, retriever, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.bin").write_bytes(b"1")
    (tmp_path / "text.png").write_text("no image")
    image = ("--image", str(folder / "red.png"))
    assert main(["ask", str(retriever / "tiny"), "--device", "cpu", *image, *arguments]) == 2
    printed = capsys.readouterr().err
    assert word in printed and re.fullmatch(r"modeling-mm ask: .+\n", printed)


def test_a_model_that_writes_compares_nothing(folder, capsys):
    assert ask(folder, "--image", str(folder / "red.png"), "--match", "a cat") == 2
    assert "is a MMForConditionalGeneration. This command is for MMForRetrieval." in capsys.readouterr().err


def test_a_classifier_answers_with_labels_and_scores(classifier, tmp_path, capsys):
    arguments = ["ask", str(classifier / "tiny"), "--device", "cpu"]
    assert main([*arguments, "What do you see?"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = torch.tensor([0.0, 0.1 * WIDTH, 0.0]).softmax(-1)
    assert printed[0] == ["two", f"{expected[1]:.3f}"] and {line[0] for line in printed[1:]} == {"one", "three"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x", "completion": "two"}), encoding="utf-8")
    assert main([*arguments, "--questions", str(tmp_path / "rows.jsonl")]) == 0
    assert "1 of 1 are exactly right." in capsys.readouterr().out
    picture("red").save(tmp_path / "red.png")
    asked = ["What?", "--image", str(tmp_path / "red.png"), "--attention", str(tmp_path / "a.png")]
    assert main([*arguments, *asked]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Drawn: {tmp_path / 'a.png'}"
    page = tmp_path / "a.html"
    assert main([*arguments, *asked[:-1], str(page), "--explain", "occlusion"]) == 0
    assert "What? \u2192 two" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["serve", "app"])
def test_a_classifier_is_not_served(command, classifier, capsys):
    pytest.importorskip({"serve": "uvicorn", "app": "gradio"}[command])
    assert main([command, str(classifier / "tiny")]) == 2
    assert "is a classifier, which writes no answers" in capsys.readouterr().err


def test_without_any_set_to_measure_nothing_is_written(classifier, tmp_path, capsys):
    values = plain_recipe(tmp_path)
    del values["data"]["evaluation"], values["training"]["eval_strategy"], values["training"]["eval_steps"]
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["evaluate", str(path), str(classifier / "tiny"), "--out", str(tmp_path / "figures")]
    assert main(arguments) == 2
    assert "neither `data.test` nor `data.evaluation`" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


# ---- info -----------------------------------------------------------------------------------------------------------


def test_info_shows_the_installation(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and "cpu" in printed
    assert re.search("presets: .*gpt2-siglip-whisper", printed) and re.search("recipes: .*vqa-lora", printed)
    assert main(["info", "--path", "accelerate/ddp"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "ddp.yaml"
    assert main(["info", "--path", "acelerate/ddp"]) == 2


def test_info_shows_the_parts_and_limits_of_a_model(folder, capsys):
    assert main(["info", str(folder / "tiny")]) == 0
    printed = capsys.readouterr().out
    counts = [float(number) for number in re.findall(r"(\d+\.\d+)M", printed)]
    assert sum(counts[:-1]) == pytest.approx(counts[-1], abs=0.05)
    assert counts[-1] == pytest.approx(model().num_parameters() / 1e6, abs=0.01)
    for word in ("vision_tower", "audio_connector", "Positions of text: 128", "Window of audio: 1 s", "images, audio"):
        assert word in printed
    assert main(["info", "gpt2-siglip-whisper"]) == 0
    assert "siglip" in capsys.readouterr().out


# ---- What is shipped ------------------------------------------------------------------------------------------------


def test_the_shipped_questions_are_whole():
    samples = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len(samples) >= 12
    named = set()
    for sample in samples:
        paths = [part["path"] for part in sample["messages"][0]["content"] if "path" in part]
        assert paths and all((QUESTIONS.parent / path).is_file() for path in paths), sample["id"]
        assert sample["messages"][1]["content"][0]["text"]
        named |= {Path(path).name for path in paths}
    assert {path.name for path in (QUESTIONS.parent / "media").iterdir()} == named


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_thin_and_open_with_their_command(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 30 and f"python scripts/{path.name}" in text
    (name,) = re.findall(r'sys\.exit\(main\(\["(\w+)", \*sys\.argv\[1:\]\]\)\)', text)
    assert name in COMMANDS
