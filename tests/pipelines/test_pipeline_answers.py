"""pipeline_answers.py: questions about images, and translations with media."""

import pytest
import torch
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm.prompts import DEFAULT_TRANSLATION_PROMPT
from tests.fakes.pipeline_parts import COLORS, GREEDY, answer_of, audio, chat, image, noise
from tests.fakes.processor_parts import RATE, picture


def test_questions_about_images_are_answered(pipes):
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


def test_one_question_may_be_about_several_images(pipes):
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
    "no file": ({"image": "no/such.png", "question": "a?"}, {}, "expected an existing file"),
}


@pytest.mark.parametrize("name", WRONG_QUESTIONS)
def test_a_wrong_question_is_a_value_error(pipes, name):
    inputs, options, message = WRONG_QUESTIONS[name]
    with pytest.raises(ValueError, match=message):
        pipes("visual-question-answering")(inputs, **options)


def test_a_stream_of_images_takes_one_question(pipes):
    with pytest.raises(ValueError, match="expected one question for a dataset"):
        pipes("visual-question-answering")((p for p in [picture()]), ["a?", "b?"])


def prompt_of(words: str, language: str) -> str:
    return DEFAULT_TRANSLATION_PROMPT.format(language=language, text=words)


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
    questions.append("Translate into French:")
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
    "nothing to translate": ({"image": picture()}, {"tgt_lang": "fr"}, "a dict to translate"),
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
