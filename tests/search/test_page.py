"""page.py: results with their images and players, safe to open."""

from modeling_mm.search import Hit, Row, results_cards, results_page
from tests.search.conftest import save_stripes, save_tone


def test_rows_are_shown_with_images_and_players(tmp_path):
    image, audio = str(save_stripes(tmp_path / "a.png", 0)), str(save_tone(tmp_path / "a.wav", 440))
    media = {"image": [image], "audio": [audio]}
    hits = [
        Hit(0.5, Row("<b>", "image+audio+text", "a <i>cat</i>", media, "s", "x", {"year": 1999, "none": None})),
        Hit(0.25, Row("gone", "image", "", {"image": [str(tmp_path / "gone.png"), ""]}, "s", "x", {})),
    ]
    page = results_page("a & b", {"image": [image]}, hits)
    assert page.count("<article>") == 2 and page.count('<img src="data:image/jpeg;base64,') == 2
    assert page.count('<audio controls src="data:audio/flac;base64,') == 1
    assert "1. &lt;b&gt;" in page and "a &lt;i&gt;cat&lt;/i&gt;" in page and "<i>" not in page
    assert "<h1>a &amp; b</h1>" in page and "year: 1999" in page and "none" not in page.split("</head>")[1]
    assert "0.500" in page and "0.250" in page and "image that cannot be read" in page
    assert "default-src 'none'" in page and "<script" not in page


def test_no_row_is_said():
    assert "No row meets the conditions." in results_page("a", {}, [])


def test_a_part_of_another_page_has_the_same_rows(tmp_path):
    media = {"image": [str(save_stripes(tmp_path / "a.png", 0))]}
    hits = [Hit(0.5, Row("<b>", "image", "", media, "s", "x", {"year": 1999}))]
    part = results_cards(hits)
    assert part in results_page("a", {}, hits).replace("<main>\n", "") and "<html" not in part
    assert part.count("<article>") == part.count('<img src="data:image/jpeg;base64,') == 1
    assert "1. &lt;b&gt;" in part and "0.500" in part and "year: 1999" in part
