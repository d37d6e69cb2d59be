"""What a request may name: what is read, what is refused and why, how long it may take, and who is talked to."""

import base64
import io
import shutil
import socket
import ssl
import subprocess
import time

import numpy as np
import pytest
import soundfile

from modeling_mm.serving.sources import Policy, RefusedSource, is_public, read_source, unpacked_size
from tests.fakes.gallery import gallery, red, silent

OPEN = Policy(private_urls=True)
NAME = "pictures.example"


@pytest.fixture(scope="module")
def pictures():
    with gallery() as server:
        yield server


@pytest.fixture
def lookups(monkeypatch):
    """Every name stands for this machine; which ones were looked up."""
    names = []
    ask = socket.getaddrinfo

    def lookup(host, port, *arguments, **options):
        if host.endswith(".example"):
            names.append(host)
            host = "127.0.0.1"
        return ask(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return names


# ---- What is read ---------------------------------------------------------------------------------------------------


def test_data_urls_base64_urls_and_files_are_read(pictures, tmp_path):
    (tmp_path / "red.png").write_bytes(red())
    text = base64.b64encode(red()).decode()
    policy = Policy(private_urls=True, files=tmp_path)
    sources = [text, f"{text[:9]}\n{text[9:]}", f"data:image/png;base64,{text}", f"{pictures.url}/red.png"]
    sources += ["red.png", f"file://{tmp_path}/red.png", f"{pictures.url}/to?{pictures.url}/to?/red.png"]
    assert [source for source in sources if read_source(source, policy) != red()] == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("data:image/png,abc", "expected `data:<type>;base64"),
        ("data:;base64,%%%", "neither a data: or http"),
        ("", "holds 0 bytes"),
        ("ftp://8.8.8.8/x", "expected a data: or http"),
        ("/etc/hostname.png", "must be sent in the request"),
        ("file:///etc/hostname", "may not be named"),
        ("http://", "something else than an http"),
        ("http://8.8.8.8:99999/x", "could not be fetched"),
        ("http://\ud800.example/x", "could not be fetched"),
        ("http://127.0.0.1/x", "private address"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(source, reason):
    with pytest.raises(RefusedSource, match=reason):
        read_source(source, Policy())


def test_large_sources_are_refused(pictures, tmp_path):
    (tmp_path / "red.png").write_bytes(red())
    policy = Policy(private_urls=True, files=tmp_path)
    for source in (
        f"{pictures.url}/red.png",
        f"{pictures.url}/drip-open",
        "red.png",
        base64.b64encode(red()).decode(),
    ):
        with pytest.raises(RefusedSource, match="larger than the 10 bytes that are left"):
            read_source(source, policy, most=10)


def test_a_download_that_ends_early_is_refused(pictures):
    with pytest.raises(RefusedSource, match=rf"ended after 20 of {len(red())} bytes|IncompleteRead\(20 bytes"):
        read_source(f"{pictures.url}/cut", OPEN)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "files" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(RefusedSource, match="no such file"):
        read_source(f"file://{tmp_path}/files/link", Policy(files=tmp_path / "files"))


def test_small_files_tell_how_large_they_become():
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros((90, 2), np.float32), 8000, format="FLAC")
    assert unpacked_size(red(), "image") == 24 and unpacked_size(sound.getvalue(), "audio") == 180
    assert unpacked_size(b"none", "image") == unpacked_size(b"none", "audio") == 0


# ---- How long it may take -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["drip-head", "drip-body", "drip-open"])
def test_a_slow_drip_ends_at_the_deadline(pictures, path):
    """Each byte comes well within the timeout of a socket."""
    start = time.monotonic()
    with pytest.raises(RefusedSource, match="took longer"):
        read_source(f"{pictures.url}/{path}", OPEN, deadline=start + 0.5)
    assert 0.4 < time.monotonic() - start < 3


def test_a_slow_handshake_ends_at_the_deadline():
    with silent() as port:
        start = time.monotonic()
        with pytest.raises(RefusedSource, match="took longer"):
            read_source(f"https://127.0.0.1:{port}/x", OPEN, deadline=start + 0.5)
        assert 0.4 < time.monotonic() - start < 3


def test_nothing_is_fetched_after_the_deadline(pictures):
    asked = len(pictures.asked)
    with pytest.raises(RefusedSource, match="took longer"):
        read_source(f"{pictures.url}/red.png", OPEN, deadline=time.monotonic() - 1)
    assert len(pictures.asked) == asked


# ---- Who is talked to -----------------------------------------------------------------------------------------------


def test_only_public_addresses_are_public():
    public = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    private = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
    private += ["224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.9", "192.0.0.192", "168.63.129.16"]
    private += ["::1", "::", "fe80::1%eth0", "fd00::1", "fec0::1", "ff0e::1", "2001:db8::1"]
    private += ["::ffff:127.0.0.1", "::ffff:168.63.129.16", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1"]
    private += ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "64:ff9b:1::808:808"]
    private += ["2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe"]
    assert [address for address in public if not is_public(address)] == []
    assert [address for address in private if is_public(address)] == []


def test_all_that_a_name_stands_for_must_be_public(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(RefusedSource, match="private address"):
        read_source(f"http://{NAME}/red.png", Policy())


def test_a_redirect_to_a_private_address_is_refused(monkeypatch, pictures):
    """The first address counts as public here, what it leads to does not."""
    monkeypatch.setattr("modeling_mm.serving.sources.is_public", lambda address: address == "127.0.0.1")
    assert read_source(f"{pictures.url}/red.png", Policy()) == red()
    with pytest.raises(RefusedSource, match="private address"):
        read_source(f"{pictures.url}/to?http://127.0.0.2:1/x", Policy())
    with pytest.raises(RefusedSource, match="something else than an http"):
        read_source(f"{pictures.url}/to?file:///etc/hostname", Policy())
    with pytest.raises(RefusedSource, match="leads on more than 3 times"):
        url = pictures.url
        read_source(f"{url}/to?{url}/to?{url}/to?{url}/to?/red.png", Policy())


def test_the_address_that_was_checked_is_the_one_that_is_opened(monkeypatch, pictures):
    """A name that stands for this machine when it is asked a second time, as an attacker's would."""
    asked = []
    ask = socket.getaddrinfo

    def lookup(host, port, *arguments, **options):
        if host != NAME:
            return ask(host, port, *arguments, **options)
        asked.append(host)
        return ask("127.0.0.1" if len(asked) == 1 else "127.0.0.2", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr("modeling_mm.serving.sources.is_public", lambda address: address == "127.0.0.1")
    assert read_source(f"http://{NAME}:{pictures.port}/red.png", Policy()) == red()
    assert asked == [NAME]
    with pytest.raises(RefusedSource, match="private address"):
        read_source(f"http://{NAME}:{pictures.port}/red.png", Policy())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with an authority of our own (ca.pem) and a certificate of it for one name (server.pem, server.key)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program `openssl` to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "names").write_text(f"subjectAltName=DNS:{NAME}")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        f"req {key} -keyout server.key -out server.csr -subj /CN={NAME}",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


def test_a_certificate_is_checked_against_the_name_and_the_name_is_told(authority, lookups, monkeypatch):
    told = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    context.sni_callback = lambda _, name, __: told.append(name)

    def wrap(listening):
        return context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)

    with gallery(wrap) as server:
        url = f"https://{NAME}:{server.port}/red.png"
        with pytest.raises(RefusedSource, match="CERTIFICATE_VERIFY_FAILED"):  # an authority that nobody knows
            read_source(url, OPEN)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
        assert read_source(url, OPEN) == red()
        assert told == [NAME] * 2 and lookups == [NAME] * 2
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(RefusedSource, match=r"CERTIFICATE_VERIFY_FAILED.*mismatch"):
                read_source(f"https://{host}:{server.port}/red.png", OPEN)
        assert server.asked == ["/red.png"]
