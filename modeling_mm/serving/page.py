# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A web page for one model: chat with a picture and a sound, the answer as it grows, and what its words looked at."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .conversation import Turns, look, stream_answer, user_turn

LOOKED = "What each word looked at"


def build_page(model: Any, processor: Any, title: str, max_new_tokens: int) -> gr.Blocks:
    """
    Args:
        model: loaded with `attn_implementation="eager"`, which gives the weights that are shown
        processor: its processor; what it does not take is not offered
    """

    def respond(turns: Turns, question: str, picture: str | None, sound: str | None) -> Iterator[tuple]:
        """The conversation, the chat, the three inputs (emptied), and the view, anew at each step."""
        try:
            asked = [*turns, user_turn(question, picture, sound)]
            emptied = ("", None, None)
            yield asked, shown(asked), *emptied, []
            text = ""
            for text in stream_answer(model, processor, asked, max_new_tokens):
                yield asked, [*shown(asked), {"role": "assistant", "content": text}], *emptied, []
            answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
            yield answered, shown(answered), *emptied, look(model, processor, asked, max_new_tokens)
        except ValueError as error:
            # What was asked is given back, so that it can be changed.
            gr.Warning(str(error))
            yield turns, shown(turns), question, picture, sound, []

    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}")
        turns = gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    visible=processor.image_processor is not None,
                    elem_id="picture",
                )
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
        view = gr.Gallery(label=LOOKED, columns=6, height="auto", object_fit="contain", elem_id="view")
        inputs = [turns, question, picture, sound]
        outputs = [turns, chat, question, picture, sound, view]
        ask.click(respond, inputs, outputs, api_visibility="private")
        question.submit(respond, inputs, outputs, api_visibility="private")
        restart.click(lambda: ([], [], "", None, None, []), None, outputs, api_visibility="private")
    return page


def shown(turns: Turns) -> list[dict[str, Any]]:
    """A conversation as the chat shows it: each picture, sound and text a message of its own."""
    return [
        {"role": turn["role"], "content": part["text"] if part["type"] == "text" else {"path": part["path"]}}
        for turn in turns
        for part in turn["content"]
    ]
