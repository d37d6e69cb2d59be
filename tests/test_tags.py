"""tags.py: which tags are shown, as which tokens; their texts and their classifier; at home in the whole model."""

import pytest
import torch

from modeling_mm import MMConfig, MMForConditionalGeneration
from modeling_mm.tags import Tagger
from tests.fakes.tiny import (
    AUDIO,
    END,
    IMAGE,
    WIDTH,
    difference,
    gpt2_config,
    inputs,
    joined,
    opened,
    seeded,
    vit,
    vit_config,
    whisper_config,
)

W, TAGS, LENGTH = 24, 5, 3  # the encoder's width, as in vit_config; tags and text tokens of each
TEXTS = ["cat", "small dog", "bird", "a very small house", "tree"]
FIELDS = {"vision_tags": TAGS, "vision_tag_length": LENGTH, "vision_tag_choices": 2}


class Letters:
    """A tokenizer whose tokens are words, numbered by their length and first letter."""

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(word[0]) - 95 + len(word) for word in text.split()] for text in texts]}


IDS = [[7, END, END], [25, 8, END], [7, END, END], [3, 27, 25], [25, END, END]]


def tagger(**fields) -> Tagger:
    joint = MMConfig.from_text_vision_audio_configs(gpt2_config(), vit_config(), **{**FIELDS, **fields})
    module = seeded(lambda: Tagger(joint, "vision", W))
    module.ids.copy_(torch.tensor(IDS))
    return module


def words() -> torch.nn.Embedding:
    return seeded(lambda: torch.nn.Embedding(END + 1, WIDTH))


def seeing(**fields) -> MMForConditionalGeneration:
    model = opened(**{**FIELDS, **fields})
    model.set_tags("image", Letters(), TEXTS)
    return model


def media(items: int, tokens: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(items, tokens, WIDTH), torch.ones(items, tokens, dtype=torch.bool)


def normed(vector: torch.Tensor) -> torch.Tensor:
    return (vector - vector.mean()) / (vector.var(unbiased=False) + 1e-5).sqrt()


def test_tags_are_their_words_by_probability_behind_the_words_before():
    module, embedding, own = tagger(), words(), media(2)
    states, mask = torch.randn(2, 4, W), torch.tensor([[True, True, True, False], [True, True, True, True]])
    tokens, real = module(states, mask, own, embedding)
    assert tokens.shape == (2, 2 + 2 * LENGTH, WIDTH) and real.all()
    assert torch.equal(tokens[:, :2], own[0])
    for item, count in enumerate((3, 4)):
        chances = module.score(states[item, :count].mean(0)).softmax(-1)
        order = chances.argsort(descending=True)[:2].tolist()
        for place, tag in enumerate(order):
            for number, token_id in enumerate(IDS[tag]):
                expected = normed(embedding.weight[token_id])
                if number:
                    before = normed(embedding.weight[IDS[tag][number - 1]])
                    expected = expected + torch.cat([before[WIDTH // 2 :], before[: WIDTH // 2]])
                expected = chances[tag] * expected + module.places.weight[place * LENGTH + number]
                assert difference(tokens[item, 2 + place * LENGTH + number], expected) < 1e-5


def test_masked_tokens_change_no_tag_and_an_absent_item_has_none():
    module, embedding, own = tagger(vision_tag_rank=3), words(), media(3)
    states, mask = torch.randn(3, 4, W), torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    tokens, real = module(states, mask, own, embedding)
    other, _ = module(states.masked_fill(~mask[..., None], 1e4), mask, own, embedding)
    assert difference(tokens, other) == 0
    assert real[:, 2:].sum(-1).tolist() == [2 * LENGTH, 2 * LENGTH, 0]
    assert tokens[2, 2:].abs().max() == 0 and tokens[:2, 2:].abs().amax(-1).min() > 0


def test_features_are_dropped_in_training_alone():
    module, embedding, own = tagger(connector_dropout=0.5), words(), media(1)
    given = (torch.randn(1, 4, W), torch.ones(1, 4, dtype=torch.bool), own, embedding)
    assert torch.equal(module(*given)[0], module(*given)[0])
    module.train()
    assert not torch.equal(module(*given)[0], module(*given)[0])


# ---- Their texts and their classifier -------------------------------------------------------------------------------


def test_texts_are_written_to_their_end_or_cut():
    model = seeing()
    assert model.model.vision_connector.tagger.ids.tolist() == IDS


def test_a_classifier_starts_as_the_encoders_head():
    model, weight, bias = seeing(), torch.randn(TAGS, W), torch.randn(TAGS)
    model.set_tags("image", Letters(), TEXTS, weight=weight, bias=bias)
    states, mask = torch.randn(2, 4, W), torch.ones(2, 4, dtype=torch.bool)
    logits = model.model.vision_connector.tagger.logits(states, mask)
    assert difference(logits, states.mean(1) @ weight.T + bias) < 1e-5


@pytest.mark.parametrize(("rank", "worst"), [(3, 3), (TAGS, TAGS), (9, TAGS)])
def test_a_classifier_of_low_rank_starts_as_near_as_it_can(rank, worst):
    model, weight = seeing(vision_tag_rank=rank), torch.randn(TAGS, W)
    model.set_tags("image", Letters(), TEXTS, weight=weight)
    module = model.model.vision_connector.tagger
    left = torch.linalg.svdvals(weight)[worst:]
    error = (module.score.weight @ module.reduce.weight - weight).norm()
    assert abs(error - left.norm()) < 1e-4


WRONG = {
    "another modality": (("audio", TEXTS), {}, r"no tags of audio. Make it with audio_tags=5"),
    "too few": (("image", TEXTS[:4]), {}, "vision_tags is 5, but 4 texts"),
    "empty": (("image", [*TEXTS[:4], " "]), {}, "Tag 4, ' ', has no tokens"),
    "a weight of another encoder": (
        ("image", TEXTS),
        {"weight": torch.zeros(TAGS, W + 1)},
        r"weight must have shape \(5, 24\), got \(5, 25\)",
    ),
    "a bias of other tags": (("image", TEXTS), {"bias": torch.zeros(4)}, r"bias must have shape \(5,\), got \(4,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_tags_is_refused(case):
    (name, texts), arguments, message = WRONG[case]
    model = seeing()
    before = model.model.vision_connector.tagger.ids.clone()
    with pytest.raises(ValueError, match=message):
        model.set_tags(name, Letters(), texts, **arguments)
    assert torch.equal(model.model.vision_connector.tagger.ids, before), "nothing is half written"


def test_answers_without_an_end_are_refused():
    model = seeing()
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id = None
    with pytest.raises(ValueError, match="Set eos_token_id of its generation_config"):
        model.set_tags("image", Letters(), TEXTS)


def test_direct_connectors_and_more_choices_than_tags_are_refused():
    with pytest.raises(ValueError, match="vision_tags is 5, but vision_connector is 'direct'"):
        MMConfig.from_text_vision_audio_configs(gpt2_config(), vit_config(), vision_connector="direct", **FIELDS)
    with pytest.raises(ValueError, match="audio_tag_choices is 3, but audio_tags is 2"):
        MMConfig.from_text_vision_audio_configs(
            gpt2_config(), None, whisper_config(), audio_tags=2, audio_tag_choices=3
        )


# ---- In a whole model -----------------------------------------------------------------------------------------------

ROWS = [[5, IMAGE, 6, 7], [8, 9, AUDIO, IMAGE], [4, 5, 6]]


def test_tags_reach_the_logits_of_rows_with_images_alone():
    model, batch = seeing(), inputs(ROWS)
    before = model(**batch).logits
    model.model.vision_connector.tagger.ids.copy_(torch.tensor(IDS).roll(1, 0))
    after = model(**batch).logits
    assert difference(before[0, 1:], after[0, 1:]) > 1e-3 and difference(before[1, 1:], after[1, 1:]) > 1e-3
    assert difference(before[2], after[2]) == 0


def test_a_text_reads_the_same_tags_from_raw_images_their_states_and_encoded_media():
    model, batch = seeing(), inputs([[5, IMAGE, 6, 7]])
    logits = model(**batch).logits
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = model.model.get_image_features(batch["pixel_values"]).last_hidden_state
    assert difference(model(**texts, vision_states=states[None]).logits, logits) < 1e-5
    encoded = model.encode_media(pixel_values=batch["pixel_values"])
    assert difference(model(**texts, media=encoded).logits, logits) < 1e-5
    features = model.model.get_image_features(batch["pixel_values"]).pooler_output
    assert difference(features[None].flatten(1, 2), encoded.states) < 1e-5


def test_rows_decode_as_alone_and_as_without_a_cache():
    model = seeing()
    settings = {"max_new_tokens": 6, "do_sample": False}
    both = model.generate(**inputs([[5, IMAGE, 6], [8, IMAGE, 9]]), **settings)
    alone = [model.generate(**inputs([row]), **settings) for row in ([5, IMAGE, 6], [8, IMAGE, 9])]
    plain = model.generate(**inputs([[5, IMAGE, 6], [8, IMAGE, 9]]), **settings, use_cache=False)
    assert torch.equal(both, plain) and torch.equal(both[:1], alone[0])


def test_saved_tags_are_the_same_in_half_precision_too(tmp_path):
    model, batch = seeing(audio_tags=4, vision_tag_rank=3), inputs(ROWS)
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert difference(model(**batch).logits, again(**batch).logits) == 0
    half = MMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.vision_connector.tagger.ids.tolist() == IDS
    assert torch.isfinite(half(**batch).logits).all()


def test_the_classifier_learns_from_what_the_decoder_writes():
    model = seeing(vision_tag_rank=3)
    batch = inputs([[5, IMAGE, 6, 7]])
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    module = model.model.vision_connector.tagger
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_a_process_without_images_still_runs_the_classifier_for_those_that_wait():
    model = seeing().model
    states = model._empty_item(model.vision_tower, model.vision_connector, torch.device("cpu"))
    assert states.shape[1] == 5 + 2 * LENGTH
    states.sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision_connector.tagger.parameters())


def test_a_modality_may_be_added_with_tags():
    model = joined(vision=None).add_vision(vit(), cross_attention_layers=[1], tags=TAGS, tag_length=2, tag_rank=4)
    module = model.model.vision_connector.tagger
    assert module.ids.shape == (TAGS, 2) and module.reduce.out_features == 4
    assert all(parameter.requires_grad for parameter in module.parameters())
