"""index.py: searching, recommending, adding and deleting."""

import numpy as np
import pytest

from modeling_mm.search import Index, Item, build_index
from tests.search.conftest import SIZE, STORES, save_stripes, write_rows

TEXTS = ["a cat", "a dog", "a bird", "hello there", "a red square", "What do you see?"]


@pytest.fixture(params=STORES)
def folder(request, embedder, tmp_path):
    rows = [{"id": text, "text": text, "length": len(text)} for text in TEXTS]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    build_index(source, tmp_path / "index", embedder, store=request.param, progress=False)
    return tmp_path / "index"


@pytest.fixture
def index(folder, embedder):
    with Index(folder, embedder) as opened:
        yield opened


@pytest.fixture
def vectors(embedder) -> dict[str, np.ndarray]:
    return {text: embedder.embed_item(Item(text)) for text in TEXTS}


def ids(hits) -> list[str]:
    return [hit.row.id for hit in hits]


def ranked(vectors, query, names=TEXTS) -> list[str]:
    return sorted(names, key=lambda name: -float(vectors[name] @ query))


def test_a_query_is_an_item_or_an_embedding(index, vectors):
    for text in TEXTS[:3]:
        assert (
            ids(index.search(Item(text), 6)) == ids(index.search(vectors[text], 6)) == ranked(vectors, vectors[text])
        )
    assert len(index) == 6 and len(index.search(Item("a cat"), 2)) == 2
    assert set(ids(index.search(Item("a cat"), 6, ["length < 7"]))) == {"a cat", "a dog", "a bird"}


def test_a_recommendation_is_alike_to_some_and_unlike_others(index, vectors):
    liked = vectors["a cat"] + vectors["a dog"]
    assert ids(index.recommend(["a cat", "a dog"])) == ranked(vectors, liked, TEXTS[2:])
    hits = index.recommend(["a cat", "a dog"], ["hello there"], top=2)
    query = liked / 2 - vectors["hello there"]
    assert ids(hits) == ranked(vectors, query, [*TEXTS[2:3], *TEXTS[4:]])[:2]
    assert hits[0].score == pytest.approx(float(vectors[hits[0].row.id] @ query), abs=1e-5)
    assert ids(index.recommend(["a cat"], where=["length < 7"])) == ranked(vectors, vectors["a cat"], TEXTS[1:3])


@pytest.mark.parametrize(
    ("like", "unlike", "message"),
    [
        ([], ["a cat"], "Recommending needs at least one row that is liked."),
        (["a cat"], ["a cat"], "'a cat' is liked and not liked. Pass it once."),
        (["a kat"], [], "index has no row 'a kat'. Did you mean 'a cat'?"),
    ],
)
def test_recommendations_that_mean_nothing(index, like, unlike, message):
    with pytest.raises(ValueError, match=r"row|liked") as error:
        index.recommend(like, unlike)
    assert message in str(error.value)


def test_rows_with_one_embedding_on_both_sides_are_refused(index, embedder):
    index.add([Item("a cat", id="the same")])
    with pytest.raises(ValueError, match="have the same embeddings"):
        index.recommend(["a cat"], ["the same"])


def test_queries_with_nothing_in_them_or_of_another_size_are_refused(index, folder):
    for text in ("", " \n"):
        with pytest.raises(ValueError, match="The query: there is nothing in it"):
            index.search(Item(text, where="The query"))
    for broken in (np.ones(SIZE + 1), np.ones((2, SIZE)), np.full(SIZE, np.nan)):
        with pytest.raises(ValueError, match="The index holds embeddings of 8 numbers; expected a query of as many"):
            index.search(broken)
    for top in (0, 16_385):
        with pytest.raises(ValueError, match=f"Expected 1 to 16384 rows, got {top}."):
            index.search(np.ones(SIZE), top)
    index.close()
    with Index(folder) as without, pytest.raises(ValueError, match="was opened without a model"):
        without.search(Item("a cat"))


def test_items_are_added_updated_and_deleted(index, embedder, tmp_path):
    image = str(save_stripes(tmp_path / "a.png", 0))
    index.add([Item(media={"image": [image]}, id="new", metadata={"length": 3}), Item("a dog", id="a cat")])
    assert len(index) == 7
    best = index.search(Item(media={"image": [image]}), 1)[0]
    assert (best.row.id, best.row.media, best.row.metadata) == ("new", {"image": [image]}, {"length": 3})
    assert set(ids(index.search(Item("a dog"), 2))) == {"a cat", "a dog"}
    assert (index.delete(["new", "nothing"]), len(index)) == (1, 6)


def test_of_items_one_of_which_has_no_content_none_is_added(index):
    with pytest.raises(ValueError, match="row 1: there is nothing in it"):
        index.add([Item("fine", id="fine"), Item("", where="row 1")])
    with pytest.raises(ValueError, match="The item: the index has no column 'size'"):
        index.add([Item("fine", id="fine"), Item("also", metadata={"size": 3})])
    assert len(index) == 6


def test_an_item_that_the_model_does_not_take_is_named_and_none_is_added(index):
    with pytest.raises(ValueError, match=r"row 1: .*positions"):
        index.add([Item("fine", id="fine"), Item("word " * 400, where="row 1")])
    assert len(index) == 6


def test_deletions_give_space_back(index, folder):
    if index.manifest.store != "exact":
        pytest.skip("Milvus compacts by itself, at times of its choice, so that no size follows a deletion")
    assert index.delete(TEXTS[:4]) == 4
    assert sorted(path.suffix for path in (folder / "rows").iterdir()) == [".arrow", ".npy"]
    assert set(index.store.signatures()) == set(TEXTS[4:])


def test_of_two_items_of_one_id_the_last_is_kept(index, embedder):
    index.add([Item("a cat", id="x"), Item("hello there", id="x")])
    assert len(index) == 7 and index.store.get(["x"])["x"][0].text == "hello there"


def test_rows_that_were_added_by_hand_outlive_a_build(folder, embedder, tmp_path):
    with Index(folder, embedder) as index:
        index.add([Item("mine", id="mine")])
    report = build_index(tmp_path / "rows.jsonl", folder, embedder, progress=False)
    assert (report.rows, report.unchanged, report.deleted) == (7, 6, 0)
