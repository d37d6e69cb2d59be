"""Targets: words and classes as scores, with errors for what cannot be explained."""

import pytest
import torch

from modeling_mm import MMForSequenceClassification
from modeling_mm.explain import blank_media, explain, make_target, places_of
from modeling_mm.explain.target import find_label
from tests.fakes.tiny import gpt2, joined, open_gates, vit, whisper
from tests.fakes.tiny_chats import CHATS, chat_model, processor


def prompt(number: int) -> list:
    return CHATS[number]["messages"][:1]


@pytest.fixture(scope="module")
def writer():
    model = chat_model()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def classifier():
    text = gpt2(vocab_size=len(processor().tokenizer), n_positions=128)
    parts = {"vision": vit(image_size=8, patch_size=4), "audio": whisper(max_source_positions=50)}
    labels = {"num_labels": 3, "id2label": {0: "one", 1: "two", 2: "three"}}
    model = joined(text, **parts, tokenizer=processor(), cls=MMForSequenceClassification, num_labels=3)
    model.config.id2label = labels["id2label"]
    model.set_attn_implementation("eager")
    return open_gates(model)


def answer(model, text: str) -> list[int]:
    return processor().tokenizer(text, add_special_tokens=False).input_ids


def test_the_score_of_a_word_is_the_mean_log_probability_of_its_tokens(writer) -> None:
    ids = answer(writer, "a cat")
    target = make_target(writer, processor(), prompt(4), answer_ids=ids)
    assert target.words == ["a", "cat"]
    encoded = processor().apply_chat_template(
        [prompt(4)], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    length = encoded["input_ids"].shape[1]
    whole = {**encoded, "input_ids": torch.cat([encoded["input_ids"], torch.tensor([ids])], 1)}
    del whole["attention_mask"]
    with torch.no_grad():
        logs = writer(**whole).logits[0].log_softmax(-1)
    tokens = [logs[length - 1 + place, token] for place, token in enumerate(ids)]
    first, last = (torch.stack([tokens[i] for i in range(*span)]).mean() for span in target.spans)
    torch.testing.assert_close(target.scores_in_chunks(target.media)[0], torch.stack([first, last]))
    assert target.positions[0][0] == length - 1 == target.length - len(ids)


def test_words_of_the_prompt_are_those_of_its_text(writer) -> None:
    target = make_target(writer, processor(), prompt(4), answer_ids=answer(writer, "a"))
    assert target.prompt_words == ["Look", "and", "listen."]
    ids = target.text["input_ids"][0]
    assert [processor().decode(ids[start:stop]).strip() for start, stop in target.prompt_spans] == target.prompt_words
    masks = target.without_words(torch.tensor([[True, False, True]]))
    hidden = [start for start in range(target.length) if not masks[0, start]]
    assert hidden == [*range(*target.prompt_spans[0]), *range(*target.prompt_spans[2])]


def test_the_score_of_a_class_is_its_log_probability(classifier) -> None:
    target = make_target(classifier, processor(), prompt(4), label="three")
    with torch.no_grad():
        logits = classifier(**target.text, **target.media).logits
    torch.testing.assert_close(target.scores_in_chunks(target.media), logits.log_softmax(-1)[:, 2:])
    likeliest = make_target(classifier, processor(), prompt(4))
    assert likeliest.words == [["one", "two", "three"][logits.argmax()]]
    assert make_target(classifier, processor(), prompt(4), label=2).words == ["three"]


def test_scores_of_other_problems(classifier, monkeypatch) -> None:
    target = make_target(classifier, processor(), prompt(4), label=1)
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    monkeypatch.setattr(classifier.config, "problem_type", "multi_label_classification")
    torch.testing.assert_close(target.probabilities(target.read_scores(logits)), logits[:, 1:2].sigmoid())
    monkeypatch.setattr(classifier.config, "problem_type", "regression")
    torch.testing.assert_close(target.probabilities(target.read_scores(logits)), logits[:, 1:2])


@pytest.mark.parametrize("label", [3, -1, "four"])
def test_a_class_out_of_range_is_refused_with_the_classes(classifier, label) -> None:
    with pytest.raises(ValueError, match=f"{label!r} is out of range: .* 3 classes, 0 to 2: one, two, three"):
        explain(classifier, processor(), prompt(4), label=label)
    assert find_label(classifier, 2) == find_label(classifier, "three") == 2


def test_what_cannot_be_explained_is_refused(writer, classifier) -> None:
    with pytest.raises(ValueError, match="no image and no audio to attend to"):
        explain(classifier, processor(), [{"role": "user", "content": "hello"}], method="occlusion")
    with pytest.raises(ValueError, match="label is 1, but MMForConditionalGeneration writes answers"):
        explain(writer, processor(), prompt(4), label=1)
    with pytest.raises(ValueError, match=r"no method 'oclusion' of explaining\. Did you mean 'occlusion'"):
        explain(writer, processor(), prompt(4), method="oclusion")


@pytest.mark.parametrize("method", ["attention", "gradient-attention", "occlusion"])
def test_fused_attention_is_refused_by_the_methods_that_need_weights_alone(classifier, method) -> None:
    classifier.set_attn_implementation({"text_config": "sdpa"})
    try:
        if method == "occlusion":
            assert explain(classifier, processor(), prompt(0), method).patches.shape == (1, 1, 2, 2)
        else:
            with pytest.raises(ValueError, match=r"'sdpa', which keeps no weights.*attn_implementation=\"eager\""):
                explain(classifier, processor(), prompt(0), method)
    finally:
        classifier.set_attn_implementation("eager")


def test_places_are_as_fine_as_the_tokens_of_the_encoders(writer) -> None:
    target = make_target(writer, processor(), prompt(4), answer_ids=answer(writer, "a"))
    places = places_of(writer, target.media)
    assert places.grid == (1, 2, 2) and places.leading == 1
    assert len(places.moments) == 25 and places.moments[-1] == (0, 48, 50)  # half a second of windows of a second
    hidden = torch.zeros(2, places.count, dtype=torch.bool)
    hidden[0, 1] = hidden[1, -1] = True
    media = places.hide(hidden, target.media, {name: tensor + 7 for name, tensor in blank_media(target.media).items()})
    changed = (media["pixel_values"] != target.media["pixel_values"]).any(2)[:, 0]  # (2, 8, 8)
    assert changed[0, :4, 4:].all() and changed.sum() == 16
    frames = (media["input_features"] != target.media["input_features"]).any(2)[:, 0]
    assert frames[1].nonzero().flatten().tolist() == [48, 49] and not frames[0].any()
