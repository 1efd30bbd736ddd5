"""The report of a running study in a browser: one page, read-only, renewed with the ledger."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StudyError
from spaces.core.errors import NasError

if TYPE_CHECKING:
    from orchestrator.study import Study

_log = logging.getLogger(__name__)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
_POLICY += "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'"


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_server(study: Study, host: str, port: int) -> ReportServer:
    """Return a server that listens; `serve_forever` answers until it is interrupted.

    Args:
        study: The study.
        host: Address to listen on.
        port: Port; 0 is any free one.

    Raises:
        StudyError: It cannot listen there.
    """
    try:
        return ReportServer(study, host, port)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise StudyError(
            f"cannot listen on {host}:{port}: {said}. Choose another --port."
        ) from error


class LivePage:
    """The page of a study, made anew when its ledger has changed.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._seen: object = None
        self._html = b""
        self._lock = threading.Lock()

    def html(self) -> bytes:
        """Return the page of what the ledger holds now.

        Where it cannot be made now, as while the folder is being copied, the last one stays.

        Raises:
            NasError: There is no last one.
        """
        from orchestrator.document import to_html
        from orchestrator.report import build, summarize

        with self._lock:
            state = self._state()
            if state != self._seen:
                try:
                    blocks, title = build(self._study, summarize(self._study))
                    self._html = to_html(blocks, title, live=True).encode()
                except (NasError, OSError) as error:
                    if not self._html:
                        raise
                    _log.warning("the report stays as it was: %s", error)
                self._seen = state
            return self._html

    def _state(self) -> object:
        """Return what changes with the ledger, with open rows, and with the driver's coming."""
        found = []
        for folder in (self._study.ledger.folder, self._study.checkpoints):
            try:
                with os.scandir(folder) as entries:
                    found += [(e.name, e.stat().st_mtime_ns) for e in entries if e.name[0] != "."]
            except FileNotFoundError:
                continue
        return sorted(found), self._study.holder()


class ReportServer(ThreadingHTTPServer):
    """Serves the page of one study at `/` and nothing else.

    Args:
        study: The study.
        host: Address to listen on.
        port: Port; 0 is any free one.
    """

    daemon_threads = True

    def __init__(self, study: Study, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.page = LivePage(study)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        name = host.decode() if isinstance(host, bytes) else str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "nas", ""
    server: ReportServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.path.partition("?")[0] != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if not self._is_asked_for():
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        try:
            page = self.server.page.html()
        except (NasError, OSError) as error:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if body:
            self.wfile.write(page)

    def _is_asked_for(self) -> bool:
        # A page of the internet whose name was bound to 127.0.0.1 would ask with that name.
        listening = str(self.server.server_address[0])
        if not is_loopback(listening):
            return True
        name = self.headers.get("Host", "").rpartition(":")[0].strip("[]")
        return is_loopback(name or self.headers.get("Host", ""))

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)
