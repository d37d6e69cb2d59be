# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A web page for one model: chat with a picture and a sound, the answer as it grows, and what its words looked at."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from .conversation import Turns, look, stream_answer, user_turn

LOOKED = "What each word looked at"
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}


def uploaded(payload: Any) -> str | None:
    """The path of an uploaded file, as it is."""
    return None if payload is None else payload.path


def build_page(model: Any, processor: Any, title: str, max_new_tokens: int) -> gr.Blocks:
    """
    Args:
        model: loaded with `attn_implementation="eager"`, which gives the weights that are shown
        processor: its processor; what it does not take is not offered
    """

    def respond(turns: Turns, question: str, picture: str | None, sound: str | None) -> Iterator[tuple]:
        """
        The conversation, what of it is to be looked at (turns and tokens of the answer), the chat, the three inputs
        (emptied), and the view (emptied), anew at each step. Gradio closes it when the visitor leaves.
        """
        try:
            asked = [*turns, user_turn(question, picture, sound)]
            emptied: tuple = ("", None, None, [])
            yield asked, None, shown(asked), *emptied
            text = ""
            tokens: list[int] = []
            with closing(stream_answer(model, processor, asked, max_new_tokens)) as steps:
                for step in steps:
                    text, tokens = step
                    yield asked, None, [*shown(asked), {"role": "assistant", "content": text}], *emptied
            answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
            yield answered, (asked, tokens), shown(answered), *emptied
        except ValueError as error:
            # What was asked is given back, so that it can be changed.
            gr.Warning(str(error))
            yield turns, None, shown(turns), question, picture, sound, []

    def lit(seen: tuple[Turns, list[int]] | None) -> list[tuple]:
        """The view; an event of its own, so that whatever fails in it leaves the answer where it is."""
        if seen is None:
            return []
        try:
            return look(model, processor, *seen)
        except ValueError as error:
            gr.Warning(f"What the words looked at cannot be shown: {error}")
            return []

    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}")
        turns, seen = gr.State([]), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    visible=processor.image_processor is not None,
                    elem_id="picture",
                )
                # Gradio's own decodes the file, and answers a broken one without a reason. A subclass would make
                # gradio write a stub beside this module.
                picture.preprocess = uploaded
                sound = gr.Audio(
                    label="Sound",
                    type="filepath",
                    sources=["upload", "microphone"],
                    visible=processor.feature_extractor is not None,
                    elem_id="sound",
                )
            with gr.Column(scale=2):
                chat = gr.Chatbot(label="Chat", height=420, allow_tags=False, render_markdown=False, elem_id="chat")
                question = gr.Textbox(label="Question", placeholder="What is this?", lines=1, elem_id="question")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    restart = gr.Button("Start over", elem_id="restart")
        # Without `fit_columns=False` the picture of an only word fills the page, and is cut.
        view = gr.Gallery(
            label=LOOKED, columns=5, fit_columns=False, height="auto", object_fit="contain", elem_id="view"
        )
        outputs = [turns, seen, chat, question, picture, sound, view]
        answering = gr.on(
            [ask.click, question.submit], respond, [turns, question, picture, sound], outputs, **ONE_AT_A_TIME
        )
        looking = answering.success(lit, seen, view, **ONE_AT_A_TIME)
        restarting = restart.click(
            lambda: ([], None, [], "", None, None, []),
            None,
            outputs,
            cancels=[answering, looking],
            api_visibility="private",
        )
        # What was cancelled may have written once more; this waits until it has ended.
        restarting.then(lambda: ([], None, [], []), None, [turns, seen, chat, view], **ONE_AT_A_TIME)
    return page


def shown(turns: Turns) -> list[dict[str, Any]]:
    """A conversation as the chat shows it: each picture, sound and text a message of its own."""
    return [
        {"role": turn["role"], "content": part["text"] if part["type"] == "text" else {"path": part["path"]}}
        for turn in turns
        for part in turn["content"]
    ]
