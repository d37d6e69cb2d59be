"""A few questions about the sample in processing/corpora/sample."""

from modeling_mm.data import ChatRow, to_row
from scripts.workshop.corpus import read_lines
from scripts.workshop.sample import SAMPLE_FOLDER, audio_questions, image_questions, pair_questions

IMAGES, AUDIO = (read_lines(SAMPLE_FOLDER / f"{name}.jsonl") for name in ("images", "audio"))


def sample_rows(count: int = 2) -> list[ChatRow]:
    """Return two questions about each of the first images and recordings, and one about each pair."""
    images, audio = IMAGES[:count], AUDIO[:count]
    examples = [*image_questions(images), *audio_questions(audio), *pair_questions(images, audio)]
    return [to_row(example, SAMPLE_FOLDER) for example in examples]
