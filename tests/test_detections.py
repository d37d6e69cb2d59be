"""Places in the vocabulary and in answers: tokens are added, scores follow them, others' forms come out."""

import math
from types import SimpleNamespace

import pytest
import torch

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor
from modeling_mm.boxes import ImageObject, bins_to_place, write_objects
from modeling_mm.configuration_mm import LOCATION_TOKENS, first_location_id
from modeling_mm.detections import (
    add_location_tokens,
    generated_tokens,
    parse_tokens,
    to_pipeline,
    to_supervision,
    to_torchvision,
)
from tests.fakes.encoder_decoders import captioner
from tests.fakes.processor_parts import ids, make, make_bpe, make_wordpiece
from tests.fakes.tiny import difference, draw, gpt2, gpt2_config, open_gates, vit

SIZE = (200, 100)
ANSWER = "cat<loc_10><loc_20><loc_30><loc_40>"


def pointing() -> MMProcessor:
    processor = make()
    processor.add_location_tokens()
    return processor


def for_tokenizer(processor: MMProcessor, **fields) -> MMForConditionalGeneration:
    """A model of the processor's vocabulary, whose media count."""
    text = gpt2(vocab_size=300)
    return open_gates(MMForConditionalGeneration.from_text_vision_audio_pretrained(
        text, vision=vit(), tokenizer=processor, **fields))  # fmt: skip


# ---- The tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [make_bpe, make_wordpiece])
def test_a_place_is_one_token_a_coordinate_and_comes_back(build):
    tokenizer = build()
    before = len(tokenizer)
    first = add_location_tokens(tokenizer)
    assert (first, len(tokenizer)) == (before, before + 1000)
    assert add_location_tokens(tokenizer) == first and len(tokenizer) == before + 1000, "once"
    encoded = tokenizer("a cat<loc_0><loc_999><loc_5><loc_50>", add_special_tokens=False).input_ids
    assert encoded[-4:] == [first, first + 999, first + 5, first + 50]
    assert tokenizer.decode(encoded, skip_special_tokens=True).replace(" ", "") == (
        "acat<loc_0><loc_999><loc_5><loc_50>"
    )


def test_old_texts_have_the_same_tokens():
    texts = ["What do you see? A red square.", "<loc", "loc_5", "<loc_1000>"]
    assert [ids(make(), text) for text in texts] == [ids(pointing(), text) for text in texts]


def test_a_chat_keeps_places_of_users_and_assistants():
    """Unlike control tokens, which are plain text in a message."""
    processor = pointing()
    chat = [{"role": "user", "content": "see <loc_7>?"}, {"role": "assistant", "content": ANSWER}]
    batch = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    first = first_location_id(processor.tokenizer.get_vocab())
    spoken = batch["input_ids"][batch["assistant_masks"].bool()].tolist()
    assert [each - first for each in spoken if each >= first] == [10, 20, 30, 40]
    assert first + 7 in batch["input_ids"][0].tolist()


def test_a_saved_processor_has_them(tmp_path):
    processor = pointing()
    processor.save_pretrained(tmp_path)
    again = MMProcessor.from_pretrained(tmp_path)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert ids(again, ANSWER) == ids(processor, ANSWER)


def test_half_of_them_is_an_error():
    tokenizer = make_bpe()
    tokenizer.add_tokens(list(LOCATION_TOKENS[:7]))
    with pytest.raises(ValueError, match=r"has 7 of the 1000 location tokens"):
        add_location_tokens(tokenizer)
    with pytest.raises(ValueError, match=r"do not follow each other"):
        first_location_id({token: -number for number, token in enumerate(LOCATION_TOKENS)})


# ---- The model ------------------------------------------------------------------------------------------------------


def test_a_model_joined_with_a_processor_that_has_them_declares_them():
    processor = pointing()
    config = for_tokenizer(processor).config
    assert config.location_token_id == ids(processor, "<loc_0>")[0]
    assert config.text_config.vocab_size == len(processor.tokenizer)
    assert for_tokenizer(make()).config.location_token_id is None


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_other_tokens_are_unchanged(tied, tmp_path):
    processor = make()
    model = for_tokenizer(processor, tie_word_embeddings=tied)
    image = {"pixel_values": draw(1, 1, 3, 16, 16, seed=3)}
    text = processor(text="<|image|>a cat", media_tokens={"image": [[1]]}, return_tensors="pt")
    batch = {**text, **image, "image_mask": torch.ones(1, 1, dtype=torch.bool)}
    with torch.no_grad():
        before = model(**batch).logits
        first = processor.add_location_tokens()
        model.add_location_tokens(processor)
        after = model(**batch).logits
    assert after.shape[-1] == before.shape[-1] + 1000 == len(processor.tokenizer)
    assert difference(after[..., : before.shape[-1]], before) < 1e-6, "a larger product is summed in another order"
    table = model.get_input_embeddings().weight[first:].detach()
    near, far = (torch.cosine_similarity(table[:500], table[i : 500 + i]).mean() for i in (1, 400))
    assert len(table.unique(dim=0)) == 1000 and near > 0.5 > far, "distinct, and alike where they are near"
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    if not tied:
        assert torch.std(model.lm_head.weight[first:]) > 0.5 * torch.std(model.lm_head.weight[:first])
    changed = table.clone() + 1
    with torch.no_grad():
        model.get_input_embeddings().weight[first:] = changed
    model.add_location_tokens(processor)
    assert torch.equal(model.get_input_embeddings().weight[first:], changed), "what is learned stays"
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.location_token_id == first
    assert difference(again(**batch).logits, model(**batch).logits) == 0


@pytest.mark.parametrize("head", [MMModel, MMForSequenceClassification])
def test_models_without_a_language_head_have_them_too(head):
    processor = make()
    model = head.from_text_vision_audio_pretrained(gpt2(vocab_size=300), tokenizer=processor)
    processor.add_location_tokens()
    model.add_location_tokens(processor)
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)


def test_a_model_and_a_tokenizer_that_do_not_fit_are_refused():
    processor = make()
    model = for_tokenizer(processor)
    with pytest.raises(ValueError, match=r"The tokenizer lacks <loc_0>. Call `processor.add_location_tokens"):
        model.add_location_tokens(processor)
    processor.tokenizer.add_tokens("more")
    processor.add_location_tokens()
    model.add_location_tokens(processor)
    with pytest.raises(ValueError, match=r"The model has its location tokens from 307 on, the tokenizer from 306 on"):
        model.add_location_tokens(pointing())


def test_locations_outside_the_vocabulary_or_on_other_tokens_are_refused():
    make_config = MMConfig.from_text_vision_audio_configs
    with pytest.raises(ValueError, match=r"location_token_id is 97, and 1000 location tokens follow .* has 97 tokens"):
        MMForConditionalGeneration(make_config(gpt2_config(), location_token_id=97))
    with pytest.raises(ValueError, match=r"location_token_id must not be negative, got -1"):
        make_config(gpt2_config(), location_token_id=-1)
    with pytest.raises(ValueError, match=r"_token_id lies among the location tokens, 1500 to 2499"):
        make_config(gpt2_config(vocab_size=2000), location_token_id=1500)


def test_what_is_suppressed_is_written_from_now_on():
    processor = make()
    model = for_tokenizer(processor)
    first = processor.add_location_tokens()
    model.config.suppressed_token_ids = [5, first, first + 999]
    model.add_location_tokens(processor)
    assert model.config.suppressed_token_ids == [5]


# ---- Answers --------------------------------------------------------------------------------------------------------


def outputs_of(processor, texts: list[str], prompt: int = 3, chance: float = 0.5, name: str = "scores"):
    """Return outputs of `generate` for these answers, each of whose tokens has one probability."""
    rows = [ids(processor, text) for text in texts]
    length = max(map(len, rows))
    rows = torch.tensor([row + [processor.tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    size = len(processor.tokenizer)
    logits = torch.full((length, *rows.shape[:1], size), math.log((1 - chance) / (size - 1)))
    logits.scatter_(-1, rows.T[..., None], math.log(chance))
    sequences = torch.cat([torch.full((len(rows), prompt), ids(processor, "<loc_3>")[0]), rows], 1)
    return SimpleNamespace(sequences=sequences, **{"scores": None, "logits": None, name: tuple(logits)})


@pytest.mark.parametrize("name", ["scores", "logits"])
def test_answers_become_boxes_with_scores(name):
    processor = pointing()
    outputs = outputs_of(processor, [f"{ANSWER}<|end|>", "nothing<|end|>"], name=name)
    one, none = processor.post_process_grounded_object_detection(outputs, target_sizes=[(100, 200), (50, 50)])
    assert one["text_labels"] == ["cat"] and one["problems"] == [] and none["problems"] == []
    assert torch.allclose(one["boxes"], torch.tensor([[2.1, 2.05, 6.1, 4.05]])), "of width 200 and height 100"
    assert torch.allclose(one["scores"], torch.tensor([0.5])) and none["boxes"].shape == (0, 4)
    assert (
        processor.post_process_grounded_object_detection(outputs, 0.6, [(100, 200), (50, 50)])[0]["boxes"].numel() == 0
    )
    found = processor.post_process_object_detection(outputs, target_sizes=torch.tensor([[100, 200], [50, 50]]),
                                                    names={7: "dog", 9: "cat"})  # fmt: skip
    assert found[0]["labels"].tolist() == [9] and found[0]["labels"].dtype == torch.int64
    (other, _) = processor.post_process_object_detection(outputs, target_sizes=[(100, 200), (50, 50)], names=["dog"])
    assert other["labels"].tolist() == [] and other["problems"] == ["'cat' is not among the names"]


def test_the_score_is_the_geometric_mean_of_an_objects_tokens_and_the_best_comes_first():
    processor = pointing()
    text = "<loc_1><loc_1><loc_2><loc_2><loc_3><loc_3><loc_4><loc_4><|end|>"
    label = ids(processor, "cat")
    tokens = [*label, *ids(processor, text)]
    chances = [0.25] * len(label) + [0.5] * 4 + [1.0] * 4 + [0.9]
    first, second = parse_tokens(processor.tokenizer, tokens, SIZE, chances).objects
    assert first.place == bins_to_place([3, 3, 4, 4], SIZE) and second.place == bins_to_place([1, 1, 2, 2], SIZE)
    n = len(label)
    assert math.isclose(first.score, 0.25 ** (n / (n + 4)))
    assert math.isclose(second.score, (0.25**n * 0.5**4) ** (1 / (n + 4)))
    unscored = parse_tokens(processor.tokenizer, tokens, SIZE)
    assert [each.score for each in unscored.objects] == [None, None]


def test_what_stands_behind_the_end_is_not_read():
    processor = pointing()
    text = f"{ANSWER}<|end|>{ANSWER}"
    assert len(parse_tokens(processor.tokenizer, ids(processor, text), SIZE).objects) == 1


def test_a_cut_answer_is_reported_and_its_whole_part_returned(caplog):
    processor = pointing()
    outputs = outputs_of(processor, [f"{ANSWER}bird<loc_1><loc_2>"])
    (found,) = processor.post_process_grounded_object_detection(outputs, target_sizes=[(100, 200)])
    assert found["text_labels"] == ["cat"]
    assert found["problems"] == [
        "'bird' has 2 location tokens of the 4 of a box: the answer is cut",
        "the answer has no end: it was cut, raise `max_new_tokens`",
    ]


def test_boxes_without_a_label_take_the_one_that_was_asked_for():
    processor = pointing()
    outputs = outputs_of(processor, ["<loc_1><loc_1><loc_2><loc_2><|end|>"])
    named = processor.post_process_grounded_object_detection(outputs, target_sizes=[SIZE], label="fig")
    assert named[0]["text_labels"] == ["fig"]
    assert processor.post_process_grounded_object_detection(outputs, target_sizes=[SIZE])[0]["text_labels"] == [""]


def test_bad_outputs_are_refused():
    processor = pointing()
    outputs = outputs_of(processor, [ANSWER])
    with pytest.raises(ValueError, match=r"2 target_sizes were given for 1 answers"):
        processor.parse_answers(outputs, [SIZE, SIZE])
    outputs.scores = None
    with pytest.raises(ValueError, match=r"neither scores nor logits. Pass output_scores=True"):
        processor.parse_answers(outputs, [SIZE])
    assert processor.parse_answers(outputs.sequences[:, 3:], [SIZE])[0].objects[0].score is None
    with pytest.raises(ValueError, match=r"The tokenizer lacks <loc_0>"):
        make().parse_answers(torch.tensor([[5]]), [SIZE])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_probabilities_are_those_that_transformers_says(options):
    processor = pointing()
    model = for_tokenizer(processor).eval()
    torch.manual_seed(0)
    prompt = processor(text=["a cat", "hello there, you"], return_tensors="pt")
    outputs = model.generate(
        **prompt, **options, max_new_tokens=6, output_scores=True, return_dict_in_generate=True, pad_token_id=0
    )
    tokens, ours = generated_tokens(outputs)
    beams = getattr(outputs, "beam_indices", None)
    theirs = model.compute_transition_scores(outputs.sequences, outputs.scores, beams, normalize_logits=True).exp()
    assert torch.equal(tokens, outputs.sequences[:, prompt["input_ids"].shape[1] :])
    real = tokens != 0
    assert ours.shape == theirs.shape and torch.allclose(ours[real], theirs[real], atol=1e-5)


# ---- Forms of others ------------------------------------------------------------------------------------------------

OBJECTS = [ImageObject("cat", (1.2, 2.0, 3.9, 4.0), 0.25), ImageObject("dog", (5.0, 6.0, 7.0, 8.0), 0.75)]


def test_torchvision_and_pipelines():
    tensors = to_torchvision(OBJECTS, ["dog", "cat"])
    assert {name: (list(t.shape), t.dtype) for name, t in tensors.items()} == {
        "boxes": ([2, 4], torch.float32), "labels": ([2], torch.int64), "scores": ([2], torch.float32)
    }  # fmt: skip
    assert tensors["labels"].tolist() == [1, 0]
    assert to_torchvision([], ["dog"])["boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match=r"'dog' at .* is not among the 1 names"):
        to_torchvision(OBJECTS, ["cat"])
    with pytest.raises(ValueError, match=r"is a point, not a box"):
        to_torchvision([ImageObject("cat", (1.0, 2.0))], ["cat"])
    assert to_pipeline(OBJECTS) == [
        {"score": 0.75, "label": "dog", "box": {"xmin": 5, "ymin": 6, "xmax": 7, "ymax": 8}},
        {"score": 0.25, "label": "cat", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}},
    ]
    assert len(to_pipeline(OBJECTS, threshold=0.5)) == len(to_pipeline(OBJECTS, top_k=1)) == 1
    assert to_pipeline([*OBJECTS, ImageObject("eye", (1.0, 2.0))], threshold=0.8) == []


def test_supervision_takes_its_form():
    supervision = pytest.importorskip("supervision")
    found = supervision.Detections(**to_supervision(OBJECTS, ["dog", "cat"]))
    assert len(found) == 2 and found.class_id.tolist() == [1, 0] and list(found["class_name"]) == ["cat", "dog"]
    assert len(supervision.Detections(**to_supervision([], ["dog"]))) == 0


def test_a_written_object_is_read_with_its_place():
    processor = pointing()
    text = write_objects([ImageObject("a cat", (20.0, 10.0, 60.0, 50.0))], SIZE)
    (found,) = parse_tokens(processor.tokenizer, ids(processor, f"{text}<|end|>"), SIZE).objects
    assert found.label == "a cat" and found.place == pytest.approx((20.1, 10.05, 60.1, 50.05))


def test_a_converted_model_writes_them_from_then_on():
    """Tokens that a conversion adds are never generated; those of `add_location_tokens` are."""
    original = captioner()
    rows = original.decoder.config.vocab_size

    class Tokenizer:
        vocab_size, pad_token_id = rows, None
        names = [f"<|{name}|>" for name in ("image", "audio", "system", "user", "assistant", "end")]
        tokens = {token: rows + number for number, token in enumerate([*names, *LOCATION_TOKENS])}

        def get_vocab(self) -> dict[str, int]:
            return self.tokens

        def __len__(self) -> int:
            return rows + len(self.tokens)

    model = MMForConditionalGeneration.from_encoder_decoder(original, tokenizer=Tokenizer())
    assert model.config.location_token_id is None and rows + 6 in model.config.suppressed_token_ids
    model.add_location_tokens(Tokenizer())
    assert model.config.location_token_id == rows + 6
    assert model.config.suppressed_token_ids == list(range(rows, rows + 6))
