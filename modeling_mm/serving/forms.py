# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Requests that are forms, `multipart/form-data`: their files, and their fields, which are all texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from .fields import Fields
from .limits import BadRequest
from .values import RANGES, check_text, shortened

LIST = "[]"  # the end of the name of a field that may be there several times


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def form_texts(form: FormData, fields: Fields, files: Sequence[str]) -> dict[str, str]:
    """
    Return the fields of a form that are no lists, beside its files.

    Args:
        fields: of the route.
        files: names of its fields that are files.

    Raises:
        BadRequest: for a field that is unknown, not served, there twice, or a file in place of a text.
    """
    for name in form:
        if len(form.getlist(name)) > 1 and not name.endswith(LIST):
            raise BadRequest(f"`{name}`: expected it once, got it {len(form.getlist(name))} times.")
    fields.check({name.removesuffix(LIST): form.getlist(name)[0] for name in form})
    given = {name: value for name, value in form.items() if name.removesuffix(LIST) not in files}
    return {name: check_text(name, value, "a text") for name, value in given.items()}


def form_numbers(texts: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """
    Return the numbers among the fields of a form; their ranges are checked by `check_sampling`.

    Raises:
        BadRequest: for a text that is not a number of the field's type.
    """
    numbers: dict[str, Any] = {}
    for name in names:
        if texts.get(name):
            kind = int if RANGES[name][0] is int else float
            try:
                numbers[name] = kind(texts[name])
            except ValueError as error:
                what = "a whole number" if kind is int else "a number"
                raise BadRequest(f"`{name}`: expected {what}, got {shortened(texts[name])}.") from error
    return numbers


def form_files(form: FormData, name: str, most: int) -> list[UploadFile]:
    """
    Return the files of a field, which has any number of them under the name of a list.

    Raises:
        BadRequest: if there are none or too many, or one is a text.
    """
    given = [*form.getlist(name), *form.getlist(name + LIST)]
    if not given or not all(isinstance(each, UploadFile) for each in given):
        raise BadRequest(f"`{name}`: expected a file as multipart/form-data.")
    if len(given) > most:
        raise BadRequest(f"`{name}`: expected {most} files at most, got {len(given)}.")
    return [each for each in given if isinstance(each, UploadFile)]
