# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
What a request may name as a picture or a sound. The processor opens whatever file or address it is told to, so each
source is read here before, and the processor is given its bytes: then nothing is left to open.

Fetching is done here, because the address that was checked must be the one that is connected to, after every redirect,
and because it must end in time, however slowly the other side sends.
"""

import base64
import binascii
import contextlib
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import soundfile
from PIL import Image

from ..images import DAMAGED_FILE_ERRORS

MAX_MEDIA_BYTES = 64 << 20  # of all pictures and sounds of a request
# A small file can unpack into far more: pixels of all pictures of a request, and values of all its sounds.
MAX_PIXELS = 1 << 26
MAX_SAMPLES = 1 << 27
FETCH_SECONDS = 20.0
FETCH_PIECE_BYTES = 1 << 16
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
WEB = ("http://", "https://")
DATA_URL = re.compile(r"data:[^,]*;base64,(?P<body>.*)", re.DOTALL)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# All of IPv6 that is given out to be reached; what lies elsewhere is local, reserved, or another address in disguise.
GIVEN_OUT = ipaddress.ip_network("2000::/3")
# IPv6 addresses that stand for the IPv4 address in their last 32 bits, behind a translator.
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
NOT_OPENED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # a cloud's own host, though the number is a public one
        "192.0.0.0/24",  # protocols and metadata of clouds; parts of it count as global
        "192.88.99.0/24",  # the relay of 6to4
        "2001::/32",  # Teredo, which leads to an IPv4 address that a relay chooses to reach
        "2002::/16",  # 6to4, likewise
    )
)
SHOWN_CHARACTERS = 80


class BadRequest(ValueError):
    """What is wrong with a request, and said to the client with status 400. No other error's text reaches it."""


class RefusedSource(BadRequest):
    """A source that may not be opened, or cannot be."""


@dataclass(frozen=True)
class Policy:
    """
    Args:
        private_urls: whether URLs may lead to addresses that are not public, such as those of this machine
        files: a folder whose files may be named, by path or by `file://` URL; by default none may
    """

    private_urls: bool = False
    files: Path | None = None


def read_source(source: str, policy: Policy, most: int | None = None, deadline: float | None = None) -> bytes:
    """
    The bytes of a source.

    Args:
        source: a `data:` URL, an http(s) URL, or base64; a path or `file://` URL where the policy has a folder.
        most: how many bytes it may hold
        deadline: by when a URL must be there, in `time.monotonic()`

    Raises:
        RefusedSource: with the reason and the remedy; what is private is not told.
    """
    most = MAX_MEDIA_BYTES if most is None else most
    if source.startswith("data:"):
        match = DATA_URL.fullmatch(source)
        if match is None:
            raise RefusedSource(f"{shown(source)}: expected `data:<type>;base64,<content>`")
        return read_base64(match["body"], source, most)
    if source.startswith(WEB):
        return fetch(source, policy, most, time.monotonic() + FETCH_SECONDS if deadline is None else deadline)
    if source.startswith("file://") or (policy.files is not None and is_file_of(source, policy.files)):
        return read_file(source, policy, most)
    if SCHEME.match(source):
        raise RefusedSource(f"{shown(source)}: expected a data: or http(s) URL, or base64")
    return read_base64(source, source, most)


def shown(source: str) -> str:
    """A source for messages: its ends, where it is long."""
    half = SHOWN_CHARACTERS // 2
    return repr(source if len(source) <= SHOWN_CHARACTERS else f"{source[:half]}...{source[-half:]}")


def too_large(source: str, most: int) -> RefusedSource:
    return RefusedSource(f"{shown(source)}: is larger than the {most} bytes that are left for the request; shrink it")


def read_base64(body: str, source: str, most: int) -> bytes:
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters outside of ASCII
        raise RefusedSource(
            f"{shown(source)}: neither a data: or http(s) URL nor base64; files must be sent in the request"
        ) from None
    if not data:
        raise RefusedSource(f"{shown(source)}: holds 0 bytes; expected a picture or a sound")
    if len(data) > most:
        raise too_large(source, most)
    return data


def unpacked_size(data: bytes, kind: str) -> int:
    """How many pixels or sound values a file says it has; 0 for what is none, which its decoder says better."""
    if kind == "image":
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.width * image.height
        except (*DAMAGED_FILE_ERRORS, Image.DecompressionBombError):
            return 0
    try:
        head = soundfile.info(io.BytesIO(data))
    except soundfile.LibsndfileError:
        return 0
    return head.frames * head.channels


# ---- Files ----------------------------------------------------------------------------------------------------------


def path_of(source: str, folder: Path) -> Path:
    """The file that a path or a `file://` URL names; paths start in the folder."""
    name = unquote(urlsplit(source).path) if source.startswith("file://") else source
    return (folder / name).resolve()


def is_file_of(source: str, folder: Path) -> bool:
    """Whether a text is the name of a file in the folder; base64 is too long for one."""
    try:
        path = path_of(source, folder)
        return path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):
        return False


def read_file(source: str, policy: Policy, most: int) -> bytes:
    if policy.files is None:
        raise RefusedSource(f"{shown(source)}: files of the server may not be named; send the content as a data: URL")
    if not is_file_of(source, policy.files):
        raise RefusedSource(f"{shown(source)}: there is no such file in the folder that the server allows")
    path = path_of(source, policy.files)
    if path.stat().st_size > most:
        raise too_large(source, most)
    return path.read_bytes()


# ---- URLs -----------------------------------------------------------------------------------------------------------


class PinnedConnection(HTTPConnection):
    """
    Connects to one address, whatever the name resolves to by then, and can be cut from another thread. A socket's own
    timeout starts anew with each byte, so that one byte at a time would hold it for ever.
    """

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float):
        super().__init__(host, port, timeout=timeout)
        self.address, self.secure = address, secure
        self.wire: socket.socket | None = None  # `sock` is given up as soon as an answer begins
        self.is_cut = False

    def connect(self) -> None:
        self.sock = self.wire = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            # The handshake comes after the wrapping, so that it can be cut as well.
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self.wire = wrapped
        if self.is_cut:
            raise TimeoutError
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()  # checks the certificate against the host's name

    def cut(self) -> None:
        self.is_cut = True
        if self.wire is not None:
            with contextlib.suppress(OSError):  # closed meanwhile
                socket.socket.shutdown(self.wire, socket.SHUT_RDWR)  # SSL's own would not wake the thread that reads


def fetch(url: str, policy: Policy, most: int, deadline: float) -> bytes:
    """
    The body behind an http(s) URL.

    Raises:
        RefusedSource: where it leads to a private address, cannot be had in time or whole, or is too large.
    """
    place = url
    for _ in range(MAX_REDIRECTS + 1):
        with visit(place, url, policy, deadline) as response:
            if response.status in REDIRECTS and response.headers.get("Location"):
                place = urljoin(place, response.headers["Location"])
            elif response.status == 200:
                return read_body(response, url, most)
            else:
                raise RefusedSource(f"{shown(url)}: answered {response.status} {response.reason}")
    raise RefusedSource(f"{shown(url)}: leads on more than {MAX_REDIRECTS} times")


@contextlib.contextmanager
def visit(place: str, url: str, policy: Policy, deadline: float) -> Iterator[HTTPResponse]:
    """What one place answers, until the deadline; `url` is what the request named, for messages."""
    connection = timer = None
    try:
        parts = urlsplit(place)
        secure, host = parts.scheme == "https", parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise RefusedSource(f"{shown(url)}: leads to something else than an http(s) URL")
        port = parts.port or (443 if secure else 80)
        address = checked_address(host, port, url, policy)
        left = deadline - time.monotonic()
        if left <= 0:
            raise too_slow(url)
        connection = PinnedConnection(host, port, address, secure, left)
        timer = threading.Timer(left, connection.cut)
        timer.daemon = True
        timer.start()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "modeling_mm", "Accept-Encoding": "identity"})
        yield connection.getresponse()
        if connection.is_cut:  # a body without a length seems to end there
            raise too_slow(url)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a port that is none, a control character
        if isinstance(error, TimeoutError) or (connection is not None and connection.is_cut):
            raise too_slow(url) from error
        if isinstance(error, RefusedSource):
            raise
        raise RefusedSource(f"{shown(url)}: could not be fetched ({error})") from error
    finally:
        if timer is not None:
            timer.cancel()
        if connection is not None:
            connection.close()


def too_slow(url: str) -> RefusedSource:
    return RefusedSource(f"{shown(url)}: took longer than the {FETCH_SECONDS:g} s that a request's URLs have")


def checked_address(host: str, port: int, url: str, policy: Policy) -> str:
    """The address that a host's name stands for; all that it stands for must be public."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not policy.private_urls and not all(map(is_public, found)):
        raise RefusedSource(
            f"{shown(url)}: leads to a private address, which is not opened here; send the content as a data: URL"
        )
    return found[0]


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet; one that stands for another, if that does."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        if parsed in TRANSLATED:
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        if parsed not in GIVEN_OUT:
            return False
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in NOT_OPENED)


def read_body(response: HTTPResponse, url: str, most: int) -> bytes:
    """A body as long as it was announced; one that ends early would be half a picture, or look like a damaged one."""
    announced, body = response.length, bytearray()
    while (announced or 0) <= most and len(body) <= most and (piece := response.read1(FETCH_PIECE_BYTES)):
        body += piece
    if max(announced or 0, len(body)) > most:
        raise too_large(url, most)
    if announced is not None and len(body) < announced:
        raise RefusedSource(f"{shown(url)}: ended after {len(body)} of {announced} bytes; try again")
    return bytes(body)
