"""The comparison: equal treatment of all systems, correct figures, and runs that resume."""

import json
import math
from functools import cache

import pytest
import torch
from PIL import Image
from transformers import GPT2LMHeadModel

from modeling_mm.training import EncoderCache
from modeling_mm.utils import markdown_table
from scripts.workshop import compare as script
from scripts.workshop import comparison
from scripts.workshop.comparison import (
    Settings,
    caption_loss,
    compare,
    held_out_loss,
    order_of,
    pretrained_decoder,
    run_system,
    schedule,
    text_blocks,
)
from scripts.workshop.comparison_data import Caption, batch_of, dictionary_texts, fill_cache, read_captions
from scripts.workshop.comparison_report import HEADER, mean_and_spread, plot, rows_of
from scripts.workshop.comparison_systems import SYSTEMS, Components, ours
from tests.fakes.processor_parts import make
from tests.fakes.tiny import difference, gpt2, joined, seeded, vit

COLORS = ["red", "green", "blue", "white"]
NAMES = [f"a {color} square" for color in COLORS]
QUICK = Settings(steps=60, batch_size=4, text_learning_rate=2e-3, new_learning_rate=2e-2, evaluations=3)


@cache
def components() -> Components:
    processor = make(audio=False)
    decoder = gpt2(vocab_size=len(processor.tokenizer), n_positions=128, initializer_range=0.1)
    return Components(decoder, vit(image_size=8, patch_size=4), processor)


def write_corpus(folder, split: str = "train", names=NAMES) -> None:
    (folder / split).mkdir(parents=True)
    lines = []
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), COLORS[i % 4]).save(folder / split / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "name_en": name}))
    (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def captions(corpus) -> list[Caption]:
    return read_captions(corpus, "train", "name_en", components(), longest=30)[0]


@pytest.fixture
def filled(tmp_path, captions) -> EncoderCache:
    given = components()
    model = joined(given.decoder, given.vision, None, tokenizer=given.processor, freeze_vision=True)
    filled = EncoderCache(tmp_path / "cache", model, components().processor)
    fill_cache(filled, captions)
    return filled


def pad() -> int:
    return components().token_ids()[3]


# ---- Data -----------------------------------------------------------------------------------------------------------


def test_captions_have_the_same_tokens_around_them_for_all_systems(captions, corpus):
    tokenizer = components().processor.tokenizer
    assert [tokenizer.decode(c.input_ids) for c in captions] == [f"<|image|><|assistant|>{n}<|end|>" for n in NAMES]
    assert [c.path for c in captions] == [str(corpus / "train" / f"{i}.png") for i in range(4)]


def test_longer_captions_are_left_out_and_counted(corpus):
    lengths = sorted(len(components().processor.tokenizer(name)["input_ids"]) for name in NAMES)
    assert lengths[0] < lengths[-1]
    kept, left_out = read_captions(corpus, "train", "name_en", components(), longest=lengths[0])
    assert [len(c.input_ids) for c in kept] == [lengths[0] + 3] * len(kept) and len(kept) + left_out == 4
    with pytest.raises(ValueError, match=r"No caption of .*train in the column name_en has at most 1 tokens"):
        read_captions(corpus, "train", "name_en", components(), longest=1)


def test_the_labels_of_a_batch_cover_the_caption_and_its_end_only(captions, filled):
    states, input_ids, attention_mask, labels = batch_of(captions, filled, pad())
    assert states.shape == (4, 5, 24) and torch.equal(states[1], filled.states(captions[1].part)[0])
    for row, caption in enumerate(captions):
        length = len(caption.input_ids)
        assert input_ids[row].tolist() == caption.input_ids + [pad()] * (input_ids.shape[1] - length)
        assert attention_mask[row].sum() == length
        assert labels[row].tolist() == [-100, -100, *caption.input_ids[2:], *[-100] * (input_ids.shape[1] - length)]


def test_the_cache_is_filled_once_with_each_unchanged_image(captions, filled, monkeypatch):
    assert len(filled.stores["image"].entries) == 4
    monkeypatch.setattr(filled, "encode", None)
    fill_cache(filled, captions)


def test_the_loss_is_the_mean_over_the_captions_tokens():
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[-100, -100, 3, 4], [-100, -100, 5, -100]])
    chances = logits.log_softmax(-1)
    expected = -(chances[0, 1, 3] + chances[0, 2, 4] + chances[1, 1, 5])
    assert caption_loss(logits, labels, "sum").item() == pytest.approx(expected.item(), rel=1e-5)
    assert caption_loss(logits, labels).item() == pytest.approx(expected.item() / 3, rel=1e-5)


def test_every_pass_over_the_data_has_every_row_once_and_seeds_differ():
    settings = Settings(steps=6, batch_size=5, evaluations=1)
    order = order_of(10, settings, seed=3)
    assert order == order_of(10, settings, seed=3) != order_of(10, settings, seed=4)
    assert [len(rows) for rows in order] == [5] * 6
    passes = [sorted(order[i] + order[i + 1]) for i in (0, 2, 4)]
    assert passes == [list(range(10))] * 3 and order[:2] != order[2:4]


def test_the_rates_rise_then_fall_to_zero():
    assert [schedule(step, 100, 0.1) for step in (0, 9, 50)] == pytest.approx(
        [0.1, 0.5 * (1 + math.cos(0.09 * math.pi)), 0.5]
    )
    assert schedule(99, 100, 0.1) < 1e-3 and schedule(0, 100, 0.0) == 1.0


def test_more_evaluations_than_steps_are_refused():
    with pytest.raises(ValueError, match=r"evaluations must be from 1 to steps \(2\), got 3"):
        Settings(steps=2, evaluations=3)


# ---- Systems --------------------------------------------------------------------------------------------------------


def build(name: str):
    return seeded(lambda: SYSTEMS[name](components()))


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_starts_from_a_copy_of_the_decoder(name):
    before = {key: tensor.clone() for key, tensor in components().decoder.state_dict().items()}
    system = build(name)
    theirs = {p for n, p in system.named_parameters() if system.part_of(n) == "text"}
    assert sum(p.numel() for p in theirs) == sum(p.numel() for p in components().decoder.parameters())
    for p in components().decoder.parameters():
        assert any(p.shape == q.shape and torch.equal(p, q) for q in theirs)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[key], tensor) for key, tensor in components().decoder.state_dict().items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_only_the_encoder_is_frozen(name):
    system = build(name)
    assert all(p.requires_grad == (system.part_of(n) != "vision") for n, p in system.named_parameters())
    assert all(p.requires_grad for p in components().vision.parameters())  # the component itself is unchanged


NEW_PARTS = {"prefix (LLaVA)": {"connectors"}}


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_image_reaches_the_caption_through_new_weights(name, captions, filled):
    system = build(name)
    new = {system.part_of(n) for n, _ in system.named_parameters()} - {"text", "vision"}
    assert new == NEW_PARTS.get(name, {"connectors", "cross_attention"})
    figures = run_system(SYSTEMS[name], components(), filled, captions, captions, QUICK, seed=0)
    assert figures["curve"][-1][2] < 0.5 * figures["curve"][0][1], "the loss did not fall"
    # The captions differ in their colors only, so that a system without the image names at most one of four.
    assert figures["exact_match"] >= 0.75


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_token_sees_the_image_and_earlier_tokens(name, captions, filled):
    system = moved(build(name))
    states, input_ids, attention_mask, _ = batch_of(captions[:1], filled, pad())
    logits = system.logits(states, input_ids, attention_mask)
    assert logits.shape == (1, input_ids.shape[1], len(components().processor.tokenizer))
    other = input_ids.clone()
    other[0, 4] = 7
    changed = (system.logits(states, other, attention_mask) - logits).abs().amax(-1)[0]
    assert changed[:4].max() < 1e-5 < 1e-4 < changed[4:].min()
    changed = (system.logits(states + torch.randn_like(states), input_ids, attention_mask) - logits).abs().amax(-1)[0]
    assert changed.min() > 1e-4


def moved(system):
    """Return a system as after training: new weights are far from their start."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in system.named_parameters():
        if system.part_of(name) not in ("text", "vision"):
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return system.eval()


@pytest.mark.parametrize("name", SYSTEMS)
def test_captions_are_the_greedy_choices_of_the_logits(name, captions, filled):
    system = moved(build(name))
    states = batch_of(captions, filled, pad())[0]
    written = system.captions(states, max_new_tokens=5)
    text = system.prompt(4)
    for _ in range(written.shape[1]):
        chosen = system.logits(states, text, torch.ones_like(text))[:, -1].argmax(-1)
        text = torch.cat([text, chosen[:, None]], dim=1)
    for mine, theirs in zip(written.tolist(), text[:, 2:].tolist(), strict=True):
        end = mine.index(system.end) + 1 if system.end in mine else len(mine)
        assert mine[:end] == theirs[:end]


def test_fields_of_the_config_reach_ours():
    system = seeded(lambda: ours(cross_attention_layers=[0], vision_connector="linear")(components()))
    assert list(system.model.model.language_model.cross_blocks) == ["0"]


# ---- Runs -----------------------------------------------------------------------------------------------------------


def linear() -> dict:
    return {"linear": ours(vision_connector="linear", cross_attention_layers=[0])}


def test_the_figures_of_a_run(captions, filled):
    settings = Settings(steps=4, batch_size=2, evaluations=2)
    figures = run_system(linear()["linear"], components(), filled, captions[:3], captions, settings, seed=1)
    assert [point[0] for point in figures["curve"]] == [2, 4]
    assert figures["loss"] == figures["curve"][-1][2]
    decoder = sum(p.numel() for p in components().decoder.parameters())
    assert figures["parameters"] == decoder + figures["new_parameters"]
    assert figures["seconds"] > 0 and figures["seconds_answering"] > 0
    again = run_system(linear()["linear"], components(), filled, captions[:3], captions, settings, seed=1)
    assert again["curve"] == figures["curve"]
    other = run_system(linear()["linear"], components(), filled, captions[:3], captions, settings, seed=2)
    assert other["curve"] != figures["curve"]


@pytest.mark.parametrize("field", ["text_learning_rate", "new_learning_rate", "weight_decay", "warmup", "batch_size"])
def test_every_setting_changes_the_training(field, captions, filled):
    base = {"steps": 3, "batch_size": 2, "evaluations": 1, "new_learning_rate": 1e-2, "warmup": 0.0}
    changed = {
        "text_learning_rate": 0.0,
        "new_learning_rate": 1e-3,
        "weight_decay": 0.9,
        "warmup": 1.0,
        "batch_size": 3,
    }
    losses = [
        run_system(linear()["linear"], components(), filled, captions, captions, Settings(**fields), seed=0)["loss"]
        for fields in (base, {**base, field: changed[field]})
    ]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_captions_are_at_most_as_long_as_requested(captions, filled):
    system = moved(build("prefix (LLaVA)"))
    short, long = (comparison.generate_captions(system, filled, captions, components(), length) for length in (1, 6))
    assert all(len(a) <= len(b) for a, b in zip(short, long, strict=True)) and short != long


def test_the_held_out_loss_does_not_depend_on_batches(captions, filled):
    system = moved(build("prefix (LLaVA)"))
    alone = [held_out_loss(system, filled, [caption], pad()) for caption in captions]
    tokens = [len(caption.input_ids) - 2 for caption in captions]
    expected = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert held_out_loss(system, filled, captions, pad()) == pytest.approx(expected, rel=1e-5)
    assert held_out_loss(system, filled, captions * 20, pad()) == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_comparison_resumes(captions, filled, tmp_path):
    settings = Settings(steps=2, batch_size=2, evaluations=1)
    arguments = (components(), filled, captions, captions, settings, tmp_path / "out" / "runs.jsonl")
    first = compare(linear(), [0], *arguments)
    with open(tmp_path / "out" / "runs.jsonl", "a") as lines:
        lines.write('{"system": "linear", "se')  # truncated
    both = compare(linear(), [0, 1], *arguments)
    assert [(run["system"], run["seed"]) for run in both] == [("linear", 0), ("linear", 1)]
    assert both[0] == json.loads(json.dumps(first[0]))

    def no_more(components):
        raise AssertionError("a run was made again")

    again = compare({"linear": no_more}, [0, 1], *arguments)
    assert again == json.loads(json.dumps(both))
    with pytest.raises(AssertionError, match="made again"):  # other settings are other runs
        compare({"linear": no_more}, [0], *arguments[:4], Settings(steps=1, evaluations=1), arguments[5])


# ---- The decoder ----------------------------------------------------------------------------------------------------

SIZE = {"n_embd": 16, "n_layer": 1, "n_head": 2}


def test_the_decoder_is_pretrained_once(tmp_path):
    texts = ["a cat, a dog and a bird"] * 60
    made = pretrained_decoder(tmp_path / "d", lambda: texts, make(audio=False), SIZE, steps=30, rate=1e-2)
    rows = text_blocks(texts, make(audio=False).tokenizer, 64)
    untaught = seeded(lambda: GPT2LMHeadModel(made.config))
    with torch.no_grad():
        assert caption_loss(made(rows).logits, rows) < 0.5 * caption_loss(untaught(rows).logits, rows)
    again = pretrained_decoder(tmp_path / "d", lambda: pytest.fail("made again"), make(audio=False), SIZE, 30, 1e-2)
    assert difference(again(rows).logits, made(rows).logits) == 0


def test_blocks_hold_the_concatenated_texts():
    tokenizer = make(audio=False).tokenizer
    rows = text_blocks(["a cat"] * 5, tokenizer, 4)
    whole = tokenizer("<|assistant|>a cat<|end|>" * 5, add_special_tokens=False)["input_ids"]
    assert rows.flatten().tolist() == whole[: len(whole) // 4 * 4]
    with pytest.raises(ValueError, match="less than one block of 999"):
        text_blocks(["a cat"], tokenizer, 999)


def test_the_decoder_reads_definitions_and_captions(tmp_path, corpus):
    folder = tmp_path / "debian-wordnet-base" / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text('1 n | a first thing; "so said"\n2 n | a second\n3 n | a third thing\n')
    texts = dictionary_texts(tmp_path, corpus, "name_en")
    assert texts == ["a first thing", "a third thing", *sorted(NAMES) * 4]


# ---- The report -----------------------------------------------------------------------------------------------------


def run(system: str, seed: int, loss: float, match: float) -> dict:
    sizes = {"parameters": 3_210_000, "new_parameters": 410_000, "seconds": 60.0 + seed, "seconds_answering": 5.0}
    curve = [(10, 5.0, loss + 1), (20, 4.0, loss)]
    return {"system": system, "seed": seed, "loss": loss, "exact_match": match, "curve": curve, **sizes}


RUNS = [run("worse", 0, 3.0, 0.25), run("better", 0, 2.0, 0.5), run("worse", 2, 3.2, 0.35)]


def test_a_table_has_means_and_spreads_with_the_best_first():
    assert rows_of(RUNS) == [
        ("better", "1", "2.000 ± 0.000", "0.500 ± 0.000", "3.21M", "0.41M", "60 ± 0", "5 ± 0"),
        ("worse", "2", "3.100 ± 0.141", "0.300 ± 0.071", "3.21M", "0.41M", "61 ± 1", "5 ± 0"),
    ]
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_the_plot_depends_on_the_runs(tmp_path):
    plot(RUNS, tmp_path / "a.png")
    plot(RUNS[:2], tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").size[0] > 1000
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


# ---- The script -----------------------------------------------------------------------------------------------------


def test_the_script_runs_from_components_to_plot(tmp_path, corpus, capsys, monkeypatch):
    write_corpus(corpus, "test_hand", NAMES[:2])
    components().processor.save_pretrained(tmp_path / "components" / "processor")
    components().vision.save_pretrained(tmp_path / "components" / "vision")
    folder = tmp_path / "packages" / "debian-wordnet-base" / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text("1 n | a first thing\n" * 50)
    arguments = f"""--corpora {tmp_path} --components {tmp_path / "components"} --packages {tmp_path / "packages"}
        --longest 30 --cache {tmp_path / "cache"} --output {tmp_path / "out"}
        --systems prefix mlp,\u0020gated --seeds 2 --steps 2
        --evaluations 1 --batch-size 2 --width 16 --layers 1 --heads 2 --pretraining-steps 2""".split()
    arguments[arguments.index("mlp,")] = "mlp, gated"
    arguments.remove("gated")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of the other tests too
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 training captions (0 longer than 30 tokens are left out), 2 test captions" in printed
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    systems = ["cross-attention, mlp, gated", "prefix (LLaVA)"]
    assert [(run["system"], run["seed"]) for run in runs] == [(name, seed) for seed in (0, 1) for name in systems]
    assert (tmp_path / "out" / "table.md").read_text() == markdown_table(HEADER, rows_of(runs)) + "\n"
    assert all(cell in printed for row in (HEADER, *rows_of(runs)) for cell in row)
    assert (tmp_path / "out" / "plot.png").stat().st_size > 1000
    assert len(list((tmp_path / "cache").glob("image-*/states.bin"))) == 1


def test_an_unknown_system_is_refused_with_the_known_ones(capsys):
    assert script.main(["--systems", "flamingo"]) == 2
    assert "prefix (LLaVA)" in capsys.readouterr().err
