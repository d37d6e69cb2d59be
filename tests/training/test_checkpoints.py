"""A checkpoint that is incomplete or damaged is passed over, with a line that names the file."""

import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from modeling_mm.data import ChatDataset
from modeling_mm.training import ChatCollator, add_lora, last_whole_checkpoint
from modeling_mm.training.checksums import CHECKSUMS_FILE, write_checksums
from tests.fakes.tiny_chats import CHATS, DEFAULTS, chat_model, mm_trainer, processor

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "optim": "adamw_torch"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("run")
    mm_trainer(chat_model(), folder, **SAVES).train()
    return folder


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    mm_trainer(add_lora(chat_model(), {"r": 2}), folder, **SAVES).train()
    return folder


def lines(caplog) -> list[str]:
    """Return what was logged since the last call."""
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return found


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [remove, empty, cut, flip, replace_by_folder]


@pytest.mark.parametrize("kind", ["run", "adapter_run"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_found_and_named(request, kind, damage, tmp_path, caplog):
    source = request.getfixturevalue(kind)
    names = [path.name for path in (source / "checkpoint-2").iterdir() if path.name != CHECKSUMS_FILE]
    code = sorted(name for name in names if name.endswith(".py"))
    names = [name for name in names if name not in code[1:]]  # one module for the many
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"} < set(names)
    folder = shutil.copytree(source, tmp_path / "copy")
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2") and not lines(caplog)
    for name in names:
        shutil.rmtree(folder)
        shutil.copytree(source, folder)
        damage(folder / "checkpoint-2" / name)
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-1"), name
        (line,) = lines(caplog)
        assert line.startswith(f"{folder / 'checkpoint-2'} is not used: ")
        assert name in line or (name.endswith("model.safetensors") and "weights are missing" in line)


NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")  # their tensors have checksums
READ = (*ARCHIVES, "model.safetensors", "config.json", "trainer_state.json", "tokenizer.json")
FOUND = {remove: NEEDED, replace_by_folder: NEEDED, empty: READ, cut: READ, flip: ARCHIVES}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_without_checksums_every_file_is_read_as_its_format_says(run, damage, tmp_path):
    """As the stock `Trainer` and earlier versions leave a checkpoint."""
    folder = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns(CHECKSUMS_FILE))
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    kept = shutil.copytree(folder / "checkpoint-2", tmp_path / "kept")
    for name in FOUND[damage]:
        damage(folder / "checkpoint-2" / name)
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-1"), name
        shutil.rmtree(folder / "checkpoint-2")
        shutil.copytree(kept, folder / "checkpoint-2")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model.safetensors": 1}', b"\xff", b"null"])
def test_checksums_that_cannot_be_read_are_damage(run, content, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    (folder / "checkpoint-2" / CHECKSUMS_FILE).write_bytes(content)
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-1")


@pytest.mark.parametrize(
    "content", ["[]", "null", '{"stateful_callbacks": 3}', '{"stateful_callbacks": {"ProcessCountCallback": 1}}']
)
def test_a_state_of_another_form_is_damage(run, content, tmp_path, caplog):
    folder = shutil.copytree(run, tmp_path / "copy")
    (folder / "checkpoint-2" / "trainer_state.json").write_text(content)
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-1")
    assert "trainer_state.json: damaged" in lines(caplog)[0]


def test_shards_and_folders_in_a_checkpoint_are_checked(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    checkpoint = folder / "checkpoint-2"
    (checkpoint / "model.safetensors").unlink()
    chat_model().save_pretrained(checkpoint, max_shard_size="20KB")
    (checkpoint / "adapter").mkdir()
    (checkpoint / "adapter" / "notes.json").write_text("{}")
    write_checksums(checkpoint)
    assert last_whole_checkpoint(folder) == str(checkpoint)
    kept = shutil.copytree(checkpoint, tmp_path / "kept")
    for name in (max(path.name for path in checkpoint.glob("model-*")), "adapter/notes.json"):
        for has_checksums in (True, False):
            shutil.rmtree(checkpoint)
            shutil.copytree(kept, checkpoint)
            if not has_checksums:
                (checkpoint / CHECKSUMS_FILE).unlink()
            cut(checkpoint / name)
            assert last_whole_checkpoint(folder) == str(folder / "checkpoint-1"), (name, has_checksums)


def test_without_any_whole_checkpoint_a_line_says_that_training_starts_again(run, tmp_path, caplog):
    folder = shutil.copytree(run, tmp_path / "copy")
    for checkpoint in folder.glob("checkpoint-*"):
        flip(checkpoint / "optimizer.pt")
    assert last_whole_checkpoint(folder) is None
    assert lines(caplog)[-1] == f"No checkpoint in {folder} is whole. Training starts from the beginning."


def test_a_run_resumes_from_the_last_whole_checkpoint_and_ends_as_the_unbroken_one(run, tmp_path, caplog):
    folder = shutil.copytree(run, tmp_path / "copy")
    expected = load_file(folder / "checkpoint-2" / "model.safetensors")
    flip(folder / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"Cannot resume from .*checkpoint-2: optimizer\.pt: other content than was"):
        mm_trainer(chat_model(), folder, **SAVES).train(str(folder / "checkpoint-2"))
    trainer = mm_trainer(chat_model(), folder, **SAVES)
    trainer.train(resume_from_checkpoint=True)
    assert "optimizer.pt: other content" in lines(caplog)[0] and trainer.state.global_step == 2
    got = load_file(folder / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2"), "it was written again, with its checksums"


def test_a_run_that_was_stopped_behind_its_last_checkpoint_takes_no_further_step(tmp_path):
    """The stock trainer takes one, as the epoch is not over."""
    options = {**SAVES, "per_device_train_batch_size": 2}
    mm_trainer(chat_model(), tmp_path, **options).train()
    trainer = mm_trainer(chat_model(), tmp_path, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2 and trainer.state.epoch < 1
    state = trainer.model.state_dict()
    expected = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


def test_a_damaged_best_checkpoint_is_not_loaded_at_the_end(tmp_path, caplog):
    class Damages(type(mm_trainer(chat_model(), tmp_path))):
        def _load_best_model(self):
            flip(tmp_path / "checkpoint-1" / "model.safetensors")
            self.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
            super()._load_best_model()

    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    trainer = mm_trainer(chat_model(), tmp_path, trainer_class=Damages, **SAVES, **best)
    trainer.train()
    assert any("the best checkpoint, is not used: model.safetensors: other content" in line for line in lines(caplog))
    assert trainer.state.best_metric is None
    last = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    trainer.model.save_pretrained(tmp_path / "end")
    assert all(
        torch.equal(tensor, last[name]) for name, tensor in load_file(tmp_path / "end" / "model.safetensors").items()
    )


def test_checkpoints_of_the_stock_trainer_and_of_weights_alone_are_taken(tmp_path):
    known = {name: value for name, value in DEFAULTS.items() if not name.startswith("generation_")}
    for name, more in (("stock", {}), ("weights", {"save_only_model": True})):
        arguments = TrainingArguments(str(tmp_path / name), **{**known, **SAVES, "max_steps": 1, **more})
        Trainer(chat_model(), arguments, ChatCollator(processor()), ChatDataset(CHATS)).train()
        assert not (tmp_path / name / "checkpoint-1" / CHECKSUMS_FILE).exists()
        assert last_whole_checkpoint(tmp_path / name) == str(tmp_path / name / "checkpoint-1")


def test_the_archive_of_torch_has_a_checksum_for_each_tensor(run):
    """Why damage in an optimizer is found without our own checksums."""
    with zipfile.ZipFile(run / "checkpoint-2" / "optimizer.pt") as archive:
        assert all(entry.CRC for entry in archive.infolist() if entry.file_size)


def test_the_checksums_name_every_file_with_its_size(run):
    noted = json.loads((run / "checkpoint-2" / CHECKSUMS_FILE).read_text())
    paths = [path for path in (run / "checkpoint-2").iterdir() if path.name != CHECKSUMS_FILE]
    assert {name: each["bytes"] for name, each in noted.items()} == {path.name: path.stat().st_size for path in paths}
