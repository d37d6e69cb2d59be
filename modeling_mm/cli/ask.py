# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm ask`: one question about one's own files, the questions of a file, or what a row matches."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from ..data import ChatDataset, ChatRow, load_chats, media_parts, media_source, turn_text
from ..data.chat_row import Message
from ..evaluation import (
    classify,
    free_positions,
    generate_answers,
    is_classifier,
    labels_of,
    predict_labels,
    prompt_inputs,
    spoken_form,
)
from ..explain import (
    NOTES,
    Band,
    check_method,
    draw,
    explain_target,
    make_target,
    modality_contributions,
    read_band,
    save,
    write_page,
)
from ..modalities import MODALITIES, VIDEO
from ..utils import format_table
from ..video_parts import VideoReader, expand_chats
from .arguments import EXPLAIN
from .loading import ANSWERING, EMBEDDING, load_model
from .match import compare

MOST_LABELS = 5  # labels


def run(options: Namespace) -> None:
    """Print answers, of a classifier labels, of a model that embeds similarities; draw where they come from."""
    turn = user_turn(options)
    attention = "eager" if options.attention else None  # the fused kernels keep no weights
    options.explain = options.explain or EXPLAIN[-1 if options.match else 0]
    heads = EMBEDDING if options.match else ANSWERING
    model, processor = load_model(options.model, options.device, options.dtype, attention, heads)
    if options.attention:
        check_method(model, options.explain)
    answer = compare if options.match else answer_file if options.questions else answer_question
    if not is_classifier(model) and not options.match:
        model.generation_config.max_length = None  # --max-new-tokens takes its place, without a warning
    bands = answer(options, model, processor, turn)
    if options.attention:
        print(f"Drawn: {write_drawing(bands, options)}")


def write_drawing(bands: list[Band], options: Namespace) -> Path:
    """Write explained answers, or both sides of matches, as a page or as a figure, by the name of the file."""
    what, noun = ("the similarity", "side") if options.match else ("each word of the answer", "answer")
    if is_page(options):
        return write_page(bands, f"{options.model}: where {what} comes from", options.attention, noun)
    return save(draw(bands, f"Where {what} comes from", NOTES[options.explain]), options.attention)


def is_page(options: Namespace) -> bool:
    return Path(options.attention).suffix.lower() in (".html", ".htm")


def explained(
    options: Namespace,
    model: Any,
    processor: Any,
    prompt: list[Message],
    truth: str | None = None,
    answer_ids: list[int] | None = None,
) -> Band:
    """Return what to draw of an answer, or of a classifier's likeliest label; of a page with contributions."""
    prompt = expand(processor, prompt)
    target = make_target(model, processor, prompt, answer_ids=answer_ids, max_new_tokens=options.max_new_tokens)
    band = read_band(prompt, explain_target(target, options.explain), truth)
    return replace(band, contributions=modality_contributions(target)) if is_page(options) else band


def user_turn(options: Namespace) -> Message:
    """Return the files and the text of the question as a turn of a chat."""
    kinds = (*MODALITIES, VIDEO)  # `export` takes no videos
    content = [{"type": name, "path": path} for name in kinds for path in getattr(options, name, ())]
    if options.question:
        content.append({"type": "text", "text": options.question})
    return {"role": "user", "content": content}


def answer_question(options: Namespace, model: Any, processor: Any, turn: Message) -> list[Band]:
    """Print the answer while it is generated, or labels with their scores; return what to draw of it."""
    if is_classifier(model):
        print_labels(model, classify(model, processor, [[turn]])[0])
        return [explained(options, model, processor, [turn])] if options.attention else []
    inputs = {name: tensor.to(model.device) for name, tensor in prompt_inputs(processor, [[turn]]).items()}
    length = inputs["input_ids"].shape[1]
    tokens = model.generate(
        **inputs,
        max_new_tokens=int(min(options.max_new_tokens, max(1, free_positions(model.config, length)))),
        do_sample=False,
        num_beams=1,
        streamer=TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    if not options.attention:
        return []
    return [explained(options, model, processor, [turn], answer_ids=tokens[0, length:].tolist())]


def print_labels(model: Any, scores: Any) -> None:
    """Print the labels with the highest scores, one a line."""
    ranked = sorted(zip(labels_of(model), scores.tolist(), strict=True), key=lambda pair: -pair[1])[:MOST_LABELS]
    width = max(len(label) for label, _ in ranked)
    print("\n".join(f"{label:{width}}  {score:.3f}" for label, score in ranked))


def mark_of(row: ChatRow, answer: str) -> str:
    """Return ✓ for the truth, ≈ for its words in other capitals or punctuation, which nobody can hear, else ✗."""
    if answer == row.answer:
        return "✓"
    heard = any(part["type"] == "audio" for part in media_parts(row.prompt))
    return "≈" if heard and spoken_form(answer) == spoken_form(row.answer) else "✗"


def answer_file(options: Namespace, model: Any, processor: Any, _: Message) -> list[Band]:
    """
    Print the answers beside their truth.

    Returns:
        what to draw: on a page all questions about media, else the first about each combination of modalities.
    """
    chats = load_chats(options.questions, limit=options.limit)
    assert isinstance(chats, ChatDataset)  # no stream
    rows = [chats[number] for number in range(len(chats))]
    print(f"{options.model}: {model.num_parameters() / 1e6:.1f}M parameters. {len(rows)} questions:\n")
    if is_classifier(model):
        answers = predict_labels(model, processor, rows, batch_size=8)
    else:
        answers = generate_answers(model, processor, rows, batch_size=8, max_new_tokens=options.max_new_tokens)
    marks = [mark_of(row, answer) for row, answer in zip(rows, answers, strict=True)]
    cells = [
        (about(row), turn_text(row.prompt[-1]), answer, row.answer, mark)
        for row, answer, mark in zip(rows, answers, marks, strict=True)
    ]
    print(format_table(("about", "question", "answer", "truth", ""), cells))
    alike = f", {marks.count('≈')} more in the words of the speech" if "≈" in marks else ""
    print(f"\n{marks.count('✓')} of {len(rows)} are exactly right{alike}.")
    if not options.attention:
        return []
    kinds = {frozenset(part["type"] for part in media_parts(row.prompt)): row for row in reversed(rows)}
    firsts = [kinds[kind] for kind in sorted(kinds, key=sorted) if kind]
    drawn = [row for row in rows if media_parts(row.prompt)] if is_page(options) else firsts
    return [explained(options, model, processor, row.prompt, row.answer) for row in drawn]


def expand(processor: Any, prompt: list[Message]) -> list[Message]:
    """Return a prompt whose videos are images and audio, which can be drawn."""
    return expand_chats([prompt], VideoReader.of(processor))[0]


def about(row: ChatRow) -> str:
    """Return the names of a question's files."""
    sources = [media_source(part) for part in media_parts(row.prompt)]
    return " + ".join(Path(source).name if isinstance(source, str) else "data" for source in sources)
