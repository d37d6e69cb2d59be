# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Bytes of media files from paths, URLs and base64. Nothing else in the package opens a source that a caller names.

A `SourcePolicy` says what may be opened: `TRUSTED` is for a user's own inputs, the default `SourcePolicy()` for other
people's, as a server gets them. A URL is opened at the very address that was checked, after every redirect.
"""

import base64
import contextlib
import ipaddress
import os
import re
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO, Any, TypeGuard
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import Request

WEB = ("http://", "https://")
# `file:/path`, `file:///path` and `file://localhost/path` are one file; `file://path` is relative.
FILE_URL = re.compile(r"file:(?://(?:localhost(?=/))?|(?=/))", re.IGNORECASE)
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
PIECE_BYTES = 1 << 16
LONGEST_PATH = 4096
DATA_URL = re.compile(r"data:[^,]*;base64,(?P<body>.*)", re.DOTALL)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Assigned public IPv6 addresses; others are local, reserved, or another address in disguise.
PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
# IPv6 addresses whose last 32 bits are the IPv4 address behind a translator.
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
NOT_OPENED = [
    ipaddress.ip_network("168.63.129.16/32"),  # the host of a cloud's virtual machine, although the number is public
    ipaddress.ip_network("192.0.0.0/24"),  # protocols and metadata of clouds; Python counts parts of it as public
    ipaddress.ip_network("192.88.99.0/24"),  # the relay of 6to4
    ipaddress.ip_network("2001::/32"),  # Teredo, which leads to an IPv4 address
    ipaddress.ip_network("2002::/16"),  # 6to4, likewise
]


class SourceError(ValueError):
    """Raised for a source that cannot be read or may not be opened."""


@dataclass(frozen=True)
class SourcePolicy:
    """
    Limits on what is opened and decoded.

    Args:
        private_urls: allow URLs that lead to a proxy or to addresses that are not public, such as this machine's.
        files: True for every file, a folder for the files inside it, False for none.
        max_bytes: the most bytes of one source.
        timeout: the most seconds that a URL may take, redirects included.
        max_pixels: the most pixels of the images of a request, as stored and as the processor resizes them.
        max_side: the longest side of an image.
        max_seconds: the longest audio of a request, all its files together.
    """

    private_urls: bool = False
    files: Path | bool = False
    max_bytes: int = 64 << 20
    timeout: float = 20.0
    max_pixels: int = 1 << 26
    max_side: int = 1 << 16  # what a JPEG can have
    max_seconds: float = 600.0


# 8 bytes for each of the most samples that are decoded (audio_files.MAX_DECODED_SAMPLES).
TRUSTED = SourcePolicy(private_urls=True, files=True, max_bytes=1 << 32, timeout=30.0)


def describe(source: Any) -> str:
    """Return a short name of `source` for error messages: the text of a path or URL, else its type and shape."""
    if isinstance(source, (str, os.PathLike)):
        name = str(source)
        return repr(name if len(name) <= 80 else f"{name[:38]}...{name[-39:]}")  # a file's own name comes last
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, dict):
        return f"a dict with the keys {sorted(map(str, source))}"
    shape = getattr(source, "shape", None)
    return f"an object of type {type(source).__name__}" + ("" if shape is None else f" and shape {tuple(shape)}")


def read_bytes(
    source: str | os.PathLike | bytes | bytearray | memoryview | dict,
    policy: SourcePolicy = TRUSTED,
    max_bytes: int | None = None,
    deadline: float | None = None,
) -> bytes:
    """
    Read one media file.

    Args:
        source: a path; an http(s), `file://` or `data:` URL; base64; the bytes; or the dict of an undecoded
            `datasets` image or audio, whose `bytes` count before its `path`.
        policy: what may be opened.
        max_bytes: a lower limit than the policy's.
        deadline: when a URL must have been read, in `time.monotonic()`; by default after the policy's timeout.

    Raises:
        SourceError: with the source, the reason and the remedy.
    """
    limit = policy.max_bytes if max_bytes is None else max_bytes
    if isinstance(source, dict):
        inner = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if inner is None:
            raise SourceError(f"{describe(source)} holds neither `bytes` nor a `path`")
        return read_bytes(inner, policy, max_bytes, deadline)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source.lower().startswith(WEB):
        return Download(source, policy, limit, deadline).read()
    if isinstance(source, os.PathLike) or is_file_url(source) or is_file(source, policy):
        return read_file(source, policy, limit)
    return decode_base64(source, policy, limit)


def decode_base64(source: str, policy: SourcePolicy, limit: int) -> bytes:
    """Return the bytes of base64 or of a `data:` URL; white space is ignored."""
    match = DATA_URL.fullmatch(source)
    if match is None and source.startswith("data:"):
        raise SourceError(f"{describe(source)}: expected `data:<type>;base64,<content>`")
    try:
        if match is None and SCHEME.match(source):
            raise ValueError
        data = base64.b64decode("".join((source if match is None else match["body"]).split()), validate=True)
    except ValueError:
        if policy.files is False:
            expected = "a data: or http(s) URL, or base64; send the content of a file as a data: URL"
        else:
            expected = "an existing file, an http(s) or data: URL, or base64; check the path"
        raise SourceError(f"{describe(source)}: expected {expected}") from None
    if not data:
        raise SourceError(f"{describe(source)}: holds 0 bytes")
    check_size(source, len(data), limit)
    return data


def check_size(source: str | os.PathLike, size: int, limit: int) -> None:
    if size > limit:
        raise SourceError(f"{describe(source)}: larger than the limit of {limit} bytes; shrink the file")


# ---- Files ----------------------------------------------------------------------------------------------------------


def is_file_url(source: Any) -> TypeGuard[str]:
    return isinstance(source, str) and FILE_URL.match(source) is not None


def local_path(source: str | os.PathLike) -> Path:
    """Return the path of a name or of a file's URL, as `Path.as_uri()` or a browser writes it, escapes included."""
    return Path(unquote(FILE_URL.sub("", source)) if is_file_url(source) else source)


def path_of(source: str | os.PathLike, policy: SourcePolicy) -> Path:
    """Return the path of a name or a `file://` URL; relative ones start in the policy's folder."""
    path = local_path(source)
    return path if isinstance(policy.files, bool) else (policy.files / path).resolve()


def is_file(source: str | os.PathLike, policy: SourcePolicy) -> bool:
    """Return True if a source is the path of something that the policy allows."""
    if policy.files is False or not source or len(str(source)) > LONGEST_PATH:  # base64 is too long for a name
        return False
    try:
        path = path_of(source, policy)
        if policy.files is True:
            return path.exists()
        return path.is_relative_to(policy.files.resolve()) and path.is_file()
    except (OSError, ValueError):
        return False


def read_file(source: str | os.PathLike, policy: SourcePolicy, limit: int) -> bytes:
    if policy.files is False:
        raise SourceError(f"{describe(source)}: files may not be named here; send the content as a data: URL")
    if policy.files is not True and not is_file(source, policy):
        raise SourceError(f"{describe(source)}: no such file in the allowed folder")
    path = path_of(source, policy)
    try:
        check_size(source, path.stat().st_size, limit)
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"could not read {describe(source)}: {error.strerror}") from error


# ---- URLs -----------------------------------------------------------------------------------------------------------


def is_public(address: str) -> bool:
    """Return True if an address, or the IPv4 address inside it, belongs to the public internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        if parsed in TRANSLATED:
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        if parsed not in PUBLIC_IPV6:
            return False
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in NOT_OPENED)


class Download(urllib.request.AbstractHTTPHandler):
    """
    The download of one URL, and urllib's handler that makes its connections.

    A socket's own timeout starts again with each byte, so a timer shuts the sockets down at the deadline.
    """

    def __init__(self, url: str, policy: SourcePolicy, limit: int, deadline: float | None = None):
        super().__init__()
        self.url, self.policy, self.limit = url, policy, limit
        self.deadline = time.monotonic() + policy.timeout if deadline is None else deadline
        self.sockets: list[socket.socket] = []
        self.is_cut = False

    def read(self) -> bytes:
        opener = urllib.request.OpenerDirector()  # without `file:` and `ftp:`
        for handler in (
            self,
            LimitedRedirects(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
            *([urllib.request.ProxyHandler()] if self.policy.private_urls else []),
        ):
            opener.add_handler(handler)
        timer = threading.Timer(self.time_left(), self.cut)
        timer.daemon = True
        timer.start()
        try:
            with opener.open(Request(self.url, headers={"User-Agent": "modeling_mm"})) as response:
                body = self.read_body(response)
            if self.is_cut:  # a body without a length seems to end there
                raise TimeoutError
            return body
        except SourceError:
            raise
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a bad port, a control character
            reason = f"could not be fetched ({error}); check the address, or pass the file itself"
            if self.is_cut or isinstance(getattr(error, "reason", error), TimeoutError):
                reason = self.too_slow
            elif isinstance(error, HTTPError) and error.code in REDIRECTS:
                reason = f"redirects more than {MAX_REDIRECTS} times, or not to an http(s) URL"
            raise self.error(reason) from error
        finally:
            timer.cancel()
            for connection in self.sockets:
                connection.close()

    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(self.connection, HTTPConnection), request)

    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(self.connection, HTTPSConnection), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def connection(self, cls: type[HTTPConnection], *args: Any, **kwargs: Any) -> HTTPConnection:
        connection = cls(*args, **kwargs)
        connection._create_connection = self.connect  # type: ignore[attr-defined]  # as `http.client` opens its sockets
        return connection

    def connect(self, address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        """Connect to a host at the address that was checked, whatever its name resolves to by then."""
        host, port = address
        if not self.policy.private_urls:
            found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            if not all(map(is_public, found)):
                raise self.error("leads to a private address, which is not opened; send the content as a data: URL")
            host = found[0]
        connection = socket.create_connection((host, port), self.time_left())
        self.sockets.append(connection.dup())  # `http.client` detaches its own when TLS starts
        if self.is_cut:
            raise TimeoutError
        return connection

    def cut(self) -> None:
        self.is_cut = True
        for connection in self.sockets:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def time_left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self.error(self.too_slow)
        return left

    def read_body(self, response: HTTPResponse) -> bytes:
        """Read a body; one that is shorter than announced would look like a damaged file."""
        if response.status != 200:
            raise self.error(f"answered {response.status} {response.reason}")
        announced, body = response.length, bytearray()
        while max(announced or 0, len(body)) <= self.limit and (piece := response.read1(PIECE_BYTES)):
            body += piece
        check_size(self.url, max(announced or 0, len(body)), self.limit)
        if announced is not None and len(body) < announced and not self.is_cut:
            raise self.error(f"ended after {len(body)} of {announced} bytes; try again")
        return bytes(body)

    def error(self, reason: str) -> SourceError:
        return SourceError(f"{describe(self.url)}: {reason}")

    @property
    def too_slow(self) -> str:
        return f"took longer than the limit of {self.policy.timeout:g} s"


class LimitedRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirects, without reading their bodies, which may have no end."""

    max_redirections = MAX_REDIRECTS

    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        fp.close()
        code = 307 if code == 308 else code  # Python 3.10 does not know 308
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302
