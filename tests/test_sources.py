"""What a request may name: what is read, what is refused and why, how long it may take, and who is talked to."""

import base64
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from modeling_mm.sources import SourceError, SourcePolicy, is_public, read_bytes
from tests.fakes.gallery import gallery, red, silent

OPEN = SourcePolicy(private_urls=True)
NAME = "images.example"


@pytest.fixture(scope="module")
def images():
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


def test_data_urls_base64_urls_and_files_are_read(images, tmp_path):
    (tmp_path / "red.png").write_bytes(red())
    text = base64.b64encode(red()).decode()
    policy = SourcePolicy(private_urls=True, files=tmp_path)
    sources = [text, f"{text[:9]}\n{text[9:]}", f"data:image/png;base64,{text}", f"{images.url}/red.png"]
    sources += ["red.png", f"file://{tmp_path}/red.png", f"{images.url}/to?{images.url}/to?/red.png"]
    assert [source for source in sources if read_bytes(source, policy) != red()] == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("data:image/png,abc", "expected `data:<type>;base64"),
        ("data:;base64,%%%", "expected a data: or http"),
        ("", "holds 0 bytes"),
        ("ftp://8.8.8.8/x", "expected a data: or http"),
        ("/etc/hostname.png", "send the content of a file as a data: URL"),
        ("file:///etc/hostname", "may not be named"),
        ("http://", "no host given"),
        ("http://8.8.8.8:99999/x", "could not be fetched"),
        ("http://\ud800.example/x", "could not be fetched"),
        ("http://127.0.0.1/x", "private address"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(source, reason):
    with pytest.raises(SourceError, match=reason):
        read_bytes(source, SourcePolicy())


def test_large_sources_are_refused(images, tmp_path):
    (tmp_path / "red.png").write_bytes(red())
    policy = SourcePolicy(private_urls=True, files=tmp_path)
    for source in (
        f"{images.url}/red.png",
        f"{images.url}/drip-open",
        "red.png",
        base64.b64encode(red()).decode(),
    ):
        with pytest.raises(SourceError, match="larger than the limit of 10 bytes"):
            read_bytes(source, policy, max_bytes=10)


def test_a_download_that_ends_early_is_refused(images):
    with pytest.raises(SourceError, match=rf"ended after 20 of {len(red())} bytes|IncompleteRead\(20 bytes"):
        read_bytes(f"{images.url}/cut", OPEN)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "files" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="no such file"):
        read_bytes(f"file://{tmp_path}/files/link", SourcePolicy(files=tmp_path / "files"))


def test_a_users_own_sources_may_be_any_file_and_the_policy_of_servers_allows_none(tmp_path, monkeypatch):
    (tmp_path / "a b.png").write_bytes(red())
    monkeypatch.chdir(tmp_path)
    names = ["a b.png", str(tmp_path / "a b.png"), f"file://{tmp_path}/a%20b.png"]
    sources = [
        *names,
        tmp_path / "a b.png",
        {"bytes": None, "path": names[0]},
        {"bytes": red(), "path": "gone"},
        red(),
    ]
    assert [source for source in sources if read_bytes(source) != red()] == []
    for source in sources[:-2]:
        with pytest.raises(SourceError, match="as a data: URL"):
            read_bytes(source, SourcePolicy())
    with pytest.raises(SourceError, match=r"could not read .*: Is a directory"):
        read_bytes(tmp_path)
    with pytest.raises(SourceError, match="could not read 'gone': No such file"):
        read_bytes(Path("gone"))


@pytest.mark.parametrize("folder", ["plain", "a folder #1 é 100%"])
def test_every_form_of_a_files_url_is_read(tmp_path, monkeypatch, folder):
    path = tmp_path / folder / "an image?.png"
    path.parent.mkdir()
    path.write_bytes(red())
    url = path.as_uri()
    assert "%" in url
    forms = [
        url,
        url.replace("file://", "file://localhost"),
        url.replace("file://", "FILE://"),
        url.replace("//", "", 1),
    ]
    assert [form for form in forms if read_bytes(form) != red()] == []
    assert [form for form in forms if read_bytes(form, SourcePolicy(files=path.parent)) != red()] == []
    for form in forms:
        with pytest.raises(SourceError, match="files may not be named here"):
            read_bytes(form, SourcePolicy())
        with pytest.raises(SourceError, match="no such file in the allowed folder"):
            read_bytes(form, SourcePolicy(files=tmp_path / "other"))
    monkeypatch.chdir(path.parent)
    assert read_bytes("file://an%20image%3F.png") == red()


def test_a_failed_download_names_the_url_and_the_status(images):
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:\d+/none': could not be fetched \(HTTP Error 404"):
        read_bytes(f"{images.url}/none")


def test_a_users_own_urls_go_through_the_proxy_of_the_environment(images, monkeypatch):
    monkeypatch.setenv("http_proxy", images.url)
    monkeypatch.setattr("modeling_mm.sources.is_public", lambda address: address == "127.0.0.1")
    url = f"http://localhost:{images.port}/red.png"
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(SourceError, match="HTTP Error 404"):
        read_bytes(url)
    assert images.asked[-1] == url
    assert read_bytes(url.replace("localhost", "127.0.0.1"), SourcePolicy()) == red()
    assert images.asked[-1] == "/red.png"


# ---- How long it may take -------------------------------------------------------------------------------------------


def test_a_redirect_is_followed_without_its_body_which_may_have_no_end(images):
    start = time.monotonic()
    assert read_bytes(f"{images.url}/drip-to?/red.png", OPEN) == red()
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("path", ["drip-head", "drip-body", "drip-open"])
def test_a_slow_drip_ends_at_the_deadline(images, path):
    """Each byte comes well within the timeout of a socket."""
    start = time.monotonic()
    with pytest.raises(SourceError, match="took longer"):
        read_bytes(f"{images.url}/{path}", OPEN, deadline=start + 0.5)
    assert 0.4 < time.monotonic() - start < 3


def test_a_slow_handshake_ends_at_the_deadline():
    with silent() as port:
        start = time.monotonic()
        with pytest.raises(SourceError, match="took longer"):
            read_bytes(f"https://127.0.0.1:{port}/x", OPEN, deadline=start + 0.5)
        assert 0.4 < time.monotonic() - start < 3


def test_nothing_is_fetched_after_the_deadline(images):
    asked = len(images.asked)
    with pytest.raises(SourceError, match="took longer"):
        read_bytes(f"{images.url}/red.png", OPEN, deadline=time.monotonic() - 1)
    assert len(images.asked) == asked


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
    with pytest.raises(SourceError, match="private address"):
        read_bytes(f"http://{NAME}/red.png", SourcePolicy())


def test_a_redirect_to_a_private_address_is_refused(monkeypatch, images):
    """The first address counts as public here, what it leads to does not."""
    monkeypatch.setattr("modeling_mm.sources.is_public", lambda address: address == "127.0.0.1")
    assert read_bytes(f"{images.url}/red.png", SourcePolicy()) == red()
    with pytest.raises(SourceError, match="private address"):
        read_bytes(f"{images.url}/to?http://127.0.0.2:1/x", SourcePolicy())
    with pytest.raises(SourceError, match="not to an http"):
        read_bytes(f"{images.url}/to?file:///etc/hostname", SourcePolicy())
    with pytest.raises(SourceError, match="redirects more than 3 times"):
        url = images.url
        read_bytes(f"{url}/to?{url}/to?{url}/to?{url}/to?/red.png", SourcePolicy())


def test_the_address_that_was_checked_is_the_one_that_is_opened(monkeypatch, images):
    """A name that stands for this machine when it is asked a second time, as an attacker's would."""
    asked = []
    ask = socket.getaddrinfo

    def lookup(host, port, *arguments, **options):
        if host != NAME:
            return ask(host, port, *arguments, **options)
        asked.append(host)
        return ask("127.0.0.1" if len(asked) == 1 else "127.0.0.2", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr("modeling_mm.sources.is_public", lambda address: address == "127.0.0.1")
    assert read_bytes(f"http://{NAME}:{images.port}/red.png", SourcePolicy()) == red()
    assert asked == [NAME]
    with pytest.raises(SourceError, match="private address"):
        read_bytes(f"http://{NAME}:{images.port}/red.png", SourcePolicy())


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
        with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):  # an authority that nobody knows
            read_bytes(url, OPEN)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
        assert read_bytes(url, OPEN) == red()
        assert told == [NAME] * 2 and lookups == [NAME] * 2
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(SourceError, match=r"CERTIFICATE_VERIFY_FAILED.*mismatch"):
                read_bytes(f"https://{host}:{server.port}/red.png", OPEN)
        assert server.asked == ["/red.png"]
