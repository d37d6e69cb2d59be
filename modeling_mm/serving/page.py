# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A web page for one model: a chat with images and audio, streamed answers, and where their words come from."""

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from .conversation import VIEWS, Turns, View, check_turn, run_in_turns, stream_answer, user_turn, view_steps
from .engine import Engine
from .introduction import Introduction, modalities_of
from .written_media import places_file, written_files

NOT_ANSWERED = "Not answered"
MOST_VIEWS = 4  # visitors whose answers are explained at once, in turns
PROGRESS = gr.Progress()  # as a default; Gradio passes the one of each event
HEIGHT = "clamp(200px, 100dvh - 420px, 420px)"  # of the chat: the question below it stays on the screen of a phone


def build_page(
    model: Any, processor: Any, title: str, max_new_tokens: int, introduction: Introduction | None = None
) -> gr.Blocks:
    """
    Return the page of a model.

    Args:
        model: loaded with `attn_implementation="eager"`, which gives the weights that are shown
        processor: its processor; the page offers the modalities that it takes, and shows those that it has codecs of
        introduction: what the page says of the model, and its examples
    """
    shown = introduction or Introduction(title)
    engine = Engine(model)
    folder = tempfile.TemporaryDirectory(prefix="modeling-mm-app-")  # of images and audio in answers

    def check(message: dict[str, Any]) -> dict[str, Any]:
        """Check a message before it leaves the text box, where it stays if it is refused."""
        try:
            check_turn(turn_of(message))
        except ValueError as error:
            return gr.validate(False, str(error))
        return gr.validate(True, "")

    async def respond(message: dict[str, Any], history: list[dict[str, Any]]) -> AsyncIterator[tuple]:
        """Yield the growing answer and, at its end, the turns and tokens for the view. Gradio closes the iterator."""
        turns = [*turns_of(history), turn_of(message)]
        try:
            text, tokens = "", list[int]()
            async with aclosing(stream_answer(engine, processor, turns, max_new_tokens)) as steps:
                async for step in steps:
                    text, tokens = step
                    yield text, None
            files = await written_files(engine, processor, tokens, folder.name)
            places = await asyncio.to_thread(places_file, turns, text, folder.name)
            # A view is of words; the image with places is a message of its page, not a part of the conversation.
            yield answer_messages(text, files, places), None if files else (turns, tokens)
        except ValueError as error:
            # An answer with a title does not belong to the conversation; its Undo button gives the question back.
            yield {"role": "assistant", "content": str(error), "metadata": {"title": NOT_ANSWERED}}, None

    async def show(
        seen: tuple[Turns, list[int]] | None, chosen: str, progress: Any = PROGRESS
    ) -> AsyncIterator[tuple]:
        """Yield the view at its end. It is a separate event, so that its failure leaves the answer in place."""
        if seen is None:
            yield shown_view(View())
            return
        try:
            async with aclosing(run_in_turns(engine, view_steps(model, processor, *seen, chosen))) as steps:
                async for step in steps:
                    if isinstance(step, View):
                        yield shown_view(step)
                    else:
                        progress(step, desc=chosen)
                        yield gr.skip(), gr.skip()  # Gradio closes the iterator of a visitor who has left
        except ValueError as error:
            gr.Warning(f"Where the words come from cannot be shown: {error}")
            yield shown_view(View())

    kinds = modalities_of(processor)
    with gr.Blocks(title=title) as page:
        seen = gr.State(None)
        chat = gr.ChatInterface(
            respond,
            multimodal=True,
            title=title,
            description=shown.sentence or None,
            examples=shown.examples or None,
            chatbot=gr.Chatbot(
                label="Chat", height=HEIGHT, allow_tags=False, render_markdown=False, buttons=["copy"], elem_id="chat"
            ),
            textbox=gr.MultimodalTextbox(
                placeholder="What is this?",
                sources=[*(["upload"] if kinds else []), *(["microphone"] if "audio" in kinds else [])],
                file_types=kinds,
                file_count="multiple",
                max_plain_text_length=1_000_000,  # longer texts would become files
                stop_btn=True,
                elem_id="question",
            ),
            additional_outputs=[seen],
            validator=check,
            concurrency_limit=1,
            api_visibility="private",
            fill_height=False,
        )
        restart = gr.Button("Start over", size="sm", elem_id="restart")
        method = gr.Radio(list(VIEWS), value=VIEWS[0], label="Explain the answer by", elem_id="method")
        # Without `fit_columns=False` a single image fills the page, and is cut.
        view = gr.Gallery(
            label="Where each word comes from",
            columns=5,
            fit_columns=False,
            height="auto",
            object_fit="contain",
            elem_id="view",
        )
        table = gr.Dataframe(
            label="What each modality adds to the probability of each word",
            interactive=False,
            visible=False,
            elem_id="contributions",
        )
        if shown.summary:
            with gr.Accordion(f"About {shown.name}", open=False, elem_id="about"):
                gr.Markdown(shown.summary)
        chat.chatbot.undo(lambda: None, None, seen, api_visibility="private")
        gr.on(
            [seen.change, method.change],
            show,
            [seen, method],
            [view, table],
            api_visibility="private",
            concurrency_limit=MOST_VIEWS,
            trigger_mode="always_last",
        )
        # ChatInterface's own Clear lets a running answer go on, which then brings the conversation back; leaving the
        # page ends it.
        gr.on([restart.click, chat.chatbot.clear], None, js="() => window.location.reload()")
    return page


def shown_view(view: View) -> tuple[Any, Any]:
    """Return the values of the gallery and of the table, of which one is shown."""
    table = gr.Dataframe(value=view.table, headers=view.columns, visible=True) if view.table else None
    return gr.Gallery(value=view.heatmaps, visible=not view.table), table or gr.Dataframe(value=[], visible=False)


def turn_of(message: dict[str, Any]) -> dict[str, Any]:
    """Return the user's turn of a message, whose files are paths, or dicts if it is sent again."""
    files = [file if isinstance(file, str) else file["path"] for file in message["files"]]
    return user_turn(message["text"], files)


def turns_of(history: list[dict[str, Any]]) -> Turns:
    """Return the answered questions of a chat's history."""
    turns: Turns = []
    for question, answer in itertools.pairwise(history):
        is_answered = (question["role"], answer["role"]) == ("user", "assistant")
        if is_answered and not (answer.get("metadata") or {}).get("title"):
            files = [part["file"]["path"] for part in question["content"] if part["type"] == "file"]
            turns.append(user_turn(text_of(question), files))
            written = [part["file"]["path"] for part in answer["content"] if part["type"] == "file"]
            turns.append({**user_turn(text_of(answer), written), "role": "assistant"})
    return turns


def answer_messages(text: str, files: Sequence[str], places: str | None) -> Any:
    """Return an answer as the chat shows it: its text, its media, and behind it the image with its places."""
    content = [*([text] if text else []), *({"path": file} for file in files)]
    message = {"role": "assistant", "content": content} if files else text
    return [message, {"role": "assistant", "content": [{"path": places}]}] if places else message


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")
