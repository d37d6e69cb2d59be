"""A server of images on loopback, with all that can go wrong with one.

with gallery() as pictures:
    urlopen(f"{pictures.url}/red.png")
"""

import contextlib
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fakes.processor_parts import picture

DRIP_SECONDS = 0.05


def red() -> bytes:
    file = io.BytesIO()
    picture("red").save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """
    /red.png; /to?URL leads on; /cut ends early; /drip-head, /drip-body and /drip-open send a byte now and then without
    end: in the head, in a body with a length, in one without. /drip-to?URL does both.
    """

    def do_GET(self):
        self.server.asked.append(self.path)
        body = red()
        if self.path == "/drip-head":
            self.drip(b"HTTP/1.1 200 OK\r\nX: ")
        elif self.path.startswith("/drip-to?"):
            self.drip(b"HTTP/1.1 302 Found\r\nLocation: " + self.path.removeprefix("/drip-to?").encode() + b"\r\n\r\n")
        elif self.path.startswith("/drip"):
            length = b"Content-Length: 9999\r\n" if self.path == "/drip-body" else b""
            self.drip(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        elif self.path == "/cut":
            self.answer(200, body[:20], {"Content-Length": str(len(body))})
        elif self.path.startswith("/to?"):
            self.answer(302, b"", {"Location": self.path.removeprefix("/to?"), "Content-Length": "0"})
        else:
            self.answer(200 if self.path == "/red.png" else 404, body, {"Content-Length": str(len(body))})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, start):
        self.close_connection = True
        with contextlib.suppress(OSError):  # until the client has enough of it
            self.wfile.write(start)
            while not self.server.is_closing.wait(DRIP_SECONDS):
                self.wfile.write(b"x")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def gallery(wrap=None):
    """`wrap` makes a TLS socket of the one that listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.asked, server.is_closing, server.port = [], threading.Event(), server.server_address[1]
    server.url = f"http://127.0.0.1:{server.port}"
    if wrap is not None:
        server.socket = wrap(server.socket)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silent():
    """A server that takes connections and sends a byte now and then that mean nothing; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        is_closing = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                # The head of a TLS record, whose 255 bytes never all come.
                connection.sendall(b"\x16\x03\x03\x00\xff")
                while not is_closing.is_set():
                    connection.sendall(b"\x02")
                    time.sleep(DRIP_SECONDS)

        threading.Thread(target=drip, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            is_closing.set()
