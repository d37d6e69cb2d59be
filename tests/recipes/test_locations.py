"""The key `model.locations` of a recipe: processor and model get the tokens of boxes and points."""

import pytest
import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.recipes.build import make_model, make_processor
from tests.fakes.recipe_runs import recipe


def built(folder, **values):
    found = recipe(folder, {"model.locations": True, **{key.replace("__", "."): v for key, v in values.items()}})
    processor = make_processor(found.model)
    return processor, make_model(found, processor, 0)


def test_a_preset_gets_them_and_a_saved_folder_keeps_them(tmp_path):
    processor, model = built(tmp_path)
    first = model.config.location_token_id
    assert processor.tokenizer.convert_ids_to_tokens([first, first + 999]) == ["<loc_0>", "<loc_999>"]
    assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == first + 1000
    with torch.no_grad():
        model.get_input_embeddings().weight[first:] += 1
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = recipe(
        tmp_path, {"model": {"pretrained": str(tmp_path / "saved"), "locations": True}, "frozen.text": "always"}
    )
    loaded = make_model(again, make_processor(again.model), 0)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert MMProcessor.from_pretrained(tmp_path / "saved").tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_pretrained_model_without_gets_them(tmp_path):
    plain = recipe(tmp_path)
    processor = make_processor(plain.model)
    make_model(plain, processor, 0).save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    processor, model = built(tmp_path, model={"pretrained": str(tmp_path / "saved"), "locations": True})
    assert isinstance(model, MMForConditionalGeneration)
    assert model.config.location_token_id == len(processor.tokenizer) - 1000


def test_without_the_key_there_are_none(tmp_path):
    plain = recipe(tmp_path)
    processor = make_processor(plain.model)
    assert make_model(plain, processor, 0).config.location_token_id is None
    assert "<loc_0>" not in processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("key", "value", "name"), [("frozen", {"text": "always"}, "frozen.text"), ("lora", {"r": 2}, "lora")]
)
def test_new_tokens_that_could_not_learn_are_refused(tmp_path, key, value, name):
    with pytest.raises(ValueError, match=rf"model.locations: .* would not learn, because of `{name}`"):
        built(tmp_path, **{key: value})
    assert built(tmp_path, frozen={"text": 3})[1].config.location_token_id is not None
