"""Parts of a model by name, and the step at which each of them thaws."""

import re
from types import SimpleNamespace

import pytest
from transformers import Trainer

from modeling_mm import MMForSequenceClassification
from modeling_mm.training import PARTS, ThawCallback, parts_of
from tests.fakes.tiny import difference, gpt2, joined
from tests.fakes.tiny_chats import chat_model, losses, mm_trainer, moved, weights
from tests.test_cross_attention import LAYOUTS

ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3}


PLACES = {  # where each part lies in the model
    "model.vision_tower.": "vision",
    "model.audio_tower.": "audio",
    "model.vision_connector.": "connectors",
    "model.audio_connector.": "connectors",
    "model.language_model.cross_blocks.": "cross_attention",
    "model.language_model.": "text",
    "lm_head.": "text",
}


def part_names(names) -> set[str]:
    """The parts that some weights belong to."""
    return {next(part for place, part in PLACES.items() if name.startswith(place)) for name in names}


# ---- Parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"cls": MMForSequenceClassification, "num_labels": 2}, {"vision": None}])
def test_every_parameter_is_in_one_part(fields):
    model = joined(**fields)
    parts = parts_of(model)
    assert tuple(parts) == PARTS
    named = [name for some in parts.values() for name, _ in some]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())


def test_what_each_part_holds():
    model = joined(text=gpt2(tie_word_embeddings=False))
    inner = model.model
    parts = {part: {id(parameter) for _, parameter in some} for part, some in parts_of(model).items()}
    cross = {id(parameter) for parameter in inner.language_model.cross_blocks.parameters()}
    towers = {name: {id(p) for p in getattr(inner, name).parameters()} for name, _ in inner.named_children()}
    assert parts["vision"] == towers["vision_tower"] and parts["audio"] == towers["audio_tower"]
    assert parts["connectors"] == towers["vision_connector"] | towers["audio_connector"]
    assert parts["cross_attention"] == cross and len(cross) > 0
    assert parts["text"] == (towers["language_model"] - cross) | {id(model.lm_head.weight)}


def test_a_part_that_the_model_lacks_is_empty():
    parts = parts_of(joined(vision=None))
    assert parts["vision"] == [] and parts["audio"] != []


# ---- The schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps, message",
    [
        ({"visions": 5}, "Cannot thaw 'visions': no such part. Did you mean 'vision'?"),
        ({"vision": -1}, "vision must thaw at a whole number of steps, 0 or more, got -1"),
        ({"vision": 2.5}, "got 2.5"),
        ({"vision": True}, "got True"),
    ],
)
def test_wrong_schedules_are_refused(steps, message):
    with pytest.raises(ValueError) as error:
        ThawCallback(steps)
    assert message in str(error.value)


def test_what_is_frozen_follows_from_the_step():
    model = joined()
    schedule = ThawCallback({"vision": 2, "text": 4, "audio": 0})
    frozen = []
    for step in (0, 1, 2, 3, 4, 9, 1):
        schedule.apply(model, step)
        frozen.append({part for part, some in parts_of(model).items() if not any(p.requires_grad for _, p in some)})
    both = {"vision", "text"}
    assert frozen == [both, both, {"text"}, {"text"}, set(), set(), both]


def test_a_part_that_the_model_lacks_cannot_thaw():
    with pytest.raises(ValueError, match="vision cannot thaw: MMForConditionalGeneration has no such part"):
        ThawCallback({"vision": 1}).apply(joined(vision=None), 0)


def test_a_part_beside_an_adapter_cannot_thaw():
    pytest.importorskip("peft")
    from modeling_mm.training import add_lora

    with pytest.raises(ValueError, match="vision cannot thaw: PEFT saves the adapter alone"):
        ThawCallback({"vision": 1}).apply(add_lora(joined()), 0)


def test_deepspeed_is_refused():
    with pytest.raises(ValueError, match="does not work with DeepSpeed"):
        ThawCallback({"vision": 1}).on_train_begin(SimpleNamespace(deepspeed="zero3.json"), None, None)


def test_the_stock_trainer_whose_optimizer_lacks_the_part_is_refused(tmp_path):
    model = chat_model(freeze_vision=True)
    run = mm_trainer(model, tmp_path, callbacks=[ThawCallback({"vision": 1})])
    stock = Trainer(model, run.args, run.data_collator, run.train_dataset, callbacks=[ThawCallback({"vision": 1})])
    with pytest.raises(ValueError, match=r"optimizer does not hold the parameters to thaw \(vision\)"):
        stock.train()


# ---- In training ----------------------------------------------------------------------------------------------------


class Watch(ThawCallback):
    """Notes after each step which parts have moved since the last, and whether the vision tower trains."""

    def __init__(self, steps, model):
        super().__init__(steps)
        self.before, self.seen, self.tower_trains = weights(model), [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(part_names(moved(model, self.before)))
        self.before = weights(model)
        self.tower_trains.append(model.model.vision_tower.training)


ALL = {"text", "cross_attention", "connectors", "vision", "audio"}


def test_a_part_moves_from_the_step_after_the_thaw_and_not_before(tmp_path):
    model = chat_model()
    watch = Watch({"vision": 2, "text": 3}, model)
    mm_trainer(model, tmp_path, callbacks=[watch], max_steps=4, **ADAMW).train()
    assert watch.seen == [ALL - {"vision", "text"}] * 2 + [ALL - {"text"}, ALL]
    assert watch.tower_trains == [False, False, True, True], "a frozen encoder stays in evaluation until it thaws"


@pytest.mark.parametrize("config", [{}, {"freeze_vision": True}], ids=["trainable", "frozen_by_the_config"])
def test_a_schedule_freezes_what_the_config_does_not_and_thaws_what_it_does(tmp_path, config):
    model = chat_model(**config)
    watch = Watch({"vision": 1}, model)
    mm_trainer(model, tmp_path, callbacks=[watch], max_steps=2, **ADAMW).train()
    assert watch.seen == [ALL - {"vision"}, ALL]


@pytest.mark.parametrize("checkpoint", [2, 3, 4], ids=["before", "at", "after"])
def test_going_on_from_a_checkpoint_is_as_never_having_stopped(tmp_path, checkpoint):
    """Six steps, of which the vision encoder learns in three: in one go, and stopped before, at and after the thaw."""
    schedule = {"callbacks": [ThawCallback({"vision": 3})], "max_steps": 6, "per_device_train_batch_size": 4, **ADAMW}
    whole = chat_model()
    run = mm_trainer(whole, tmp_path, save_strategy="steps", save_steps=checkpoint, **schedule)
    before = weights(whole)
    run.train()
    resumed = chat_model()
    again = mm_trainer(resumed, tmp_path / "again", **schedule)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    for name, tensor in whole.state_dict().items():
        assert difference(resumed.state_dict()[name], tensor) <= 1e-6, name
    assert losses(again)[checkpoint:] == pytest.approx(losses(run)[checkpoint:], abs=1e-6)
    assert "vision" in part_names(moved(whole, before))


def test_a_second_training_freezes_again(tmp_path):
    model = chat_model()
    watch = Watch({"vision": 1}, model)
    run = mm_trainer(model, tmp_path, callbacks=[watch], max_steps=2, **ADAMW)
    run.train()
    run.train()
    assert watch.seen == [ALL - {"vision"}, ALL] * 2


def test_the_thawed_part_has_its_own_learning_rate(tmp_path):
    model = chat_model()
    run = mm_trainer(
        model, tmp_path, callbacks=[ThawCallback({"vision": 1})], max_steps=2, encoder_learning_rate=0.0, **ADAMW
    )
    before = weights(model)
    run.train()
    assert part_names(moved(model, before)) == ALL - {"vision", "audio"}


def test_a_batch_that_depends_on_nothing_that_learns_is_refused(tmp_path):
    schedule = ThawCallback(dict.fromkeys(ALL - {"vision"}, 1))
    run = mm_trainer(chat_model(freeze_vision=True), tmp_path, callbacks=[schedule], max_steps=2, **ADAMW)
    with pytest.raises(ValueError, match=r"After 0 steps this batch depends on no parameter that learns.*nothing"):
        run.train()


@pytest.mark.parametrize("name", LAYOUTS)
def test_cross_attention_is_one_part_wherever_it_stands(name):
    model = joined(**LAYOUTS[name])
    cross = {
        name for name, _ in model.named_parameters() if re.search("cross|stand_in", name.split("language_model")[-1])
    }
    assert cross and {name for name, _ in parts_of(model)["cross_attention"]} == cross
