"""`nas data`: what is fetched, said and refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.config import ConfigError, load_experiment
from spaces.core.plugins import ENVIRONMENT_VARIABLE
from tests.orchestrator.fake_study import YAML
from tests.trainables import official
from trainables.datasets import svhn

Nas = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nas(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nas:
    """Run `nas` in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")  # so that what --plugins sets is undone too

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Let torchvision's download of SVHN copy small files; return the names it was asked for."""
    there = tmp_path / "there"
    official.write_svhn(there)
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in there.iterdir()}
    table = {name.split("_")[0]: [f"http://{name}", name, md5] for name, md5 in sums.items()}
    monkeypatch.setattr("torchvision.datasets.SVHN.split_list", table)
    names: list[str] = []

    def download_url(url: str, root: str, filename: str, md5: str) -> None:
        names.append(filename)
        Path(root, filename).write_bytes((there / filename).read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    return names


def test_prepare_downloads_once_and_prints_what_to_write(
    nas: Nas, fetched: list[str], tmp_path: Path
) -> None:
    code, out, err = nas("data", "prepare", "svhn", "--root", "my/data")
    folder = tmp_path / "my" / "data"
    size = sum((folder / name).stat().st_size for name in fetched)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"svhn is ready in {folder} ({size / 1000:.1f} kB). In an experiment:",
        "dataset: {name: svhn, root: my/data}",
    ]
    assert sorted(fetched) == ["test_32x32.mat", "train_32x32.mat"]
    assert nas("data", "prepare", "svhn", "--root", "my/data")[:2] == (0, out)
    assert len(fetched) == 2
    document = json.loads(nas("data", "prepare", "svhn", "--root", "my/data", "--json")[1])
    assert document == {
        "dataset": "svhn",
        "folder": str(folder),
        "bytes": size,
        "settings": {"name": "svhn", "root": "my/data"},
    }


@pytest.mark.parametrize("root", ["data", "my data", "2024", "no", "a: b", "quote'\"d", "#1"])
def test_the_printed_line_is_an_experiments(
    root: str, nas: Nas, fetched: list[str], tmp_path: Path
) -> None:
    line = nas("data", "prepare", "svhn", "--root", root)[1].splitlines()[1]
    assert line.startswith("dataset: ")
    (tmp_path / "a.yaml").write_text(YAML.replace("dataset: digits", line))
    dataset = load_experiment(tmp_path / "a.yaml").dataset
    assert dataset == {"name": "svhn", "root": str(tmp_path / root), "flip": True}


def test_the_default_root_is_that_of_the_settings(nas: Nas, fetched: list[str]) -> None:
    assert "root: data}" in nas("data", "prepare", "svhn")[1]
    assert svhn.Config().root == "data"


def test_digits_need_nothing(nas: Nas, tmp_path: Path) -> None:
    code, out, err = nas("data", "prepare", "digits")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "dataset: digits"
    assert "nothing is to be done" in out
    assert json.loads(nas("data", "prepare", "digits", "--json")[1])["folder"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("parquet",), "parquet reads files of your own: .*Set dataset.train and dataset.test in"),
        (("image_folder",), "image_folder reads files of your own: .*Set dataset.root in"),
        (("imagenet16_120",), "must hold the official files of ImageNet16, .*unpack both into"),
        (("cifar",), "Did you mean 'cifar10'"),
        (("svhn", "--root", "~nobody-of-that-name/data"), "--root must be a folder, got '~nobody"),
        (("svhn", "--root", "a" * 300), "--root must be a folder, got 'aaa.*too long"),
        (("svhn", "--root", "file"), "file: SVHN could not be downloaded: .*exists"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(
    words: tuple[str, ...], message: str, nas: Nas, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    code, out, err = nas("data", "prepare", *words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_an_error_of_the_network_is_one_line(
    nas: Nas, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    code, out, err = nas("data", "prepare", "svhn")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "network is unreachable. Check the network and run the command again" in err


def test_status_says_what_is_there(nas: Nas, tmp_path: Path) -> None:
    root = tmp_path / "data"
    official.write_cifar10(root)
    official.write_fashion_mnist(root)
    (damaged,) = root.rglob("t10k-images-idx3-ubyte.gz")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    code, out, err = nas("data", "status", "--json")
    assert (code, err) == (0, "")
    states = {state["dataset"]: state for state in json.loads(out)}
    assert {name: state["state"] for name, state in states.items()} == {
        "cifar10": "there",
        "cifar100": "missing",
        "fashion_mnist": "damaged",
        "imagenet": "missing",
        "imagenet16_120": "missing",
        "svhn": "missing",
    }
    size = sum(path.stat().st_size for path in root.rglob("*_batch*"))
    assert states["cifar10"]["bytes"] == size
    assert len(states["cifar10"]["digest"]) == 16
    assert states["cifar10"]["get"] is None
    assert states["svhn"]["get"] == "nas data prepare svhn --root data"
    lines = nas("data", "status", "--root", "data")[1].splitlines()
    assert len(lines) == 1 + len(states)
    assert states["cifar10"]["digest"] in lines[1]


def test_a_dataset_of_your_own_is_prepared_too(nas: Nas, tmp_path: Path) -> None:
    file = tmp_path / "mine" / "datasets" / "blobs.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        '"""Blobs."""\nfrom dataclasses import dataclass\nfrom pathlib import Path\n\n'
        'SOURCE = "none"\n\n\n@dataclass(frozen=True)\nclass Config:\n    root: str = "data"\n\n\n'
        "def prepare(config):\n    Path(config.root).mkdir()\n    return Path(config.root)\n"
    )
    code, out, _ = nas("--plugins", "mine", "data", "prepare", "blobs", "--root", "made")
    assert code == 0
    assert out.splitlines()[-1] == "dataset: {name: blobs, root: made}"
    assert (tmp_path / "made").is_dir()
    assert "blobs" not in nas("--plugins", "mine", "data", "status")[1]


@pytest.mark.parametrize("command", ["prepare", "status"])
def test_help_has_an_example(command: str, nas: Nas) -> None:
    code, out, _ = nas("data", command, "--help")
    assert code == 0
    assert f"Example: nas data {command}" in " ".join(out.split())


@pytest.mark.parametrize("name", sorted(official.WRITERS))
def test_an_experiment_without_the_data_names_the_command(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(YAML.replace("dataset: digits", f"dataset: {{name: {name}, root: nowhere}}"))
    with pytest.raises(ConfigError, match=f"To get it: nas data prepare {name} --root nowhere"):
        load_experiment(path)


def test_validate_names_the_command_where_the_root_is_empty(nas: Nas, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "a.yaml").write_text(YAML.replace("dataset: digits", "dataset: cifar100"))
    code, _, err = nas("validate", "a.yaml")
    assert code == 2
    assert f"Run nas data prepare cifar100 --root {tmp_path / 'data'} to get it" in err


def test_imagenet_says_how_its_folder_must_look(nas: Nas, tmp_path: Path) -> None:
    code, out, err = nas("data", "prepare", "imagenet", "--root", "here")
    assert (code, out) == (2, "")
    place = tmp_path / "here" / "imagenet"
    assert f"{place}/train does not exist" in err
    assert "cannot be downloaded without an account" in err
    assert f"{place}/val/CLASS/FILE.JPEG" in err
    official.write_imagenet(tmp_path / "here")
    code, out, err = nas("data", "prepare", "imagenet", "--root", "here")
    assert (code, err) == (0, "")
    assert out.startswith(f"imagenet is ready in {place} (")
    (place / "train" / "n00000000" / "notes.txt").write_text("x")
    code, _, err = nas("data", "prepare", "imagenet", "--root", "here")
    assert (code, "notes.txt is no image" in err) == (2, True)
