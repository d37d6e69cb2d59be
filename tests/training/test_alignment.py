"""The stage before training: what media are named by, the two losses by hand, and that connectors learn words."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling_mm.data import ChatRow
from modeling_mm.training import (
    AlignmentOptions,
    CachedCollator,
    ChatCollator,
    NamedMedium,
    align,
    alignment,
    named_media,
)
from tests.fakes.media_rows import filled, frozen_model, row, write_media
from tests.fakes.tiny_chats import chat_model, processor, weights


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_media(tmp_path)


def tokens(text: str) -> tuple[int, ...]:
    return tuple(processor().tokenizer(text, add_special_tokens=False)["input_ids"])


def of_rows(rows: list[ChatRow], kind: str) -> list[NamedMedium]:
    return named_media(rows, kind, processor().tokenizer)


# ---- What media are named by ----------------------------------------------------------------------------------------


def test_a_file_has_one_answer_for_each_task(folder):
    rows = [
        row(folder, "a.png", answer="a cat", task="name"),
        row(folder, "b.png", answer="a dog", task="name"),
        row(folder, "a.png", answer="red", task="color"),
    ]
    first, second = of_rows(rows, "image")
    assert first.answers == {"name": tokens("a cat"), "color": tokens("red")}
    assert second.answers == {"name": tokens("a dog")}
    assert first.row is rows[0] and second.row is rows[1]


def test_parts_of_one_file_with_other_keys_are_two_media(folder):
    """Such as tokens that a collator moves to the class that a part names."""

    def lesson(answer: str, **keys) -> ChatRow:
        plain = row(folder, "a.png", answer=answer, task=answer)
        part, text = plain.messages[0]["content"]
        return replace(plain, messages=[{"role": "user", "content": [{**part, **keys}, text]}, *plain.messages[1:]])

    rows = [lesson("cat", number=1), lesson("dog", number=2), lesson("bird", number=1), lesson("hello")]
    found = of_rows(rows, "image")
    assert [set(medium.answers) for medium in found] == [{"cat", "bird"}, {"dog"}, {"hello"}]
    assert [medium.row for medium in found] == [rows[0], rows[1], rows[3]]


@pytest.mark.parametrize(
    "names, kind, found",
    [
        (("a.png", "b.png"), "image", "image and image"),
        (("short.wav",), "image", "audio"),
        ((), "audio", "no media"),
    ],
)
def test_rows_with_other_media_are_refused_by_name(folder, names, kind, found):
    with pytest.raises(ValueError, match=rf"Example x7 cannot be used .*: expected one {kind}.*got {found} and"):
        of_rows([row(folder, *names, id="x7")], kind)


def test_an_empty_answer_is_refused(folder):
    with pytest.raises(ValueError, match=r"Example 0 cannot be used for alignment.*the answer ''"):
        of_rows([row(folder, "a.png", answer="")], "image")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"steps": 1, "max_choices": 1}, "max_choices must be at least 2, got 1"),
    ],
)
def test_wrong_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AlignmentOptions(**fields)


# ---- The losses, by hand --------------------------------------------------------------------------------------------

D, V = 3, 6


class Words(nn.Module):
    """As much of a joint model as the losses read: a last norm that changes nothing, and a head."""

    def __init__(self, head: torch.Tensor):
        super().__init__()
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight.data = head
        self.base_model = SimpleNamespace(language_model=SimpleNamespace(ln_f=nn.Identity()))
        self.config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=V), audio_token_id=0)
        self.device = torch.device("cpu")

    def get_output_embeddings(self):
        return self.head


def log_softmax(scores: list[float], place: int) -> float:
    return scores[place] - math.log(sum(math.exp(score) for score in scores))


def test_a_picture_is_read_as_a_bag_of_words_off_the_mean_of_its_real_tokens():
    head = torch.zeros(V, D)
    head[1], head[2], head[3] = torch.tensor([2.0, 0, 0]), torch.tensor([0, 2.0, 0]), torch.tensor([0, 0, 1.0])
    aligner = alignment.Aligner(Words(head))
    states = torch.tensor([[[1.0, 3.0, 0.0], [3.0, 1.0, 2.0], [9.0, 9.0, 9.0]]])  # the third token is padding
    seen = states, torch.tensor([[True, True, False]])  # the mean is (2, 2, 1)
    scores = [0.0, 4.0, 4.0, 1.0, 0.0, 0.0]
    loss = aligner.image_loss(*seen, [NamedMedium(None, {"t": (1, 3, 1)})])  # a word twice is there once
    assert loss.item() == pytest.approx(-(log_softmax(scores, 1) + log_softmax(scores, 3)) / 2, abs=1e-6)
    aligner.bias.data[3] = 3.0
    scores[3] = 4.0
    loss = aligner.image_loss(*seen, [NamedMedium(None, {"t": (3,)})])
    assert loss.item() == pytest.approx(-log_softmax(scores, 3), abs=1e-6)


def test_answers_weigh_the_same_and_so_do_pictures():
    """With a head of zeros only the bias tells words apart."""
    aligner = alignment.Aligner(Words(torch.zeros(V, D)))
    aligner.bias.data = torch.arange(V, dtype=torch.float32)
    pictures = [NamedMedium(None, {"a": (1, 2), "b": (3,)}), NamedMedium(None, {"a": (4,)})]
    loss = aligner.image_loss(torch.zeros(2, 1, D), torch.ones(2, 1, dtype=torch.bool), pictures)
    scores = [float(word) for word in range(V)]
    of_first = (log_softmax(scores, 1) + log_softmax(scores, 2)) / 4 + log_softmax(scores, 3) / 2
    assert loss.item() == pytest.approx(-(of_first + log_softmax(scores, 4)) / 2, abs=1e-6)


def test_a_sound_is_read_word_by_word_over_its_windows():
    """Two windows of which only some tokens are real; they say 1, nothing, 2."""
    head = torch.zeros(V, D)
    head[1, 0], head[0, 1], head[2, 2] = 50.0, 50.0, 50.0
    states = torch.eye(3)[[0, 2, 1, 2, 0]][None]
    mask = torch.tensor([[True, False, True, True, False]])
    aligner = alignment.Aligner(Words(head))
    heard = NamedMedium(None, {"t": (1, 2)})
    assert aligner.audio_loss(states, mask, [heard]).item() == pytest.approx(0.0, abs=1e-4)
    assert aligner.audio_loss(states, mask, [NamedMedium(None, {"t": (2, 1)})]).item() > 10
    assert aligner.audio_loss(states, mask, [NamedMedium(None, {"t": (1, 2, 3, 4)})]).item() == 0.0  # too long


# ---- All of it ------------------------------------------------------------------------------------------------------


def media_of(folder: Path) -> dict[str, list[NamedMedium]]:
    pictures = [row(folder, f"{n}.png", answer=a, task="t") for n, a in (("a", "cat"), ("b", "dog"), ("c", "bird"))]
    sounds = [row(folder, f"{n}.wav", answer=a) for n, a in (("short", "hello"), ("long", "a green bird"))]
    return {"image": of_rows(pictures, "image"), "audio": of_rows(sounds, "audio")}


OPTIONS = AlignmentOptions(steps=200, image_batch_size=3, audio_batch_size=2, learning_rate=1e-2)


def test_connectors_learn_the_words_and_nothing_else_moves(folder):
    model = chat_model(freeze_vision=True, freeze_audio=True)
    before = weights(model)
    named = media_of(folder)
    losses = align(model, ChatCollator(processor()), named, OPTIONS, progress=False)
    floor = sum(math.log(len({*image.answers["t"]})) for image in named["image"]) / 3  # bags have no order
    assert floor <= losses["image_loss"] < floor + 0.1 and losses["audio_loss"] < 0.5
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    head = {name for name in moved if "wte" in name or "lm_head" in name or "ln_f" in name}
    assert head and all("connector" in name for name in moved - head)
    assert any("vision_connector" in name for name in moved) and any("audio_connector" in name for name in moved)


def test_what_is_frozen_stays(folder):
    model = chat_model(freeze_text=True, freeze_vision=True, freeze_audio=True)
    before = weights(model)
    align(model, ChatCollator(processor()), media_of(folder), replace(OPTIONS, steps=2), progress=False)
    assert {n for n, v in weights(model).items() if not torch.equal(v, before[n])} <= {
        name for name in before if "connector" in name
    }


def test_cached_states_do_as_well_and_the_seed_gives_the_same(folder):
    cache = filled(folder, "a.png", "b.png", "c.png", "short.wav", "long.wav")
    collator = CachedCollator(processor(), cache)
    found = []
    for seed in (1, 1, 2):
        model = chat_model(freeze_vision=True, freeze_audio=True)
        model.load_state_dict(frozen_model().state_dict())
        options = replace(OPTIONS, steps=5, image_batch_size=2, audio_batch_size=1)
        torch.manual_seed(0)
        found.append(align(model, collator, media_of(folder), options, seed=seed, progress=False))
    assert found[0] == found[1] != found[2]


class Recording(ChatCollator):
    """Keeps the numbers of the media and the epochs of each batch; `sizes` are media sizes by number."""

    sizes = None

    def __call__(self, rows):
        self.batches = [*getattr(self, "batches", []), [(int(row.id), row.epoch) for row in rows]]
        return super().__call__(rows)

    def media_size(self, row):
        return (0, 0, 0) if self.sizes is None else (0, self.sizes[int(row.id)], 0)


def recorded(folder: Path, count: int, batch_size: int, steps: int, sizes=None, seed=0) -> list[list[tuple[int, int]]]:
    rows = [row(folder, "a.png", answer="cat", id=str(number)) for number in range(count)]
    media = [NamedMedium(each, {"t": tokens("cat")}) for each in rows]
    collator = Recording(processor())
    collator.sizes = sizes
    options = replace(OPTIONS, steps=steps, image_batch_size=batch_size)
    align(chat_model(), collator, {"image": media}, options, seed, progress=False)
    return collator.batches


def test_each_pass_shows_every_medium_once_and_has_a_number(folder):
    batches = recorded(folder, 5, 2, steps=6)
    for epoch in (0, 1):
        shown = [medium for batch in batches[3 * epoch : 3 * epoch + 3] for medium in batch]
        assert sorted(shown) == [(number, epoch) for number in range(5)]
    assert [n for batch in batches[:3] for n, _ in batch] != [n for batch in batches[3:] for n, _ in batch]
    assert recorded(folder, 5, 2, steps=2) == batches[:2], "the seed decides"
    assert recorded(folder, 5, 2, steps=6, seed=1) != batches


def test_batches_are_of_like_length_where_it_is_known(folder):
    sizes = [number // 4 for number in range(8)]
    for batch in recorded(folder, 8, 4, steps=4, sizes=sizes):
        assert len({sizes[number] for number, _ in batch}) == 1


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_one_kind_of_media_is_enough(folder, kind):
    given = {kind: media_of(folder)[kind]}
    losses = align(chat_model(), ChatCollator(processor()), given, replace(OPTIONS, steps=1), progress=False)
    assert list(losses) == [f"{kind}_loss"]


def test_nothing_to_align_by_is_refused():
    with pytest.raises(ValueError, match=r"there are no media\. Remove `alignment`"):
        align(chat_model(), ChatCollator(processor()), {"image": []}, OPTIONS)


def test_sharded_weights_are_refused(folder):
    model = chat_model()
    next(model.parameters()).ds_id = 0
    with pytest.raises(ValueError, match="sharded over processes"):
        align(model, ChatCollator(processor()), media_of(folder), OPTIONS)
