"""hub/check.py: what is wrong with a folder or its card is found before it is pushed."""

import importlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_mm.hub import check_card, check_folder, measured_digests, pushed_files, weights_digest
from tests.fakes.hub_parts import CARD, CARD_FIELDS, INDEX, REPO, edit

checks = importlib.import_module("modeling_mm.hub.check")

# ---- What is wrong with a folder ------------------------------------------------------------------------------------


def file_problems(folder):
    names = pushed_files(folder)[0]
    return [
        *checks.check_files(folder, names),
        *checks.check_weights(folder, names),
        *checks.check_code(folder, names),
    ]


def test_code_and_weights_that_are_not_the_packages_are_found(folder):
    edit(folder / "decoder.py", "hidden_states + attended", "hidden_states + 2 * attended")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(weights) if name.endswith("ln_f.weight"))
    del weights[gone]
    save_file({**weights, "stranger": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    problems = "\n".join(check_folder(folder, REPO))
    assert f"1 parameters are missing from the weights and would be random, the first {gone}." in problems
    assert "1 parameters are in the weights but not in the model, the first stranger" in problems
    assert "with the package, 1 parameters" in problems and "without the package, 1 parameters" in problems
    assert "`logits` differs by" in problems


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("pytorch_model.bin", b"\x80\x02", "could be pickles"),
        ("training_args.bin", b"PK", "could be pickles"),
        ("scaler.pt", b"PK", "could be pickles"),
        ("arrays.npz", b"PK", "could be pickles"),
        ("picture.png", b"\x80\x04\x95", "named as an image or audio"),
        ("notes.txt", b"\x80\x04\x95\xff", "not text in UTF-8"),
        ("extra.json", b"{", "cannot be read"),
        ("extra.py", b"def (", "cannot be read"),
    ],
)
def test_files_that_could_do_harm_or_cannot_be_read_are_named(folder, name, data, word):
    (folder / name).write_bytes(data)
    problems = file_problems(folder)
    assert len(problems) == 1 and problems[0].startswith(f"{name}: ") and word in problems[0]


def test_a_folder_with_a_pickle_is_not_loaded(folder, monkeypatch):
    monkeypatch.setattr("modeling_mm.hub.check.load", lambda *_: pytest.fail("it was loaded"))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert len(check_folder(folder)) == 1


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", CARD, "model.safetensors"])
def test_what_is_missing_is_named(folder, name):
    (folder / name).unlink()
    assert [problem.split(":")[0] for problem in file_problems(folder)] == [name]


def test_code_that_auto_map_names_must_be_there(folder):
    (folder / "modeling_mm.py").unlink()
    assert any(
        problem.startswith("modeling_mm.py: missing, but `auto_map` in config.json")
        for problem in file_problems(folder)
    )
    edit(folder / "config.json", '"auto_map"', '"no_map"')
    assert any("config.json: no `auto_map`" in problem for problem in file_problems(folder))


def test_links_to_nothing_and_to_folders_are_named(folder):
    (folder / "masks.py").unlink()
    (folder / "masks.py").symlink_to("../nowhere.py")
    (folder / "more").symlink_to(folder.parent)
    problems = [problem for problem in file_problems(folder) if "a link to" in problem]
    assert [problem.split(":")[0] for problem in problems] == ["masks.py", "more"]


def test_weights_that_are_cut_short_or_disagree_with_their_index(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8])
    assert "damaged or cut short" in "".join(file_problems(folder))
    (folder / "model.safetensors").write_bytes(whole)
    names = load_file(folder / "model.safetensors")
    listed = dict.fromkeys(names, "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    assert file_problems(folder) == []
    (folder / INDEX).write_text(json.dumps({"weight_map": {**listed, "a.weight": "model.safetensors"}}))
    assert "disagrees with the weights about 1 names, the first a.weight" in "".join(file_problems(folder))
    (folder / INDEX).write_text(json.dumps({"weight_map": {**listed, "a.weight": "model-2.safetensors"}}))
    assert [problem.split(":")[0] for problem in file_problems(folder)] == ["model-2.safetensors"]
    (folder / INDEX).write_text("{}")
    assert "no readable `weight_map`" in "".join(file_problems(folder))


def test_a_folder_that_takes_too_long_to_load_is_given_up(good, monkeypatch):
    monkeypatch.setattr("modeling_mm.hub.check.LOAD_SECONDS", 0.1)  # less than any interpreter needs for torch
    (problem,) = check_folder(good, REPO)
    assert problem.startswith(f"{good}: loading with the package and answering one question took more than 0.1 s")


def test_what_training_leaves_behind_stays(folder):
    for name in ("checkpoint-20/optimizer.pt", "runs/events.1", "adapter/adapter_config.json", ".cache/x", "_y.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"PK")
    pushed, left = pushed_files(folder)
    assert left == [".cache/x", "_y.bin", "adapter/adapter_config.json", "checkpoint-20/optimizer.pt", "runs/events.1"]
    assert {"config.json", "modeling_mm.py", CARD} <= set(pushed) and file_problems(folder) == []


def test_a_folder_that_is_none():
    assert "no such folder" in check_folder("/nowhere/at/all")[0]


def test_what_the_two_processes_said_is_compared(tmp_path):
    one = {"logits": np.ones((1, 2, 3), np.float32), "input_ids": np.zeros((1, 2), np.int64)}
    assert checks.differences(tmp_path, one, {**one, "logits": one["logits"] + 1e-6}) == []
    for other, word in (
        ({**one, "logits": one["logits"] + 0.5}, "`logits` differs by 0.5"),
        ({**one, "logits": one["logits"] * np.nan}, "NaN or infinity"),
        ({**one, "input_ids": one["input_ids"] + 1, "logits": one["logits"] + 1}, "`input_ids` differs by 1"),
        ({**one, "input_ids": one["input_ids"][:, :1]}, "has the shape (1, 2) with the package, (1, 1) without"),
        ({"logits": one["logits"]}, "`input_ids` exists only with the package"),
    ):
        assert word in checks.differences(tmp_path, one, other)[0]
    info = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": ["('a', 1, 2)"]}
    (problem,) = checks.loading_problems(tmp_path, "with the package", info)
    assert "1 parameters have another shape than in the model" in problem


# ---- The card -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("\nlicense: mit\n", "\n", "`license` is missing"),  # that of the head, not that of the recipe in the card
        ("\nlicense: mit\n", "\nlicense: other\n", "needs `license_name` and `license_link` too"),
        ("\nlicense: mit\n", "\nlicense: other\nlicense_name: mine\n", "needs `license_link` too"),
        ("\nlicense: mit\n", "\nlicense: other\nlicense_link: LICENSE\n", "needs `license_name` too"),
        ("language:\n- en\n", "", "`language` is missing"),
        ("language:\n- en\n", "language: [no]\n", "got False. Use ISO 639 codes, in quotes"),
        ("language:\n- en\n", "language: [English]\n", "got 'English'"),
        ("language:\n- en\n", "language: English\n", "got 'English'"),
        ("language:\n- en\n", "language: 5\n", "must be a code such as en, or a list of codes, got 5"),
        ("language:\n- en\n", "language: {en: English}\n", "a list of codes, got {'en': 'English'}"),
        ("language:\n- en\n", "language: true\n", "a list of codes, got True"),
        ("pipeline_tag:", "pipeline:", "`pipeline_tag` is missing"),
        ("model-index:", "model-indices:", "no `model-index`"),
        ("value: 0.25", "value: .nan", "gives nan as exact_match of colors"),
        ("value: 0.25", "value: a lot", "gives 'a lot'"),
        ("metrics:", "metric:", "the Hub cannot read its metadata"),
        ("\nlicense: mit", "\nlicense: [mit", "the Hub cannot read its metadata"),
        ("co2_eq_emissions:", "co2:", "`co2_eq_emissions` needs"),
        ("# Tiny\n", "# {{ model_name }}\n", "'{{' was not filled in"),
        ("## Data\n", "## Dates\n", "the section `## Data` is missing"),
        ("answers nothing.", "answers nothing. TODO", "'TODO' was not filled in"),
        (CARD_FIELDS["limits"], "Not assessed beyond the figures above.", "its limits are not assessed"),
        (CARD_FIELDS["limits"], "", "the section `## Limits` is missing or empty"),
        ("```python", "```", "`## Use` has no ```python block"),
        ("add_generation_prompt=True", "add_generation_prompt=", "is not valid Python"),
        ('from_pretrained("me/tiny"', "from_pretrained(name", "loads nothing"),
        ('from_pretrained("me/tiny"', 'from_pretrained("me/other"', "loads me/other, but the folder goes to me/tiny"),
        ("```yaml", "```", "has no ```yaml block"),
    ],
)
def test_a_poor_card_is_told_what_it_lacks(folder, old, new, word):
    edit(folder / CARD, old, new)
    problems = check_card(folder / CARD, REPO)
    assert len(problems) == 1 and problems[0].startswith(f"{CARD}: ") and word in problems[0], problems


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("language:\n- en\n", "language: en\n"),
        ("language:\n- en\n", 'language: [en, "no", zh-Hant]\n'),
        ("\nlicense: mit\n", "\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n"),
    ],
)
def test_what_the_hub_takes_is_no_problem(folder, old, new):
    edit(folder / CARD, old, new)
    assert check_card(folder / CARD, REPO) == []


def test_figures_of_other_weights_are_no_figures_of_the_folder(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    (problem,) = check_card(folder / CARD, REPO)
    assert "its figures were measured on other weights" in problem
    (stated,) = measured_digests((folder / CARD).read_text(encoding="utf-8"))
    edit(folder / CARD, stated, weights_digest(folder))
    assert check_card(folder / CARD, REPO) == []


def test_a_good_card_goes_anywhere_if_no_name_is_given(good):
    assert check_card(good / CARD) == check_card(good / CARD, REPO) == []
    assert "but the folder goes to me/else" in check_card(good / CARD, "me/else")[0]
