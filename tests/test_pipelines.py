"""pipelines.py: every task through the real `pipeline`, with the package and from a saved folder without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TextClassificationPipeline,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm import (
    MMConfig,
    MMForConditionalGeneration,
    MMForSequenceClassification,
    MMModel,
)
from modeling_mm import pipeline_speech as speech
from modeling_mm import pipelines as ours
from modeling_mm.data import phrases
from modeling_mm.data.chat_row import ChatRow
from modeling_mm.pipeline_answers import LANGUAGE_NAMES, TRANSLATION_PROMPT, language_name
from modeling_mm.pipeline_batches import collate_rows
from modeling_mm.pipeline_speech import TRANSCRIPTION_PROMPT
from modeling_mm.training.classification import ClassificationCollator
from modeling_mm.transcripts import merge_transcripts
from tests.pipeline_parts import COLORS, GREEDY, NEW_TOKENS, answer_of, audio, build, chat, image, inputs_of, noise
from tests.processor_parts import RATE, make_wordpiece, picture
from tests.tiny import difference
from tests.without_package import run_without_package

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with a folder each for the `model` that writes and for the `classifier`."""
    folders = tmp_path_factory.mktemp("pipelines")
    for name, cls, fields in (
        ("model", MMForConditionalGeneration, {}),
        ("classifier", MMForSequenceClassification, {"num_labels": 3}),
    ):
        model, processor = build(cls, **fields)
        model.save_pretrained(folders / name)
        processor.save_pretrained(folders / name)
    return folders


@pytest.fixture(scope="module")
def pipes(folders):
    """`pipes(task)` is the pipeline, made once."""
    made = {}

    def pipe(task: str):
        if task not in made:
            name = "classifier" if task == "text-classification" else "model"
            made[task] = pipeline(task, str(folders / name), device="cpu")
        return made[task]

    return pipe


# ---- Rows to batches ------------------------------------------------------------------------------------------------


def test_rows_with_and_without_media_make_one_batch():
    rows = [
        {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long), "text": "a"},
        {
            "input_ids": torch.tensor([[8]]),
            "attention_mask": torch.ones(1, 1, dtype=torch.long),
            "pixel_values": torch.ones(1, 2, 3, 4, 4),
            "image_mask": torch.ones(1, 2, dtype=torch.bool),
            "input_values": torch.ones(1, 1, 6),
            "feature_attention_mask": torch.ones(1, 1, 6, dtype=torch.long),
        },
        {"input_ids": torch.tensor([[9, 9]]), "attention_mask": torch.ones(1, 2, dtype=torch.long), "text": "b"},
    ]
    rows[2] |= {"input_values": torch.ones(1, 2, 4), "feature_attention_mask": torch.ones(1, 2, 4, dtype=torch.long)}
    batch = collate_rows(rows, pad_token_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8], [1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch["text"] == ["a", None, "b"]
    assert batch["pixel_values"].shape == (3, 2, 3, 4, 4)
    assert batch["image_mask"].tolist() == [[False, False], [True, True], [False, False]]
    assert batch["input_values"].shape == (3, 2, 6)
    assert batch["feature_attention_mask"].sum(-1).tolist() == [[0, 0], [6, 0], [4, 4]]


def test_pictures_of_different_sizes_are_no_batch():
    rows = [{"pixel_values": torch.ones(1, 1, 3, size, size)} for size in (4, 8)]
    with pytest.raises(ValueError, match=r"one size, got \[\(3, 4, 4\), \(3, 8, 8\)\].*batch_size"):
        collate_rows(rows, 0)


# ---- Text about media -----------------------------------------------------------------------------------------------

CHATS = {
    "text": chat("What do you see?"),
    "image": chat(image(), "What do you see?"),
    "images": chat(image("red"), "and", image("blue"), "?"),
    "audio": chat(audio(), "hello"),
    "long audio": chat("hear", audio(2.3), "hello"),
    "both": [{"role": "system", "content": "You are brief."}, *chat(image(), audio(), "a bird?")],
}


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_gets_what_generate_gives(pipes, task, name):
    pipe = pipes(task)
    assert type(pipe).__module__ == "modeling_mm.pipelines"
    inputs = inputs_of(pipe, CHATS[name])
    expected = pipe.model.generate(**inputs, **GREEDY)
    said = pipe(CHATS[name], generate_kwargs=dict(GREEDY), return_tensors=True)
    assert torch.equal(said[0]["generated_token_ids"], expected[0])


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_chats_of_all_kinds_go_into_one_batch(pipes, task):
    pipe, chats = pipes(task), list(CHATS.values())
    options = {"generate_kwargs": dict(GREEDY), "return_full_text": False}
    alone = [pipe(messages, **options) for messages in chats]
    assert [row[0]["generated_text"].strip() for row in alone] == [answer_of(pipe, messages) for messages in chats]
    assert pipe(chats, batch_size=len(chats), **options) == alone
    assert pipe(chats, batch_size=4, **options) == alone  # the last batch is shorter
    streamed = pipe((messages for messages in chats), batch_size=2, **options)
    assert not isinstance(streamed, list)
    assert list(streamed) == alone


def test_texts_with_pictures_beside_them_are_answered(pipes):
    pipe = pipes("image-text-to-text")
    prompt = "<|image|> What do you see?"
    inputs = pipe.processor(text=prompt, images=[picture()], return_tensors="pt")
    expected = pipe.model.generate(**inputs, **GREEDY)
    said = pipe(images=[picture()], text=prompt, generate_kwargs=dict(GREEDY), return_tensors=True)
    assert torch.equal(said[0]["generated_token_ids"], expected[0])


def test_any_to_any_takes_media_beside_the_text_and_decodes_sounds_itself(pipes, tmp_path):
    """The stock pipeline would ask for torchvision, and for librosa or torchcodec to read the file."""
    pipe, path = pipes("any-to-any"), tmp_path / "sound.wav"
    soundfile.write(path, noise(), RATE, subtype="FLOAT")
    said = pipe(text="a cat", images=[picture()], audio=str(path), generate_kwargs=dict(GREEDY), return_tensors=True)
    inputs = pipe.processor(text="a cat", images=[picture()], audio=(noise(), RATE), return_tensors="pt")
    assert torch.equal(said[0]["generated_token_ids"], pipe.model.generate(**inputs, **GREEDY)[0])
    with pytest.raises(ValueError, match="image"):
        pipe({"text": "a", "image": picture()})


def test_a_model_in_memory_is_served(pipes):
    model, processor = build()
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    assert type(pipe) is ours.MMImageTextToTextPipeline
    said = pipe(CHATS["both"], generate_kwargs=dict(GREEDY), return_full_text=False)
    assert said[0]["generated_text"].strip() == answer_of(pipes("image-text-to-text"), CHATS["both"])


# ---- Speech ---------------------------------------------------------------------------------------------------------


def test_speech_is_transcribed_from_all_that_the_stock_pipeline_takes(pipes, tmp_path):
    pipe, path = pipes("automatic-speech-recognition"), tmp_path / "sound.wav"
    soundfile.write(path, noise(), RATE, subtype="FLOAT")
    expected = answer_of(pipe, chat(audio(), TRANSCRIPTION_PROMPT))
    raw = {"raw": noise(), "sampling_rate": RATE}
    sources = [
        str(path),
        path.read_bytes(),
        noise(),
        torch.from_numpy(noise()),
        raw,
        {"array": noise(), "sampling_rate": RATE, "path": None},
        {"bytes": path.read_bytes(), "path": None},
        (noise(), RATE),
    ]
    assert [pipe(source, **GREEDY) for source in sources] == [{"text": expected}] * len(sources)
    assert set(raw) == {"raw", "sampling_rate"}, "the caller's dict was changed"
    assert pipe(sources, batch_size=3, **GREEDY) == [{"text": expected}] * len(sources)
    assert pipe(noise(), generate_kwargs=dict(GREEDY)) == {"text": expected}


def test_sounds_of_another_rate_are_resampled_and_several_channels_mixed(pipes):
    pipe = pipes("automatic-speech-recognition")
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    stereo = {"raw": np.stack([tone, tone]), "sampling_rate": 8000}
    expected = answer_of(
        pipe,
        chat({"type": "audio", "audio": (tone, 8000)}, TRANSCRIPTION_PROMPT),
        max_new_tokens=NEW_TOKENS,
    )
    assert pipe(stereo, **GREEDY) == {"text": expected}


def test_the_prompt_of_speech_recognition_is_the_callers_to_choose(pipes):
    pipe = pipes("automatic-speech-recognition")
    assert pipe(noise(), prompt="hello there", **GREEDY) == {"text": answer_of(pipe, chat(audio(), "hello there"))}


def test_a_long_sound_without_chunks_goes_whole_into_its_windows(pipes, monkeypatch):
    pipe, asked = pipes("automatic-speech-recognition"), []
    ask = pipe.ask
    monkeypatch.setattr(pipe, "ask", lambda content: asked.append(ask(content)) or asked[-1])
    pipe(noise(3.4), **GREEDY)
    assert len(asked) == 1 and asked[0]["input_features"].shape[1] == 4


def test_long_sound_is_cut_into_chunks_by_chunk_length_s(pipes, monkeypatch):
    pipe, asked = pipes("automatic-speech-recognition"), []
    ask = pipe.ask
    monkeypatch.setattr(pipe, "ask", lambda content: asked.append(content[0]["audio"][0]) or ask(content))
    sound = noise(3.2)
    options = {"chunk_length_s": 1.0, "stride_length_s": 0.2, **GREEDY}
    alone = pipe(sound, **options)
    starts = [0.0, 0.6, 1.2, 1.8, 2.4]  # each begins 0.4 s before the end of the last one
    assert len(asked) == len(starts)
    for start, chunk in zip(starts, asked, strict=True):
        assert np.array_equal(chunk, sound[round(start * RATE) : round((start + 1.0) * RATE)])
    said = [answer_of(pipe, chat({"type": "audio", "audio": (c, RATE)}, TRANSCRIPTION_PROMPT)) for c in asked]
    assert alone == {"text": merge_transcripts(said, [0.4 * RATE / len(chunk) for chunk in asked])}
    assert pipe(sound, batch_size=3, **options) == alone
    # Chunks of several sounds share batches and find back to their own.
    other = pipe(noise(1.5, seed=1), **options)
    assert pipe([sound, noise(1.5, seed=1), sound], batch_size=4, **options) == [alone, other, alone]


def test_a_key_dataset_is_streamed(pipes):
    pipe = pipes("automatic-speech-recognition")
    seen = []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            if i >= 4:
                raise IndexError(i)
            seen.append(i)
            return {"sound": {"array": noise(seed=i), "sampling_rate": RATE}}

    streamed = pipe(KeyDataset(Rows(), "sound"), batch_size=2, **GREEDY)
    first = next(iter(streamed))
    assert max(seen) < 3, "more was read than the first batch needs"
    assert first == pipe(noise(seed=0), **GREEDY)
    assert list(pipe(KeyDataset(Rows(), "sound"), batch_size=3, **GREEDY)) == [
        pipe(noise(seed=i), **GREEDY) for i in range(4)
    ]


def outputs_for(pipe, *transcripts: str, share: float = 1 / 3) -> list[dict]:
    end = pipe.processor.tokenizer.eos_token_id
    tokens = [[*pipe.processor.tokenizer(t, add_special_tokens=False).input_ids, end] for t in transcripts]
    return [{"tokens": torch.tensor([[ids]]), "share": share} for ids in tokens]


def test_what_two_chunks_both_say_is_written_once(pipes):
    pipe = pipes("automatic-speech-recognition")
    outputs = outputs_for(pipe, "the cat sat on the ma", "at on the mat and slept.")
    assert pipe.postprocess(outputs) == {"text": "the cat sat on the mat and slept."}


def test_an_answer_that_was_cut_off_is_warned_of(pipes, monkeypatch):
    pipe, warnings = pipes("automatic-speech-recognition"), []
    monkeypatch.setattr(speech.logger, "warning", warnings.append)
    pipe.postprocess(outputs_for(pipe, "whole", "too"))
    assert warnings == []
    pipe(noise(), **GREEDY)
    assert len(warnings) == 1
    assert f"1 of 1 transcripts of this sound were cut off after {NEW_TOKENS} tokens" in warnings[0]
    assert "max_new_tokens" in warnings[0] and "chunk_length_s" in warnings[0]


WRONG_SPEECH = {
    "no such file": ("no/such.wav", {}, "neither an existing file"),
    "no sound": (b"no sound at all", {}, "cannot be decoded"),
    "no rate": ({"raw": noise()}, {}, "sampling_rate.*got them without"),
    "a stride": ({"raw": noise(), "sampling_rate": RATE, "stride": (1, 1)}, {}, "CTC.*chunk_length_s"),
    "another key": ({"raw": noise(), "sampling_rate": RATE, "partial": True}, {}, r"got \['partial'\] too"),
    "nothing": (np.zeros(0, dtype=np.float32), {}, "holds no samples"),
    "not finite": (np.full(10, np.nan, dtype=np.float32), {}, "NaN"),
    "strides too long": (noise(), {"chunk_length_s": 1, "stride_length_s": 0.5}, "longer than its two strides"),
    "negative": (noise(), {"chunk_length_s": -1}, "must be positive"),
    "three strides": (noise(), {"chunk_length_s": 1, "stride_length_s": [0.1] * 3}, "one `stride_length_s` or two"),
    "timestamps": (noise(), {"return_timestamps": True}, "`return_timestamps` is not possible"),
    "several answers": (noise(), {"num_return_sequences": 2, "num_beams": 2}, "one transcript for each sound, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SPEECH)
def test_wrong_speech_is_a_value_error_with_the_remedy(pipes, name):
    source, options, message = WRONG_SPEECH[name]
    with pytest.raises(ValueError, match=message):
        pipes("automatic-speech-recognition")(source, **{**GREEDY, **options})


def test_a_model_that_does_not_hear_is_refused():
    model, processor = build(audio=None)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    with pytest.raises(ValueError, match="without an audio encoder"):
        pipeline("automatic-speech-recognition", model=model, device="cpu", **parts)


def test_speech_recognition_of_a_model_in_memory_makes_its_processor_of_the_parts(pipes):
    model, processor = build()
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    pipe = pipeline("automatic-speech-recognition", model=model, device="cpu", **parts)
    assert pipe(noise(), **GREEDY) == pipes("automatic-speech-recognition")(noise(), **GREEDY)


def test_speech_to_text_has_its_auto_class(folders):
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(folders / "model")) is MMForConditionalGeneration


# ---- Classification -------------------------------------------------------------------------------------------------

CLASSIFIED = {
    "text": "a cat, a dog and a bird",
    "text in a dict": {"text": "hello there"},
    "picture": {"text": "a cat?", "images": [picture()]},
    "two pictures": {"text": "<|image|> a cat <|image|>", "images": [picture("red"), picture("blue")]},
    "sound": {"text": "hello", "audio": (noise(), RATE)},
    "both": {"text": "hello", "image": picture(), "audio": [(noise(1.4), RATE)]},
    "no text": {"images": picture()},
}


def logits_of(pipe, inputs) -> torch.Tensor:
    inputs = {"text": inputs} if isinstance(inputs, str) else dict(inputs)
    images = inputs.get("images", inputs.get("image"))
    row = pipe.processor(text=inputs.get("text", ""), images=images, audio=inputs.get("audio"), return_tensors="pt")
    with torch.no_grad():
        return pipe.model(**row).logits[0]


@pytest.mark.parametrize("name", CLASSIFIED)
def test_texts_are_classified_with_the_media_beside_them(pipes, name):
    pipe = pipes("text-classification")
    assert type(pipe) is ours.MMTextClassificationPipeline
    scores = logits_of(pipe, CLASSIFIED[name]).softmax(-1).tolist()
    found = pipe(CLASSIFIED[name], top_k=None)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        {f"LABEL_{i}": score for i, score in enumerate(scores)}, abs=1e-5
    )


def test_media_change_the_class_scores(pipes):
    pipe = pipes("text-classification")
    plain, seen, heard = (
        pipe(row, top_k=None)
        for row in ({"text": "hello"}, {"text": "hello", "images": picture()}, CLASSIFIED["sound"])
    )
    assert plain != seen and plain != heard


def test_classified_rows_of_all_kinds_go_into_one_batch(pipes):
    pipe, rows = pipes("text-classification"), list(CLASSIFIED.values())
    alone = [pipe(row, top_k=1)[0] for row in rows]
    batched = pipe(rows, batch_size=4, top_k=1)
    assert [row[0]["label"] for row in batched] == [row["label"] for row in alone]
    assert [row[0]["score"] for row in batched] == pytest.approx([row["score"] for row in alone], abs=1e-5)
    streamed = list(pipe(KeyDataset([{"x": row} for row in rows], "x"), batch_size=3, top_k=1))
    assert [row[0]["label"] for row in streamed] == [row["label"] for row in alone]


def test_chats_are_classified_as_recipes_train_them(pipes):
    pipe, messages = pipes("text-classification"), chat(image(), "a dog?")
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    row = dict(ClassificationCollator(pipe.processor, ["yes", "no"])([ChatRow(answered)]))
    del row["labels"]
    with torch.no_grad():
        scores = pipe.model(**row).logits[0].softmax(-1)
    found = pipe(messages)
    assert found["label"] == f"LABEL_{scores.argmax()}" and found["score"] == pytest.approx(
        scores.max().item(), abs=1e-5
    )


def test_what_the_stock_text_classification_takes_is_still_taken(pipes):
    pipe = pipes("text-classification")
    assert set(pipe("hello")[0]) == {"label", "score"}  # a list for a string, as ever
    assert set(pipe({"text": "hello", "text_pair": "there"})) == {"label", "score"}
    assert len(pipe("hello " * 20, truncation=True, max_length=4)) == 1


WRONG_TO_CLASSIFY = {
    "a number": (3, {}, "expected a text, a dict .* or a chat; got an object of type int"),
    "another key": ({"text": "a", "video": 1}, {}, r"got \['video'\] too"),
    "nothing": ({}, {}, "nothing to read"),
    "a pair with media": ({"text": "a", "text_pair": "b", "images": picture()}, {}, "pair of texts"),
    "too few pictures": ({"text": "<|image|><|image|>", "images": picture()}, {}, "(?s)2.*1"),
}


@pytest.mark.parametrize("name", WRONG_TO_CLASSIFY)
def test_what_cannot_be_classified_is_a_value_error(pipes, name):
    inputs, options, message = WRONG_TO_CLASSIFY[name]
    with pytest.raises(ValueError, match=message):
        pipes("text-classification")(inputs, **options)


# ---- Questions and translations -------------------------------------------------------------------------------------


def test_questions_about_pictures_are_answered(pipes):
    pipe = pipes("visual-question-answering")
    expected = [[{"answer": answer_of(pipe, chat(image(color), "a cat?"))}] for color in COLORS]
    assert pipe(picture("red"), "a cat?", **GREEDY) == expected[0]
    assert pipe(image=picture("red"), question="a cat?", **GREEDY) == expected[0]
    assert pipe({"image": picture("red"), "question": "a cat?"}, generate_kwargs=GREEDY) == expected[0]
    pictures = [picture(color) for color in COLORS]
    assert pipe(pictures, "a cat?", batch_size=2, **GREEDY) == expected
    assert pipe([{"image": p, "question": "a cat?"} for p in pictures], **GREEDY) == expected
    streamed = pipe(KeyDataset([{"p": p} for p in pictures], "p"), "a cat?", batch_size=2, **GREEDY)
    assert not isinstance(streamed, list) and list(streamed) == expected
    assert list(pipe(({"image": p, "question": "a cat?"} for p in pictures), **GREEDY)) == expected


def test_each_question_is_asked_of_each_picture(pipes):
    pipe, questions = pipes("visual-question-answering"), ["a cat?", "hello there"]
    said = pipe([picture("red"), picture("blue")], questions, **GREEDY)
    pairs = [(color, question) for question in questions for color in ("red", "blue")]
    assert said == [[{"answer": answer_of(pipe, chat(image(color), question))}] for color, question in pairs]
    assert pipe(picture("red"), questions, **GREEDY) == [said[0], said[2]]


def test_one_question_may_be_about_several_pictures(pipes):
    pipe = pipes("visual-question-answering")
    said = pipe({"image": [picture("red"), picture("blue")], "question": "which?"}, **GREEDY)
    assert said == [{"answer": answer_of(pipe, chat(image("red"), image("blue"), "which?"))}]


def test_several_answers_are_distinct_and_come_with_scores_the_likeliest_first(pipes, folders):
    pipe = pipes("visual-question-answering")
    row = {"image": picture(), "question": "a cat?"}
    one, found = pipe(row, **GREEDY), pipe(row, top_k=3, **GREEDY)
    scores = [answer["score"] for answer in found]
    assert set(one[0]) == {"answer"} and len(one) == 1
    assert len({answer["answer"] for answer in found}) == 3
    assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] <= 1
    assert pipe(row, top_k=2, num_beams=6, **{k: v for k, v in GREEDY.items() if k != "num_beams"}) == found[:2]
    batched = pipe([row, row], batch_size=2, top_k=3, **GREEDY)
    assert [[a["answer"] for a in answers] for answers in batched] == [[a["answer"] for a in found]] * 2
    preset = pipeline("vqa", str(folders / "model"), device="cpu", top_k=2)
    assert type(preset) is type(pipe) and len(preset(row, **GREEDY)) == 2


def test_the_score_of_an_answer_is_the_likelihood_of_its_average_token_whatever_the_models_length_penalty(pipes):
    pipe = pipes("visual-question-answering")
    inputs = pipe.preprocess({"image": picture(), "question": "a cat?"})
    pipe.model.generation_config.length_penalty = 3.0
    try:
        outputs = pipe.forward(dict(inputs), top_k=2, **GREEDY)
    finally:
        pipe.model.generation_config.length_penalty = 1.0
    length = inputs["input_ids"].shape[1]
    for tokens, score in zip(outputs["tokens"][0], outputs["scores"][0], strict=True):
        ids = torch.cat([inputs["input_ids"][0], tokens])[None]
        with torch.no_grad():
            logits = pipe.model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0]
        likelihood = logits.log_softmax(-1)[length - 1 : -1].gather(1, tokens[:, None]).mean().exp()
        assert abs(likelihood - score) < 1e-5


def test_answers_that_say_the_same_are_one_with_the_better_score(pipes):
    pipe = pipes("visual-question-answering")
    ids = [
        pipe.processor.tokenizer(words, add_special_tokens=False).input_ids for words in ("a cat", " a cat", "a dog")
    ]
    end, longest = pipe.processor.tokenizer.eos_token_id, max(map(len, ids))
    tokens = torch.tensor([row + [end] * (longest - len(row)) for row in ids])[None]
    outputs = {"tokens": tokens, "scores": torch.tensor([[0.5, 0.25, 0.125]])}
    assert pipe.postprocess(outputs, top_k=2) == [
        {"answer": "a cat", "score": 0.5},
        {"answer": "a dog", "score": 0.125},
    ]


WRONG_QUESTIONS = {
    "no question": (picture(), {}, "dict with `image` and `question`; got an object of type Image"),
    "no picture": ({"question": "a?"}, {}, "dict with `image` and `question`"),
    "another key": ({"image": picture(), "question": "a?", "audio": 1}, {}, r"got \['audio'\] too"),
    "no answers": ({"image": picture(), "question": "a?"}, {"top_k": 0}, "at least one answer, got top_k=0"),
    "samples": ({"image": picture(), "question": "a?"}, {"top_k": 2, "do_sample": True}, "leave do_sample out"),
    "a penalty": ({"image": picture(), "question": "a?"}, {"top_k": 2, "length_penalty": 2.0}, "leave length_penalty"),
    "no file": ({"image": "no/such.png", "question": "a?"}, {}, "neither an existing file"),
}


@pytest.mark.parametrize("name", WRONG_QUESTIONS)
def test_a_wrong_question_is_a_value_error(pipes, name):
    inputs, options, message = WRONG_QUESTIONS[name]
    with pytest.raises(ValueError, match=message):
        pipes("visual-question-answering")(inputs, **options)


def test_a_stream_of_pictures_takes_one_question(pipes):
    with pytest.raises(ValueError, match="expected one question for a dataset"):
        pipes("visual-question-answering")((p for p in [picture()]), ["a?", "b?"])


def prompt_of(words: str, language: str) -> str:
    return f"Translate this caption into {language}: {words}"


def test_texts_are_translated_with_what_they_belong_to(pipes, folders):
    pipe = pipes("multimodal-translation")
    expected = answer_of(pipe, chat(image(), prompt_of("a cat", "French")))
    assert pipe("a cat", image=picture(), tgt_lang="fr", **GREEDY) == [{"translation_text": expected}]
    assert pipe("a cat", image=picture(), tgt_lang="French", **GREEDY) == [{"translation_text": expected}]
    preset = pipeline("multimodal-translation", str(folders / "model"), device="cpu", tgt_lang="fr", **GREEDY)
    assert preset({"text": "a cat", "image": picture()}) == [{"translation_text": expected}]
    rows = [
        {"text": "a cat", "image": picture()},
        {"text": "a dog", "tgt_lang": "zh"},
        {"text": "a bird", "audio": (noise(), RATE)},
        {"audio": (noise(), RATE)},
    ]
    questions = [prompt_of("a cat", "French"), prompt_of("a dog", "Chinese"), prompt_of("a bird", "French")]
    questions.append("Translate this caption into French:")
    chats = [chat(image(), questions[0]), chat(questions[1]), chat(audio(), questions[2]), chat(audio(), questions[3])]
    said = [[{"translation_text": answer_of(pipe, messages)}] for messages in chats]
    assert preset(rows) == said
    assert preset(rows, batch_size=4) == said
    assert list(preset(KeyDataset([{"row": row} for row in rows], "row"), batch_size=3)) == said
    assert preset(["a cat", "a cat"], image=[picture(), picture()]) == [said[0], said[0]]


def test_a_translation_may_be_asked_for_in_other_words(pipes):
    pipe = pipes("multimodal-translation")
    said = pipe("a cat", tgt_lang="de", prompt="{text} in {language}?", **GREEDY)
    assert said == [{"translation_text": answer_of(pipe, chat("a cat in German?"))}]
    beams = pipe("a cat", tgt_lang="de", **{**GREEDY, "num_beams": 2, "num_return_sequences": 2})
    assert len(beams) == 2


WRONG_TRANSLATIONS = {
    "no language": ("a cat", {}, "pass `tgt_lang`"),
    "an unknown code": ("a cat", {"tgt_lang": "xx"}, "got 'xx': write its name"),
    "nothing to translate": ({"image": picture()}, {"tgt_lang": "fr"}, "something to translate"),
    "a number": ({"text": 3}, {"tgt_lang": "fr"}, "a string as `text`"),
    "another key": ({"text": "a", "video": 1}, {"tgt_lang": "fr"}, r"got \['video'\] too"),
    "a prompt with other braces": ("a", {"tgt_lang": "fr", "prompt": "{what}"}, "write other braces twice"),
    "lists of two lengths": (["a", "b"], {"tgt_lang": "fr", "image": [picture()]}, "lists of one length.*1 .image."),
}


@pytest.mark.parametrize("name", WRONG_TRANSLATIONS)
def test_a_wrong_translation_is_a_value_error(pipes, name):
    inputs, options, message = WRONG_TRANSLATIONS[name]
    with pytest.raises(ValueError, match=message):
        pipes("multimodal-translation")(inputs, **options)


def test_our_corpora_ask_in_the_same_words():
    assert phrases.TRANSLATE == TRANSLATION_PROMPT
    assert TRANSCRIPTION_PROMPT in phrases.HEARD["en"]
    assert phrases.LANGUAGE_NAMES.items() <= LANGUAGE_NAMES.items()
    assert language_name("Old Norse") == "Old Norse"


# ---- The stock pipelines that serve our models ----------------------------------------------------------------------


def test_text_is_generated_by_the_stock_pipeline(pipes):
    pipe = pipes("text-generation")
    assert type(pipe).__module__ == "transformers.pipelines.text_generation"
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_full_text": False}
    ids = pipe.tokenizer("hello there", return_tensors="pt", return_token_type_ids=False)
    tokens = pipe.model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    expected = pipe.tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert pipe("hello there", **options)[0]["generated_text"].strip() == expected.strip()
    messages = [{"role": "user", "content": "hello there"}]
    alone = [pipe(messages, **options), pipe([{"role": "user", "content": "a cat"}], **options)]
    assert pipe([messages, [{"role": "user", "content": "a cat"}]], batch_size=2, **options) == alone


def test_features_of_texts_are_the_base_models(pipes, folders):
    pipe = pipes("feature-extraction")
    assert type(pipe.model) is MMModel
    texts = ["hello there", "a cat"]
    alone = [pipe(words, return_tensors=True) for words in texts]
    ids = pipe.tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        assert difference(alone[0], pipe.model(**ids).last_hidden_state) < 1e-5
    batched = pipe(texts, batch_size=2, return_tensors=True)
    for one, other in zip(alone, batched, strict=True):  # padded on the left
        assert difference(one, other[:, -one.shape[1] :]) < 1e-4


def test_features_of_pictures_are_the_states_of_their_placeholders(pipes):
    pipe = pipes("image-feature-extraction")
    model, pixels = pipe.model, pipe.image_processor(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[model.config.image_token_id]]), pixel_values=pixels)
    features = pipe(picture(), return_tensors=True)
    assert difference(features, expected.last_hidden_state) < 1e-6 and features.shape == (1, 1, 32)
    pooled = pipe(picture(), pool=True, return_tensors=True)
    assert difference(pooled, expected.last_hidden_state[:, -1]) < 1e-6
    pictures = [picture(color) for color in COLORS]
    batched = pipe(pictures, batch_size=2, return_tensors=True)
    alone = [pipe(p, return_tensors=True) for p in pictures]
    assert max(difference(one, other) for one, other in zip(alone, batched, strict=True)) < 1e-5
    assert difference(batched[0], batched[1]) > 1e-3


def test_media_without_text_are_read_through_their_placeholders_padded_on_the_left():
    model, processor = build()
    media = processor(images=[[picture()], []], audio=[[], [(noise(1.5), RATE)]], return_tensors="pt")
    media = {name: value for name, value in media.items() if name not in ("input_ids", "attention_mask")}
    image_id, audio_id, padding = model.config.image_token_id, model.config.audio_token_id, 0
    ids = {
        "input_ids": torch.tensor([[padding, image_id], [audio_id, audio_id]]),
        "attention_mask": torch.tensor([[0, 1], [1, 1]]),
    }
    with torch.no_grad():
        expected, outputs = model.model(**ids, **media), model.model(**media)
        assert difference(model(**media).logits[:, -1], model(**ids, **media).logits[:, -1]) < 1e-5
    assert difference(outputs.pooler_output, expected.last_hidden_state[:, -1]) < 1e-5
    assert expected.pooler_output is None
    with pytest.raises(ValueError, match="Pass input_ids or inputs_embeds"):
        model()


# ---- Other models, and where the pipelines come from ----------------------------------------------------------------


def test_other_models_get_the_stock_pipeline_unchanged(tmp_path):
    words = make_wordpiece()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).eval()
    in_memory = pipeline("text-classification", model=model, tokenizer=words, device="cpu")
    assert type(in_memory) is TextClassificationPipeline
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    pipe = pipeline("sentiment-analysis", str(tmp_path), device="cpu")
    assert type(pipe) is TextClassificationPipeline and pipe.processor is None
    assert pipe("hello there")[0]["score"] == pytest.approx(in_memory("hello there")[0]["score"])


def test_tasks_of_our_models_alone_refuse_other_models():
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, bos_token_id=0, eos_token_id=0))
    _, processor = build()
    with pytest.raises(ValueError, match="serves models of the type 'mm', got a GPT2LMHeadModel"):
        pipeline("visual-question-answering", model=other, processor=processor, device="cpu")


def test_a_saved_pipeline_loads_again(pipes, tmp_path):
    pipe = pipes("automatic-speech-recognition")
    pipe.save_pretrained(tmp_path)
    again = pipeline("automatic-speech-recognition", str(tmp_path), device="cpu")
    assert again(noise(), **GREEDY) == pipe(noise(), **GREEDY)


def test_a_saved_folder_brings_the_pipelines_but_its_config_does_not_name_them(folders):
    """The config of the package would else make `pipeline` ask for `trust_remote_code`, which it does not need."""
    assert (folders / "model" / "pipelines.py").read_text() == (ROOT / "modeling_mm/pipelines.py").read_text()
    assert "custom_pipelines" not in json.loads((folders / "model" / "config.json").read_text())
    assert MMConfig.from_pretrained(folders / "model").custom_pipelines == {}


def test_pipelines_that_a_user_registered_are_kept(tmp_path):
    config, registered = build()[0].config, {"my-task": {"impl": "mine.MyPipeline", "pt": ["AutoModel"]}}
    config.custom_pipelines = registered
    config.save_pretrained(tmp_path)
    assert MMConfig.from_pretrained(tmp_path).custom_pipelines == registered


def rows_of(task: str) -> list:
    """Three rows for a task, and how they are answered: see `OPTIONS`."""
    rows = {
        "image-text-to-text": list(CHATS.values())[1:4],
        "any-to-any": list(CHATS.values())[3:],
        "automatic-speech-recognition": [noise(seed=i) for i in range(3)],
        "text-generation": ["hello there", "a cat", "a dog and a bird"],
        "feature-extraction": ["hello there", "a cat", "a dog and a bird"],
        "image-feature-extraction": [picture(color) for color in COLORS],
        "text-classification": [CLASSIFIED["both"], CLASSIFIED["text"], CHATS["both"]],
        "visual-question-answering": [{"image": picture(color), "question": "a cat?"} for color in COLORS],
        "multimodal-translation": [{"text": "a cat", "image": picture(color), "tgt_lang": "fr"} for color in COLORS],
    }
    return rows[task]


GENERATED = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
OPTIONS: dict[str, dict] = {
    "image-text-to-text": {"generate_kwargs": GREEDY, "return_full_text": False},
    "any-to-any": {"generate_kwargs": GREEDY, "return_full_text": False},
    "automatic-speech-recognition": {"chunk_length_s": 0.5, **GREEDY},
    "text-generation": GENERATED,
    "feature-extraction": {},
    "image-feature-extraction": {},
    "text-classification": {"top_k": None},
    "visual-question-answering": GREEDY,
    "multimodal-translation": GREEDY,
}


def said(pipe, task: str, inputs, **options) -> list:
    return list(pipe(inputs, **{**OPTIONS[task], **options}))


def numbers(results) -> torch.Tensor:
    """Scores and features, flat, of nested lists."""
    if isinstance(results, dict):
        results = [results["score"]]
    return torch.cat([numbers(r) for r in results]) if isinstance(results, list) else torch.tensor([results])


@pytest.mark.parametrize("task", OPTIONS)
def test_a_key_dataset_is_answered_like_its_rows_for_every_task(pipes, task):
    pipe, rows = pipes(task), rows_of(task)
    alone = [pipe(row, **OPTIONS[task]) for row in rows]
    streamed = pipe(KeyDataset([{"x": row} for row in rows], "x"), batch_size=2, **OPTIONS[task])
    assert not isinstance(streamed, list)
    if task.endswith("feature-extraction"):  # a batch is padded on the left
        for one, other in zip(alone, streamed, strict=True):
            assert difference(torch.tensor(one)[0], torch.tensor(other)[0, -len(one[0]) :]) < 1e-4
    elif task == "text-classification":
        for one, other in zip(alone, streamed, strict=True):
            assert [row["label"] for row in one] == [row["label"] for row in other]
            assert difference(numbers(one), numbers(other)) < 1e-5
    else:
        assert list(streamed) == alone


@pytest.mark.parametrize("task", OPTIONS)
def test_every_pipeline_runs_in_bfloat16(folders, task):
    name = "classifier" if task == "text-classification" else "model"
    pipe = pipeline(task, str(folders / name), device="cpu", dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16
    first = rows_of(task)[0]
    results = said(pipe, task, [first, first], batch_size=2)
    assert len(results) == 2 and results[0] == results[1]
    if "generate_kwargs" not in OPTIONS[task] and not OPTIONS[task].get("max_new_tokens"):
        assert numbers(results).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", OPTIONS)
def test_every_pipeline_runs_on_a_device(folders, pipes, task, dtype):
    name = "classifier" if task == "text-classification" else "model"
    pipe = pipeline(task, str(folders / name), device="cuda:0", dtype=dtype)
    assert pipe.model.device.type == "cuda"
    results = said(pipe, task, rows_of(task), batch_size=2)
    assert len(results) == 3
    if dtype == torch.float32 and ("generate_kwargs" in OPTIONS[task] or "max_new_tokens" in OPTIONS[task]):
        assert results == said(pipes(task), task, rows_of(task), batch_size=2)


ORDERS = {
    "before transformers": "import modeling_mm; from transformers import pipeline",
    "after transformers": "import transformers, modeling_mm; from transformers import pipeline",
    "after the tables were read": (
        "import transformers; tiny = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9); "
        "transformers.AutoModel.from_config(tiny); import modeling_mm; from transformers import pipeline"
    ),
    "after the pipelines": "from transformers import pipeline; import modeling_mm",
}
CHECK = """
import sys
from transformers.pipelines import check_task
from transformers.pipelines.automatic_speech_recognition import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
found = {task: check_task(task)[1] for task in
         ("automatic-speech-recognition", "visual-question-answering", "vqa", "multimodal-translation")}
assert all("modeling_mm.pipeline" in str(task["impl"]) for task in found.values()), found
assert MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES["mm"] == "MMForConditionalGeneration"
assert check_task("fill-mask")[1]["impl"] is not None
assert type(pipeline("vqa", sys.argv[1], device="cpu")).__name__ == "MMVisualQuestionAnsweringPipeline"
print("registered")
"""


@pytest.mark.parametrize("order", ORDERS)
def test_the_registry_knows_our_tasks_in_every_order_of_imports(folders, order):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", ORDERS[order] + CHECK, str(folders / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("registered\n"), done.stdout + done.stderr[-3000:]


# Run in this process, and where the package cannot be imported.
ANSWERS = """
def answers(folders, **kwargs):
    import numpy as np
    from PIL import Image
    from transformers import pipeline

    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 1}
    picture = Image.new("RGB", (20, 24), "red")
    sound = np.sin(np.arange(30000) / 20).astype("float32")
    content = [{"type": "image", "image": picture}, {"type": "audio", "audio": (sound, 16000)},
               {"type": "text", "text": "hello"}]
    chat = [{"role": "user", "content": content}]

    def make(task, name="model"):
        return pipeline(task, str(folders / name), device="cpu", **kwargs)

    said = {}
    for task in ("image-text-to-text", "any-to-any"):
        rows = make(task)([chat, chat], batch_size=2, generate_kwargs=dict(greedy), return_full_text=False)
        said[task] = [row[0]["generated_text"] for row in rows]
    said["long speech"] = make("automatic-speech-recognition")(sound, chunk_length_s=1.0, batch_size=2, **greedy)
    generated = make("text-generation")("hello", max_new_tokens=4, do_sample=False)
    said["text-generation"] = generated[0]["generated_text"]
    said["features"] = np.round(np.array(make("feature-extraction")("hello")), 3).tolist()
    said["image features"] = np.round(np.array(make("image-feature-extraction")(picture)), 3).tolist()
    row = {"text": "hello", "images": picture, "audio": (sound, 16000)}
    classified = make("text-classification", "classifier")(row)
    said["class"] = [classified["label"], round(classified["score"], 3)]
    said["question"] = make("visual-question-answering")(picture, "a cat?", **greedy)
    said["translation"] = make("multimodal-translation")("a cat", image=picture, tgt_lang="fr", **greedy)
    return said
"""
REMOTE = (
    """
import json
from pathlib import Path
"""
    + ANSWERS
    + """
folders = Path(FOLDERS)
said = answers(folders, trust_remote_code=True)
from transformers import pipeline
pipe = pipeline("automatic-speech-recognition", str(folders / "model"), device="cpu", trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules."), type(pipe).__module__
pipe.save_pretrained(folders / "again")  # what was loaded is saved with its pipelines again
pipeline("visual-question-answering", str(folders / "again"), device="cpu", trust_remote_code=True)
try:
    pipeline("visual-question-answering", str(folders / "model"), device="cpu", trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
import sys
assert "modeling_mm" not in sys.modules
print(json.dumps(said))
"""
)


def test_every_task_gives_the_same_from_a_folder_where_the_package_cannot_be_imported(folders, tmp_path):
    namespace: dict = {}
    exec(ANSWERS, namespace)
    expected = json.loads(json.dumps(namespace["answers"](folders)))
    printed = run_without_package(f"FOLDERS = {str(folders)!r}\n" + REMOTE, tmp_path)
    assert json.loads(printed.splitlines()[-1]) == expected
