# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
What a request may name as a picture or a sound. The processor opens whatever file or address it is told to, so each
source is turned into a `data:` URL before: then nothing is left to open.

Fetching is done here, because the address that was checked must be the one that is connected to, after every redirect.
"""

import base64
import binascii
import ipaddress
import re
import socket
import ssl
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

MAX_MEDIA_BYTES = 64 << 20
FETCH_SECONDS = 20.0
FETCH_PIECE_BYTES = 1 << 16
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
DATA_HEAD = "data:;base64,"
DATA_URL = re.compile(r"data:[^,]*;base64,(?P<body>.*)", re.DOTALL)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# IPv6 addresses that stand for an IPv4 address behind a translator.
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
SHOWN_CHARACTERS = 80


class RefusedSource(ValueError):
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


def inline(source: str, policy: Policy) -> str:
    """
    A source as a `data:` URL.

    Args:
        source: a `data:` URL, an http(s) URL, or base64; a path or `file://` URL where the policy has a folder.

    Raises:
        RefusedSource: with the reason and the remedy; what is private is not told.
    """
    if source.startswith("data:"):
        match = DATA_URL.fullmatch(source)
        if match is None:
            raise RefusedSource(f"{shown(source)}: expected `data:<type>;base64,<content>`")
        return DATA_HEAD + check_base64(match["body"], source)
    if source.startswith(("http://", "https://")):
        return DATA_HEAD + base64.b64encode(fetch(source, policy)).decode("ascii")
    if source.startswith("file://") or (policy.files is not None and is_file_of(source, policy.files)):
        return DATA_HEAD + base64.b64encode(read_file(source, policy)).decode("ascii")
    if SCHEME.match(source):
        raise RefusedSource(f"{shown(source)}: expected a data: or http(s) URL, or base64")
    return DATA_HEAD + check_base64(source, source)


def shown(source: str) -> str:
    """A source for messages: its ends, where it is long."""
    half = SHOWN_CHARACTERS // 2
    return repr(source if len(source) <= SHOWN_CHARACTERS else f"{source[:half]}...{source[-half:]}")


def check_base64(body: str, source: str) -> str:
    body = "".join(body.split())
    try:
        size = len(base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError):  # ValueError: characters outside of ASCII
        raise RefusedSource(
            f"{shown(source)}: neither a data: or http(s) URL nor base64; files must be sent in the request"
        ) from None
    if not 0 < size <= MAX_MEDIA_BYTES:
        raise RefusedSource(f"{shown(source)}: holds {size} bytes; expected 1 to {MAX_MEDIA_BYTES}")
    return body


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


def read_file(source: str, policy: Policy) -> bytes:
    if policy.files is None:
        raise RefusedSource(f"{shown(source)}: files of the server may not be named; send the content as a data: URL")
    if not is_file_of(source, policy.files):
        raise RefusedSource(f"{shown(source)}: there is no such file in the folder that the server allows")
    path = path_of(source, policy.files)
    if path.stat().st_size > MAX_MEDIA_BYTES:
        raise RefusedSource(f"{shown(source)}: is larger than {MAX_MEDIA_BYTES} bytes")
    return path.read_bytes()


# ---- URLs -----------------------------------------------------------------------------------------------------------


class PinnedConnection(HTTPConnection):
    """Connects to one address, whatever the name resolves to by then."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float):
        super().__init__(host, port, timeout=timeout)
        self.address, self.secure = address, secure

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def fetch(url: str, policy: Policy) -> bytes:
    """
    The body behind an http(s) URL.

    Raises:
        RefusedSource: where it leads to a private address, cannot be had in time, or is too large.
    """
    deadline, first = time.monotonic() + FETCH_SECONDS, url
    for _ in range(MAX_REDIRECTS + 1):
        try:
            parts = urlsplit(url)
            secure = parts.scheme == "https"
            host, port = parts.hostname, parts.port or (443 if secure else 80)
            if not (secure or parts.scheme == "http") or not host:
                raise RefusedSource(f"{shown(first)}: leads to something else than an http(s) URL")
            left = max(deadline - time.monotonic(), 0.1)
            connection = PinnedConnection(host, port, checked_address(host, port, first, policy), secure, left)
            try:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={"User-Agent": "modeling_mm", "Accept-Encoding": "identity"})
                response = connection.getresponse()
                if response.status in REDIRECTS and response.headers.get("Location"):
                    url = urljoin(url, response.headers["Location"])
                    continue
                if response.status != 200:
                    raise RefusedSource(f"{shown(first)}: answered {response.status} {response.reason}")
                return read_body(response, first, deadline)
            finally:
                connection.close()
        except RefusedSource:
            raise
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a port that is none, a control character
            raise RefusedSource(f"{shown(first)}: could not be fetched ({error})") from error
    raise RefusedSource(f"{shown(first)}: leads on more than {MAX_REDIRECTS} times")


def checked_address(host: str, port: int, url: str, policy: Policy) -> str:
    """The address that a host's name stands for; all that it stands for must be public."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not policy.private_urls and not all(map(is_public, found)):
        raise RefusedSource(
            f"{shown(url)}: leads to a private address, which is not opened here; send the content as a data: URL"
        )
    return found[0]


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet; one that carries another inside it, if both do."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inside: list[ipaddress.IPv4Address | None] = []
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        inside = [parsed.sixtofour, *(parsed.teredo or ())]
        inside += [ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)] if parsed in TRANSLATED else []
    addresses = [parsed, *(each for each in inside if each is not None)]
    return all(each.is_global and not each.is_multicast for each in addresses)


def read_body(response: HTTPResponse, url: str, deadline: float) -> bytes:
    body = bytearray()
    while piece := response.read1(FETCH_PIECE_BYTES):
        body += piece
        if len(body) > MAX_MEDIA_BYTES:
            raise RefusedSource(f"{shown(url)}: is larger than {MAX_MEDIA_BYTES} bytes")
        if time.monotonic() > deadline:
            raise RefusedSource(f"{shown(url)}: took longer than {FETCH_SECONDS:g} s")
    return bytes(body)
