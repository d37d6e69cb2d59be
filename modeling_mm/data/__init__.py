# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Chat examples: read, checked, cleaned and mixed."""

from .chat_row import ChatRow, media_parts, media_source, to_row, turn_text
from .cleaning import CleaningReport, Rejected, clean
from .coco import COCO_TASKS, located_row, located_rows, read_coco, rows_to_coco, to_coco, write_coco
from .examples import few_of_each, is_task_among, task_kind, without_parts
from .mixture import ChatMixture, mix
from .reading import ChatDataset, ChatStream, load_chats
from .video_files import write_videos

__all__ = [
    "COCO_TASKS",
    "ChatDataset",
    "ChatMixture",
    "ChatRow",
    "ChatStream",
    "CleaningReport",
    "Rejected",
    "clean",
    "few_of_each",
    "is_task_among",
    "load_chats",
    "located_row",
    "located_rows",
    "media_parts",
    "media_source",
    "mix",
    "read_coco",
    "rows_to_coco",
    "task_kind",
    "to_coco",
    "to_row",
    "turn_text",
    "without_parts",
    "write_coco",
    "write_videos",
]
