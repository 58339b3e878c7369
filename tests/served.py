"""A web server for tests: files of a folder, parts of them, and failures on purpose; and what reads from it."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from twinblock.training.loader import Loader

COUNT = 640  # images of a set: 64 pieces of ten


class Web:
    """What the server was asked for; `fails(number of the request, path)` gives a status to fail with, or None."""

    def __init__(self, folder: Path):
        self.folder, self.requests, self.parts, self.fails = folder, [], True, lambda number, path: None
        self.url = ""
        self.lock = threading.Lock()


@contextmanager
def web(folder: Path) -> Iterator[Web]:
    """A server of this folder, on a port of this machine."""
    state = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, body: bool):
            with state.lock:
                state.requests.append((self.path, self.headers.get("Range")))
                number = len(state.requests)
            file = state.folder / self.path.lstrip("/")
            failed = state.fails(number, self.path)
            if failed or not file.is_file():
                self.send_response(failed or 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            whole, status, asked = file.stat().st_size, 200, self.headers.get("Range")
            first, last = 0, whole - 1
            if asked and state.parts:
                first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
                last, status = min(last, whole - 1), 206
            with open(file, "rb") as opened:
                opened.seek(first)
                content = opened.read(last + 1 - first)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # what asked is gone, as after a kill
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def pieces_here(images) -> list[Path]:
    return sorted(images.pixels.folder.glob("piece-???????"))


def all_came(images) -> None:
    while images.pixels._coming:
        time.sleep(0.001)


def loaders(images, world: int, batch: int = 32):
    share = batch // world
    return [Loader(images, 0, batch, share, rank * share, torch.device("cpu")) for rank in range(world)]
