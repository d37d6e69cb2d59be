"""The encoder cache: what is kept equals what the encoders make, and no interrupted run makes it wrong."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from modeling_mm.training import AudioAugmentation, Augmentation, EncoderCache, ImageAugmentation, StateStore
from tests.fakes.media_rows import filled, frozen_model, make_cache, media_part, row, write_media
from tests.fakes.processor_parts import make, make_vit
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.tiny import gpt2, joined
from tests.fakes.tiny_chats import chat_model, processor

STORED_ERROR = 2**-10  # float16 keeps 11 bits
LINES = "index.jsonl"
STATES = "states.bin"


@pytest.fixture
def media(tmp_path) -> Path:
    return write_media(tmp_path)


def encoded(folder: Path, name: str) -> list[torch.Tensor]:
    """What the model's own encoders make of one file, as windows of real tokens."""
    model = frozen_model()
    if name.endswith(".png"):
        pixels = processor()(images=[[Image.open(folder / name)]], return_tensors="pt")["pixel_values"]
        return [model.get_image_features(pixels).last_hidden_state[0]]
    inputs = processor()(audio=[[soundfile.read(folder / name, dtype="float32")]], return_tensors="pt")
    states = model.get_audio_features(**{key: inputs[key] for key in ("input_features", "feature_attention_mask")})
    frames = inputs["feature_attention_mask"][0].sum(-1).tolist()
    return [
        window[: (real + 1) // 2] for window, real in zip(states.last_hidden_state, frames, strict=True)
    ]  # Whisper halves the frames


# ---- What is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "windows"), [("a.png", 1), ("short.wav", 1), ("long.wav", 3)])
def test_states_are_those_of_the_encoders(media, name: str, windows: int) -> None:
    kept = filled(media, "a.png", "b.png", "long.wav", "short.wav").states(media_part(media, name))
    expected = encoded(media, name)
    assert len(kept) == len(expected) == windows
    for window, truth in zip(kept, expected, strict=True):
        assert window.dtype == torch.float32
        torch.testing.assert_close(window, truth, rtol=STORED_ERROR, atol=1e-4)


def test_the_last_window_of_a_sound_keeps_only_its_real_tokens(media) -> None:
    lengths = [len(window) for window in filled(media, "long.wav").states(media_part(media, "long.wav"))]
    assert lengths == [50, 50, 15]  # 2.3 s in frames of 10 ms, two a token


def test_files_of_the_same_content_are_encoded_once(media) -> None:
    shutil.copy(media / "a.png", media / "copy.png")
    states = filled(media, "a.png", "copy.png")
    assert len(states.stores["image"].entries) == 1
    assert torch.equal(states.states(media_part(media, "copy.png"))[0], states.states(media_part(media, "a.png"))[0])


def test_a_filled_cache_encodes_nothing_again(media, monkeypatch) -> None:
    filled(media, "a.png", "short.wav")
    again = make_cache(media)
    monkeypatch.setattr(EncoderCache, "encode", lambda *_: pytest.fail("it encodes what it has"))
    again.fill([row(media, "a.png", "short.wav")], progress=False)
    assert len(again.states(media_part(media, "a.png"))) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_number_encoded_together_changes_nothing(media, batch_size: int) -> None:
    names = ["a.png", "b.png", "c.png", "long.wav", "short.wav"]
    states = filled(media, *names, batch_size=batch_size)
    for name in names:
        for window, truth in zip(states.states(media_part(media, name)), encoded(media, name), strict=True):
            torch.testing.assert_close(window, truth, rtol=STORED_ERROR, atol=1e-4)


def test_encoders_are_called_with_batches_of_the_size_asked_for(media, monkeypatch) -> None:
    sizes = []
    encode = EncoderCache.encode
    monkeypatch.setattr(
        EncoderCache, "encode", lambda self, kind, batch: sizes.append((kind, len(batch))) or encode(self, kind, batch)
    )
    filled(media, "a.png", "b.png", "c.png", "short.wav", batch_size=2)
    assert sizes == [("image", 2), ("image", 1), ("audio", 1)]


def test_bfloat16_is_close_and_kept_apart(media) -> None:
    exact, fast = filled(media, "a.png", "long.wav"), filled(media, "a.png", "long.wav", dtype=torch.bfloat16)
    for name in ("a.png", "long.wav"):
        for one, other in zip(
            exact.states(media_part(media, name)), fast.states(media_part(media, name)), strict=True
        ):
            assert one.shape == other.shape
            assert not torch.equal(one, other)
            assert (one - other).norm() < 0.05 * one.norm()
    assert exact.stores["image"].folder != fast.stores["image"].folder


def test_progress_is_shown_unless_told_not_to(media, capfd) -> None:
    make_cache(media).fill([row(media, "a.png", "short.wav")])
    shown = capfd.readouterr().err
    assert "encoding image: 1 of 1" in shown and "encoding audio: 1 of 1" in shown
    make_cache(media).fill([row(media, "b.png")], progress=False)
    assert "encoding" not in capfd.readouterr().err


# ---- Views ----------------------------------------------------------------------------------------------------------

AUGMENTATION = Augmentation(ImageAugmentation(crop=0.5, color=0.5), AudioAugmentation(noise=1.0, speed=0.2))
CHANGES = {"augmentation": AUGMENTATION, "views": {"image": 3, "audio": 3}}


@pytest.mark.parametrize("name", ["a.png", "short.wav"])
def test_views_differ_and_the_first_is_the_file_as_it_is(media, name: str) -> None:
    views = [filled(media, name, **CHANGES).states(media_part(media, name), view)[0] for view in range(3)]
    torch.testing.assert_close(views[0], encoded(media, name)[0], rtol=STORED_ERROR, atol=1e-4)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert views[first].shape != views[second].shape or not torch.allclose(views[first], views[second], atol=0.01)


def test_views_are_the_same_whatever_is_encoded_with_them(media) -> None:
    together = filled(media, "a.png", "b.png", "short.wav", **CHANGES)
    expected = [together.states(media_part(media, "b.png"), view)[0] for view in range(3)]
    shutil.rmtree(media / "cache")
    alone = filled(media, "b.png", **CHANGES)
    for view in range(3):
        states = alone.states(media_part(media, "b.png"), view)[0]
        torch.testing.assert_close(states, expected[view], rtol=STORED_ERROR, atol=1e-4)


def test_another_seed_gives_other_views(media) -> None:
    one = filled(media, "a.png", **CHANGES)
    other = filled(media, "a.png", **CHANGES | {"augmentation": replace(AUGMENTATION, seed=1)})
    assert torch.equal(one.states(media_part(media, "a.png"))[0], other.states(media_part(media, "a.png"))[0])
    assert not torch.equal(
        one.states(media_part(media, "a.png"), 1)[0], other.states(media_part(media, "a.png"), 1)[0]
    )


def test_samples_to_be_tested_with_need_only_the_first_view(media) -> None:
    states = make_cache(media, **CHANGES)
    states.fill([row(media, "a.png")], views=False, progress=False)
    assert len(states.stores["image"].entries) == 1
    with pytest.raises(KeyError, match="not in the encoder cache"):
        states.states(media_part(media, "a.png"), 1)


# ---- Which store ----------------------------------------------------------------------------------------------------


def folders(states: EncoderCache) -> tuple[str, str]:
    return states.stores["image"].folder.name, states.stores["audio"].folder.name


def test_another_weight_gives_another_store(media) -> None:
    before = folders(make_cache(media))
    model = chat_model(freeze_vision=True, freeze_audio=True)
    with torch.no_grad():
        next(model.base_model.vision_tower.parameters()).view(-1)[0] += 1e-3
    after = folders(EncoderCache(media / "cache", model, processor()))
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_another_preprocessing_gives_another_store(media) -> None:
    other = make()
    other.image_processor = make_vit()
    other.image_processor.image_mean = [0.4, 0.5, 0.5]
    before, after = folders(make_cache(media)), folders(EncoderCache(media / "cache", frozen_model(), other))
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_processor_that_was_saved_finds_the_same_store(media, tmp_path) -> None:
    """Saving writes into the parts what they belong to."""
    saved = make()
    before = folders(EncoderCache(media / "cache", frozen_model(), saved))
    saved.save_pretrained(tmp_path)
    assert folders(EncoderCache(media / "cache", frozen_model(), saved)) == before
    loaded = type(saved).from_pretrained(tmp_path)
    assert folders(EncoderCache(media / "cache", frozen_model(), loaded)) == before


def test_another_setting_of_an_encoder_gives_another_store(media) -> None:
    before, model = folders(make_cache(media)), frozen_model()
    model.base_model.vision_tower.config.hidden_act = "relu"
    after = folders(EncoderCache(media / "cache", model, processor()))
    assert after[0] != before[0] and after[1] == before[1]


def test_another_augmentation_gives_another_store(media) -> None:
    plain = folders(make_cache(media))
    assert folders(make_cache(media, augmentation=Augmentation(ImageAugmentation(crop=0.1))))[0] != plain[0]
    assert folders(make_cache(media, augmentation=Augmentation(audio=AudioAugmentation(noise=0.1))))[1] != plain[1]
    assert folders(make_cache(media, views={"image": 2, "audio": 2})) == plain  # more views are added to the store


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frozen", "named"), [("freeze_audio", "image"), ("freeze_vision", "audio")])
def test_an_encoder_that_is_trained_is_refused(tmp_path, frozen: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"The {named} encoder is not frozen.*Freeze it"):
        EncoderCache(tmp_path, chat_model(**{frozen: True}), processor())


def test_a_file_that_is_not_in_the_cache_is_named_with_the_remedy(media) -> None:
    states = filled(media, "a.png")
    with pytest.raises(KeyError, match=r"b\.png is not in the encoder cache. `fill` it"):
        states.states(media_part(media, "b.png"))


def test_a_changed_file_is_another(media) -> None:
    filled(media, "a.png")
    shutil.copy(media / "b.png", media / "a.png")
    with pytest.raises(KeyError, match=r"a\.png is not in the encoder cache"):
        make_cache(media).states(media_part(media, "a.png"))


@pytest.mark.parametrize(
    "source",
    [{"image": Image.new("RGB", (4, 4))}, {"path": "/nowhere/cat.png"}, {"url": "https://example.org/cat.png"}, {}],
)
def test_media_that_are_no_files_are_refused(media, source: dict) -> None:
    broken = row(media)
    broken.messages[0]["content"].insert(0, {"type": "image", **source})
    with pytest.raises(ValueError, match=r"takes media that are files.*Write them to files"):
        make_cache(media).fill([broken], progress=False)


def test_media_without_an_encoder_are_refused(media) -> None:
    seeing = joined(gpt2(vocab_size=len(processor().tokenizer)), audio=None, freeze_vision=True)
    states = EncoderCache(media / "cache", seeing, processor())
    with pytest.raises(ValueError, match="part of type 'audio', but the model has no encoder for it"):
        states.fill([row(media, "short.wav")], progress=False)
    with pytest.raises(ValueError, match="part of type 'audio'"):
        states.states(media_part(media, "short.wav"))


# ---- The store ------------------------------------------------------------------------------------------------------


def windows(seed: int, *lengths: int, width: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator).half().float() for length in lengths]


def equal(store: StateStore, key: str, expected: list[torch.Tensor]) -> bool:
    kept = store[key]
    return len(kept) == len(expected) and all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True))


ITEMS = {"first": windows(0, 2), "second": windows(1, 1, 2), "third": windows(2, 1)}


@pytest.fixture
def whole(tmp_path) -> Path:
    store = StateStore(tmp_path / "store")
    store.append(list(ITEMS.items())[:2])
    store.append(list(ITEMS.items())[2:])
    return tmp_path / "store"


def test_a_store_gives_back_what_was_put_in(whole) -> None:
    for store in (StateStore(whole), pickle.loads(pickle.dumps(StateStore(whole)))):
        assert "fourth" not in store
        assert all(key in store and equal(store, key, item) for key, item in ITEMS.items())


def test_items_of_several_widths_share_a_store(tmp_path) -> None:
    store = StateStore(tmp_path)
    store.append([("narrow", windows(0, 2, width=2)), ("wide", windows(1, 2, width=5))])
    assert equal(store, "narrow", windows(0, 2, width=2)) and equal(store, "wide", windows(1, 2, width=5))


@pytest.mark.parametrize("name", [STATES, LINES])
def test_a_store_cut_at_any_byte_keeps_what_is_whole_and_goes_on(whole, tmp_path, name: str) -> None:
    """As an interrupted append leaves it: the last item is there as a whole or not at all, the others always are."""
    data = (whole / name).read_bytes()
    third = {STATES: 6, LINES: len((whole / LINES).read_bytes().splitlines(keepends=True)[-1])}[name]
    for size in range(len(data) - third, len(data) + 1):
        cut = tmp_path / f"cut-{size}"
        shutil.copytree(whole, cut)
        os.truncate(cut / name, size)
        store = StateStore(cut)
        assert set(store.entries) == set(ITEMS if size == len(data) else ["first", "second"])
        assert all(equal(store, key, ITEMS[key]) for key in store.entries)
        store.append([("third", ITEMS["third"]), ("fourth", windows(3, 2))])
        for each in (store, StateStore(cut)):
            assert all(equal(each, key, item) for key, item in (ITEMS | {"fourth": windows(3, 2)}).items())
        # Nothing of the broken part is left.
        counted = sum(len(w) * 3 for item in [*ITEMS.values(), windows(3, 2)] for w in item)
        extra = 3 if size == len(data) else 0  # "third" was whole, and was appended again
        assert (cut / STATES).stat().st_size == 2 * (counted + extra)


def test_states_without_an_index_are_forgotten(tmp_path) -> None:
    """The very first append was interrupted, in the middle of a value."""
    (tmp_path / STATES).write_bytes(b"\1\2\3")
    store = StateStore(tmp_path)
    assert not store.entries
    store.append([("first", ITEMS["first"])])
    assert equal(StateStore(tmp_path), "first", ITEMS["first"])


def test_an_index_without_states_is_forgotten(whole) -> None:
    (whole / STATES).unlink()
    store = StateStore(whole)
    assert not store.entries
    store.append(list(ITEMS.items()))
    assert all(equal(StateStore(whole), key, item) for key, item in ITEMS.items())


def test_opening_a_store_changes_nothing_in_it(whole) -> None:
    """Another process may be in the middle of an append."""
    with open(whole / STATES, "ab") as states:
        states.write(b"\1\2\3")
    with open(whole / LINES, "ab") as index:
        index.write(b'["four')
    before = {name: (whole / name).read_bytes() for name in (STATES, LINES)}
    assert set(StateStore(whole).entries) == set(ITEMS)
    assert {name: (whole / name).read_bytes() for name in (STATES, LINES)} == before


def test_a_store_that_another_has_filled_meanwhile_is_not_overwritten(tmp_path) -> None:
    one, other = StateStore(tmp_path), StateStore(tmp_path)
    one.append([("first", ITEMS["first"])])
    other.append([("second", ITEMS["second"])])
    one.append([("third", ITEMS["third"])])
    assert all(equal(store, key, item) for store in (one, StateStore(tmp_path)) for key, item in ITEMS.items())


def test_an_append_that_fails_leaves_the_store_as_it_was(whole) -> None:
    def items():
        yield "fourth", windows(3, 2)
        raise InterruptedError

    store = StateStore(whole)
    with pytest.raises(InterruptedError):
        store.append(items())
    assert "fourth" not in store
    store.append([("fifth", windows(4, 1))])
    for each in (store, StateStore(whole)):
        assert set(each.entries) == {*ITEMS, "fifth"}
        assert equal(each, "fifth", windows(4, 1)) and equal(each, "third", ITEMS["third"])


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_values_that_cannot_be_kept_are_refused(tmp_path, value: float) -> None:
    with pytest.raises(ValueError, match="holds values up to 65504"):
        StateStore(tmp_path).append([("item", [torch.tensor([[1.0, value]])])])
    assert not StateStore(tmp_path).entries


def test_a_killed_append_loses_its_items_alone(whole) -> None:
    def die() -> None:
        def items():
            yield "fourth", windows(3, 5)
            os.kill(os.getpid(), signal.SIGKILL)

        StateStore(whole).append(items())

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    store = StateStore(whole)
    assert set(store.entries) == set(ITEMS)
    store.append([("fourth", windows(3, 5))])
    assert all(equal(StateStore(whole), key, item) for key, item in (ITEMS | {"fourth": windows(3, 5)}).items())


# ---- Damage and company ---------------------------------------------------------------------------------------------


def test_a_changed_bit_anywhere_is_named_or_gives_the_same_states(whole, tmp_path) -> None:
    for name in (STATES, LINES):
        data = (whole / name).read_bytes()
        for place in range(len(data)):
            copy = tmp_path / "copy"
            shutil.copytree(whole, copy, dirs_exist_ok=True)
            (copy / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            for key, item in ITEMS.items():
                try:
                    store = StateStore(copy)
                    assert key not in store or equal(store, key, item), (name, place)
                except ValueError as error:
                    assert str(copy / name) in str(error) or str(copy / STATES) in str(error)


def test_a_cache_names_the_media_file_whose_states_are_damaged(media) -> None:
    cache = filled(media, "a.png")
    (states,) = Path(cache.stores["image"].folder).glob(STATES)
    data = bytearray(states.read_bytes())
    data[7] ^= 1
    states.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"encoder cache of .*a\.png cannot be used: .*states\.bin, item \w+/0: damaged"
    ):
        cache.states(media_part(media, "a.png"))


def test_lines_of_before_without_checksums_are_refused(whole) -> None:
    (whole / LINES).write_text('["first", 0, [2], 3]\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"index\.jsonl, line 1: damaged\. Delete the folder"):
        StateStore(whole)


WRITERS, EACH = 4, 25


def write_many(folder: Path, writer: int) -> None:
    store = StateStore(folder)
    for number in range(EACH):
        store.append([(f"{writer}/{number}/{half}", windows(writer * EACH + number, 1 + half)) for half in (0, 1)])


def test_several_writers_at_once_lose_and_mix_nothing(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path, writer)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * WRITERS
    store = StateStore(tmp_path)
    assert len(store.entries) == WRITERS * EACH * 2
    for writer in range(WRITERS):
        for number in range(EACH):
            for half in (0, 1):
                assert equal(store, f"{writer}/{number}/{half}", windows(writer * EACH + number, 1 + half))


KILLED = """
import os, signal, sys
from modeling_mm.training import state_store as module
from pathlib import Path
from tests.fakes.media_rows import make_cache, row

folder, whole, calls = Path(sys.argv[1]), module.to_stored, []
def to_stored(window):
    calls.append(window)
    if len(calls) == 4:  # the second window of the long audio
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(window)
module.to_stored = to_stored
make_cache(folder, batch_size=1).fill([row(folder, "a.png", "b.png", "long.wav", "short.wav")], progress=False)
"""


@pytest.mark.slow
def test_a_killed_fill_goes_on_to_the_same_states(media) -> None:
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([QUICK_PYTHON, "-c", KILLED, str(media)], capture_output=True, text=True, cwd=root)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(make_cache(media).stores["image"].entries) == 2 and not make_cache(media).stores["audio"].entries
    names = ("a.png", "b.png", "long.wav", "short.wav")
    states = filled(media, *names)
    assert all(len(states.stores[kind].entries) == 2 for kind in ("image", "audio"))
    for name in names:
        for window, truth in zip(states.states(media_part(media, name)), encoded(media, name), strict=True):
            torch.testing.assert_close(window, truth, rtol=STORED_ERROR, atol=1e-4)


def test_rows_of_another_pass_need_nothing_new(media) -> None:
    states = filled(media, "a.png")
    states.fill([replace(row(media, "a.png"), epoch=3)], progress=False)
    assert len(states.stores["image"].entries) == 1
