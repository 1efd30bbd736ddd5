"""Downloads of datasets through torchvision, from a small server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.client import BadStatusLine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.trainables import official
from trainables.datasets import cifar10, cifar100, fashion_mnist, imagenet16_120, svhn
from trainables.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]


class Server:
    """Serves bytes by path and counts how often each is fetched; a path in `cut` comes cut off."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.cut: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = self._head()
                # torchvision follows redirects by GET requests that it does not read.
                if content is not None and self.headers["Method"] != "HEAD":
                    outer.fetched.append(self.path)
                    end = len(content) // 2 if self.path in outer.cut else len(content)
                    self.wfile.write(content[:end])

            def _head(self) -> bytes | None:
                content = outer.contents.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                return content

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def add(self, name: str, content: bytes) -> list[str]:
        """Serve `content` as `name`; return its URL, name and MD5, as torchvision lists them."""
        self.contents[f"/{name}"] = content
        return [self.url + name, name, hashlib.md5(content).hexdigest()]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    yield served
    served.close()


def serve_svhn(server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, bytes]:
    """Let torchvision's SVHN be small files on the server; return their bytes by name."""
    official.write_svhn(folder)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    table = {name.split("_")[0]: server.add(name, content) for name, content in contents.items()}
    monkeypatch.setattr("torchvision.datasets.SVHN.split_list", table)
    return contents


def serve_cifar(server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> Path:
    """Let torchvision's CIFAR10 or CIFAR100 be a small archive; return the folder in it."""
    module = {"CIFAR10": cifar10, "CIFAR100": cifar100}[kind]
    official.WRITERS[kind.lower()](folder)
    inner = folder / module.FOLDER
    if kind == "CIFAR10":
        (inner / "batches.meta").write_bytes(b"names")
    (inner / "readme.html").write_bytes(b"is not wanted")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(inner, module.FOLDER)
    url, filename, md5 = server.add(f"{kind}.tar.gz", packed.getvalue())
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in inner.iterdir()}
    meta = "batches.meta" if kind == "CIFAR10" else "meta"
    tables = {
        "url": url,
        "filename": filename,
        "tgz_md5": md5,
        "train_list": [[name, sums[name]] for name in module.FILES["train"]],
        "test_list": [[name, sums[name]] for name in module.FILES["test"]],
        "meta": {"filename": meta, "md5": sums[meta]},
    }
    for key, value in tables.items():
        monkeypatch.setattr(f"torchvision.datasets.{kind}.{key}", value)
    return inner


def serve_fashion(server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let torchvision's FashionMNIST be small files; return their folder."""
    official.write_fashion_mnist(folder)
    inner = folder / fashion_mnist.FOLDER
    entries = [server.add(path.name, path.read_bytes()) for path in sorted(inner.iterdir())]
    resources = [(name, md5) for _, name, md5 in entries]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.resources", resources)
    mirrors = [server.url + "nothing/", server.url]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", mirrors)
    return inner


def shown(folder: Path) -> set[str]:
    """Return the names in a folder but for the lock's."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize("kind", ["CIFAR10", "CIFAR100"])
def test_cifar_is_downloaded_once(
    kind: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    module = {"CIFAR10": cifar10, "CIFAR100": cifar100}[kind]
    inner = serve_cifar(server, monkeypatch, tmp_path / "there", kind)
    config = module.Config(root=str(tmp_path / "new" / "root"))
    place = module.prepare(config)
    assert place == tmp_path / "new" / "root" / module.FOLDER
    names = {path.name for path in inner.iterdir()} - {"readme.html"}
    assert shown(place) == names
    assert all((place / name).read_bytes() == (inner / name).read_bytes() for name in names)
    assert module.digest(config) == module.digest(module.Config(root=str(tmp_path / "there")))
    assert module.prepare(config) == place
    assert server.fetched == [f"/{kind}.tar.gz"]


def test_fashion_mnist_is_downloaded_from_the_first_mirror_that_has_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    inner = serve_fashion(server, monkeypatch, tmp_path / "there")
    config = fashion_mnist.Config(root=str(tmp_path / "root"))
    place = fashion_mnist.prepare(config)
    assert place == tmp_path / "root" / "FashionMNIST" / "raw"
    assert shown(place) == {path.name for path in inner.iterdir()}
    assert len(fashion_mnist.load(config, "train")) == 20
    fashion_mnist.prepare(config)
    assert sorted(server.fetched) == sorted(f"/{name}" for name in shown(place))


def test_a_damaged_or_missing_file_alone_is_fetched_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    contents = serve_svhn(server, monkeypatch, tmp_path / "there")
    root = tmp_path / "root"
    config = svhn.Config(root=str(root))
    svhn.prepare(config)
    (root / "test_32x32.mat").write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"test_32x32.mat is no readable SVHN file"):
        svhn.load(config, "test")
    server.fetched.clear()
    svhn.prepare(config)
    assert server.fetched == ["/test_32x32.mat"]
    assert {name: (root / name).read_bytes() for name in shown(root)} == contents


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupted_download_leaves_no_half_file_and_is_repaired(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    contents = serve_svhn(server, monkeypatch, tmp_path / "there")
    root = tmp_path / "root"
    server.cut.add("/test_32x32.mat")
    with pytest.raises(DataError, match=r"SVHN could not be downloaded: http\S+test_32x32.mat: "):
        svhn.prepare(svhn.Config(root=str(root)))
    # Half of it has arrived, under a name that no reader looks at.
    (half,) = root.rglob("test_32x32.mat")
    assert half.parent != root
    assert 0 < half.stat().st_size < len(contents["test_32x32.mat"])
    with pytest.raises(DataError, match=r"train_32x32.mat does not exist"):
        svhn.files(svhn.Config(root=str(root)))
    server.cut.clear()
    server.fetched.clear()
    svhn.prepare(svhn.Config(root=str(root)))
    # The training file came whole the first time.
    assert server.fetched == ["/test_32x32.mat"]
    assert {name: (root / name).read_bytes() for name in shown(root)} == contents


def test_an_interrupted_unpacking_is_repaired_without_a_second_download(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    inner = serve_cifar(server, monkeypatch, tmp_path / "there", "CIFAR10")
    config = cifar10.Config(root=str(tmp_path / "root"))
    moved: list[Path] = []
    replace = Path.replace

    def stop_at_the_third(self: Path, target: Path) -> Path:
        moved.append(target)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            cifar10.prepare(config)
    place = cifar10.prepare(config)
    assert server.fetched == ["/CIFAR10.tar.gz"]
    for name in shown(place):
        assert (place / name).read_bytes() == (inner / name).read_bytes()
    assert len(shown(place)) == 7


def test_a_wrong_checksum_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    serve_svhn(server, monkeypatch, tmp_path / "there")
    server.contents["/train_32x32.mat"] = b"<html>please log in</html>"
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"SVHN could not be downloaded: .*corrupted"):
        svhn.prepare(svhn.Config(root=str(root)))
    assert shown(root) == {".svhn.partial"}


def test_a_wrong_file_in_a_right_archive_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    serve_cifar(server, monkeypatch, tmp_path / "there", "CIFAR100")
    monkeypatch.setattr("torchvision.datasets.CIFAR100.test_list", [["test", "0" * 32]])
    root = tmp_path / "root"
    with pytest.raises(DataError, match="CIFAR-100: test came with a wrong checksum"):
        cifar100.prepare(cifar100.Config(root=str(root)))
    assert shown(root / cifar100.FOLDER) == set()


def test_no_network_is_explained(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    serve_svhn(server, monkeypatch, tmp_path / "there")
    server.contents.clear()
    with pytest.raises(DataError, match=r"404.*Check the network and run the command again"):
        svhn.prepare(svhn.Config(root=str(tmp_path / "root")))


@pytest.mark.parametrize("error", [TimeoutError("slow"), BadStatusLine("slow")])
def test_every_error_of_a_connection_is_explained(
    error: Exception, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    serve_svhn(server, monkeypatch, tmp_path / "there")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(DataError, match=r"32x32\.mat: slow\. Check the network"):
        svhn.prepare(svhn.Config(root=str(tmp_path / "root")))


def test_a_root_that_cannot_be_made_is_explained(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file: SVHN could not be downloaded: .*exists"):
        svhn.prepare(svhn.Config(root=str(tmp_path / "file")))


def test_threads_download_once(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    contents = serve_svhn(server, monkeypatch, tmp_path / "there")
    root = tmp_path / "root"
    threads = [
        threading.Thread(target=svhn.prepare, args=(svhn.Config(root=str(root)),)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.fetched) == ["/test_32x32.mat", "/train_32x32.mat"]
    assert {name: (root / name).read_bytes() for name in shown(root)} == contents


# A process of its own; torchvision's part is played by urllib, since its import takes seconds.
PROCESS = """
import sys, time, types, urllib.request
from pathlib import Path

def download_url(url, root, filename, md5):
    with urllib.request.urlopen(url) as response:
        Path(root, filename).write_bytes(response.read())
    time.sleep(0.5)

for name in ("torchvision", "torchvision.datasets", "torchvision.datasets.utils"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision.datasets.utils"].download_url = download_url
from trainables.datasets import svhn
from trainables.downloads import Download, fetch

sources = {sources!r}
downloads = [Download((url,), name, md5) for url, name, md5 in sources]
checksums = {{name: md5 for _, name, md5 in sources}}
print("ready", flush=True)
sys.stdin.readline()
print(fetch(svhn._OFFICIAL, {root!r}, downloads, checksums))
"""


def test_processes_download_once(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    contents = serve_svhn(server, monkeypatch, tmp_path / "there")
    root = tmp_path / "root"
    sources = [
        [server.url + name, name, hashlib.md5(content).hexdigest()]
        for name, content in contents.items()
    ]
    command = [sys.executable, "-c", PROCESS.format(sources=sources, root=str(root))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **options) for _ in range(3)]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 3
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(root)] * 3
    assert sorted(server.fetched) == ["/test_32x32.mat", "/train_32x32.mat"]
    assert {name: (root / name).read_bytes() for name in shown(root)} == contents


def test_whole_data_in_a_folder_that_cannot_be_written_is_good(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    serve_svhn(server, monkeypatch, tmp_path / "there")
    before = shown(tmp_path / "there")
    monkeypatch.setattr("filelock.FileLock.__init__", None)  # nothing may be locked or written
    svhn.prepare(svhn.Config(root=str(tmp_path / "there")))
    assert {path.name for path in (tmp_path / "there").iterdir()} == before
    assert server.fetched == []


def test_imagenet16_is_verified_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = imagenet16_120.Config(root=str(tmp_path))
    with pytest.raises(DataError, match=r"missing or different: train_data_batch_1, .*log in at"):
        imagenet16_120.prepare(config)
    official.write_imagenet16(tmp_path)
    folder = tmp_path / "ImageNet16"
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert sums.keys() == imagenet16_120.CHECKSUMS.keys()
    monkeypatch.setattr(imagenet16_120, "CHECKSUMS", sums)
    assert imagenet16_120.prepare(config) == folder
    (folder / "val_data").write_bytes(b"")
    with pytest.raises(DataError, match=r"missing or different: val_data. They"):
        imagenet16_120.prepare(config)
