"""The live view: one page on loopback, renewed with the ledger, and nothing else of the machine."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import html5lib
import pytest

from orchestrator import Study
from orchestrator.errors import StudyError
from orchestrator.serving import LivePage, ReportServer, is_loopback, open_server
from tests import browser
from tests.orchestrator.fake_study import fill, make_study, search_row


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    fill(made)
    return made


@pytest.fixture
def server(study: Study) -> Iterator[ReportServer]:
    with open_server(study, "127.0.0.1", 0) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.05,))
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def get(
    server: ReportServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_only_the_page_is_served(server: ReportServer, study: Study) -> None:
    code, page = get(server, "/")
    assert code == 200
    html5lib.HTMLParser(strict=True).parse(page)
    assert "Study tiny" in page
    assert get(server, "/", "HEAD") == (200, "")
    for path in ("/study.json", "/report.html", "/../study.json", "//etc/passwd", "/%2e%2e/x"):
        assert get(server, path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert get(server, "/", method)[0] == 501
    assert not (study.report / "report.html").exists()


def test_a_name_of_the_internet_bound_to_loopback_gets_nothing(server: ReportServer) -> None:
    assert get(server, "/", host="evil.example:80")[0] == 403
    assert get(server, "/", host="evil.example")[0] == 403
    for name in ("localhost", "127.0.0.1:1", "localhost:5", "[::1]:5"):
        assert get(server, "/", host=name)[0] == 200


def test_the_page_is_made_anew_when_the_ledger_changes(study: Study) -> None:
    page = LivePage(study)
    first = page.html()
    assert page.html() is first
    study.ledger.write(search_row("added", 0, [0.5], block=5))
    second = page.html()
    assert b"added" in second
    (study.ledger.folder / "0123456789abcdef.json").write_text('{"format": 99, "key": "0"}')
    assert page.html() is second  # of a newer version: what was seen last stays


def test_the_browser_follows_and_stays_where_it_is(server: ReportServer, study: Study) -> None:
    with browser.page() as page:
        page.size(900, 500)
        page.open(server.url)
        page.run("document.querySelector('article details').open = true; scrollTo(0, 700)")
        page.run("window.same = true")
        study.ledger.write(search_row("added", 0, [0.5], block=5))
        page.wait("document.querySelector('#results').textContent.includes('added')")
        assert page.run("window.same") is True  # it was not loaded anew
        assert page.run("scrollY") == 700
        assert page.run("document.querySelector('article details').open") is True
        assert page.run("document.querySelector('#results th button') !== null") is True
        assert set(page.requests) == {server.url}
        assert page.errors == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_is_this_machine_alone(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.1.4")
    assert not is_loopback("example.org")


def test_a_port_that_is_taken_is_explained(server: ReportServer, study: Study) -> None:
    with pytest.raises(StudyError, match=r"cannot listen on 127.0.0.1:\d+: .*--port"):
        open_server(study, "127.0.0.1", server.server_address[1])


def _in_the_background() -> None:
    """Ignore Ctrl-C, as a shell has its background jobs do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_warns_of_other_hosts_and_ends_in_order(study: Study, number: int) -> None:
    words = ["report", "tiny", "--serve", "--host", "0.0.0.0", "--root", str(study.root)]
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_in_the_background,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("report  http://0.0.0.0:")
        os.kill(process.pid, number)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "there is no authentication" in errors
    assert "Traceback" not in errors
