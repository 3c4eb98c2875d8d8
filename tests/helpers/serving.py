"""Web server with the faults of real ones: no ranges, cut connections, wrong content."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Site:
    root: Path
    url: str = ""
    ranges: bool = True
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes sent, by file and request
    always_cut: dict[str, int] = field(default_factory=dict)
    arrived: Callable[[str], int] | None = None  # bytes of a file: what is cut arrives before
    instead: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)  # answers before the right one
    asked: list[tuple[str, int]] = field(default_factory=list)  # file, and first byte

    def starts(self, name: str) -> list[int]:
        return [start for asked, start in self.asked if asked == name]


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        name, site = self.path.lstrip("/"), self.site
        if name.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", "/" + name.removeprefix("moved/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        header = self.headers.get("Range")
        start = int(header.removeprefix("bytes=").rstrip("-")) if header and site.ranges else 0
        site.asked.append((name, start))
        answers = site.status.get(name)
        path = site.root / name
        if answers or not path.is_file():
            self.send_error(answers.pop(0) if answers else 404)
            return
        body = site.instead.get(name, path.read_bytes())[start:]
        self.send_response(206 if header and site.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cuts = site.cuts.get(name)
        most = cuts.pop(0) if cuts else site.always_cut.get(name, len(body))
        self.wfile.write(body[:most])
        if most < len(body):
            self.close_connection = True
            self._wait(name, start + most)

    def _wait(self, name: str, size: int) -> None:
        """Wait until the client has stored what it received before a cut and might lose."""
        end = time.monotonic() + 60
        arrived = self.site.arrived
        while arrived is not None and arrived(name) < size and time.monotonic() < end:
            time.sleep(0.01)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(root: Path, **faults: Any) -> Iterator[Site]:
    """Serve the files of `root` on this machine."""
    site = Site(root, **faults)
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
