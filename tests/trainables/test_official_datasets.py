"""CIFAR-100, Fashion-MNIST, SVHN and ImageNet16-120 from small files in the official formats."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tests.trainables import official
from trainables.datasets import cifar100, fashion_mnist, imagenet16_120, svhn
from trainables.errors import DataError

MODULES = {
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "imagenet16_120": imagenet16_120,
    "svhn": svhn,
}


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files of the dataset that the test names."""
    official.WRITERS[request.param](tmp_path)
    return tmp_path


def config_of(name: str, root: Path) -> Any:
    return MODULES[name].Config(root=str(root))


@pytest.mark.parametrize("root", ["cifar100"], indirect=True)
def test_cifar100_has_the_fine_labels_as_torchvision_reads_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    for split in ("train", "test"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy: the official files name a module it has moved
            theirs = CIFAR100(str(root), train=split == "train")
        ours = cifar100.load(config_of("cifar100", root), split)
        assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert ours.labels.tolist() == theirs.targets == list(range(100))
        assert list(ours.classes) == theirs.classes
        assert (ours.crop_padding, ours.flip, ours.num_classes) == (4, True, 100)


@pytest.mark.parametrize("root", ["svhn"], indirect=True)
def test_svhn_is_what_torchvision_reads(root: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    for split in ("train", "test"):
        theirs = SVHN(str(root), split=split)
        ours = svhn.load(config_of("svhn", root), split)
        assert np.array_equal(ours.images.numpy(), theirs.data)
        # The files' labels are 1, 2, ..., 10 and 10 is the digit 0.
        assert ours.labels.tolist() == theirs.labels.tolist() == [*range(1, 10), 0] * 2
        assert ours.images.is_contiguous()


@pytest.mark.parametrize("root", ["svhn"], indirect=True)
def test_svhn_mirrors_as_published_unless_told_otherwise(root: Path):
    config = config_of("svhn", root)
    published = svhn.load(config, "train")
    assert (published.crop_padding, published.flip) == (4, True)
    upright = svhn.load(svhn.Config(root=str(root), flip=False), "train")
    assert (upright.crop_padding, upright.flip) == (4, False)


@pytest.mark.parametrize("root", ["fashion_mnist"], indirect=True)
def test_fashion_mnist_is_what_torchvision_reads(root: Path):
    from torchvision.datasets import FashionMNIST

    folder = root / fashion_mnist.FOLDER
    for packed in list(folder.iterdir()):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    train = fashion_mnist.load(config_of("fashion_mnist", root), "train")
    for split in ("train", "test"):
        theirs = FashionMNIST(str(root), train=split == "train")
        ours = fashion_mnist.load(config_of("fashion_mnist", root), split)
        assert torch.equal(ours.images[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)
        assert list(ours.classes) == theirs.classes
        # Both splits are normalised by the training images.
        pixels = train.images.double() / 255
        assert ours.mean == pytest.approx((pixels.mean().item(),), abs=1e-12)
        assert ours.std == pytest.approx((pixels.std(correction=0).item(),), abs=1e-12)


@pytest.mark.parametrize("root", ["fashion_mnist"], indirect=True)
def test_fashion_mnist_packed_or_not_is_the_same_data(root: Path):
    config = config_of("fashion_mnist", root)
    packed, digest = fashion_mnist.load(config, "test"), fashion_mnist.digest(config)
    for path in list((root / fashion_mnist.FOLDER).iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = fashion_mnist.load(config, "test")
    assert plain is not packed
    assert torch.equal(plain.images, packed.images)
    assert fashion_mnist.digest(config) == digest
    assert [path.suffix for path in fashion_mnist.files(config)] == [""] * 4


@pytest.mark.parametrize("root", ["imagenet16_120"], indirect=True)
def test_imagenet16_120_keeps_the_first_120_labels(root: Path):
    config = config_of("imagenet16_120", root)
    draw = np.random.default_rng(2)
    drawn = [draw.integers(0, 256, (130, 768), dtype=np.uint8) for _ in range(11)]
    train, test = imagenet16_120.load(config, "train"), imagenet16_120.load(config, "test")
    # Ten batches in the order of their numbers, not of their names.
    assert np.array_equal(
        train.images.flatten(1).numpy(),
        np.concatenate(drawn[:10]).reshape(10, 130, 768)[:, :120].reshape(-1, 768),
    )
    assert np.array_equal(test.images.flatten(1).numpy(), drawn[10][:120])
    assert train.labels.tolist() == list(range(120)) * 10
    assert train.images.shape[1:] == (3, 16, 16)
    assert (train.crop_padding, train.flip, train.num_classes) == (2, True, 120)


@pytest.mark.parametrize("root", list(MODULES), indirect=True)
def test_missing_file_names_the_command(root: Path, request: pytest.FixtureRequest):
    name = request.node.callspec.params["root"]
    module, config = MODULES[name], config_of(name, root)
    for path in module.files(config):
        content = path.read_bytes()
        path.unlink()
        message = rf"{path} does not exist\. Run nas data prepare {name} --root {root} to get it"
        with pytest.raises(DataError, match=message):
            module.files(config)
        path.write_bytes(content)
    (root / "elsewhere").mkdir()
    with pytest.raises(DataError, match="does not exist"):
        module.digest(config_of(name, root / "elsewhere"))


@pytest.mark.parametrize("root", list(MODULES), indirect=True)
def test_replaced_file_is_read_again_and_changes_the_digest(
    root: Path, request: pytest.FixtureRequest
):
    name = request.node.callspec.params["root"]
    module, config = MODULES[name], config_of(name, root)
    first, digest = module.load(config, "test"), module.digest(config)
    (name_of_file, *_) = module.FILES["test"]
    other, path = module.FILES["train"][0], module._OFFICIAL.place(root) / name_of_file
    path.write_bytes((path.parent / other).read_bytes())
    os.utime(path, ns=(1, 1))
    assert not torch.equal(module.load(config, "test").images, first.images)
    assert module.digest(config) != digest


@pytest.mark.parametrize("root", list(MODULES), indirect=True)
def test_every_truncation_is_a_data_error(root: Path, request: pytest.FixtureRequest):
    name = request.node.callspec.params["root"]
    module, config = MODULES[name], config_of(name, root)
    for path in module.files(config):
        split = "test" if path.name.startswith(("test", "t10k", "val")) else "train"
        content = path.read_bytes()
        step = max(1, len(content) // 40)
        for length in [*range(0, min(len(content), 300), 13), *range(300, len(content), step)]:
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path} is no readable") as caught:
                module.load(config, split)
            assert f"Run nas data prepare {name} --root {root} to get it again" in str(caught.value)
        path.write_bytes(content)
    module.load(config, "train")


def _few_names(root: Path) -> None:
    official.write_pickle(root / cifar100.FOLDER / "meta", {"fine_label_names": ["a", "b"]})


def _coarse_alone(root: Path) -> None:
    entry = {"data": np.zeros((2, 3072), np.uint8), "coarse_labels": [0, 1]}
    official.write_pickle(root / cifar100.FOLDER / "train", entry)


def _label_100(root: Path) -> None:
    entry = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 100]}
    official.write_pickle(root / cifar100.FOLDER / "train", entry)


def _huge_label(root: Path) -> None:
    entry = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 2**70]}
    official.write_pickle(root / cifar100.FOLDER / "train", entry)


def _label_of_no_class(root: Path) -> None:
    official.write_imagenet16(root, labels=[1, 2, 1001])


def _label_zero(root: Path) -> None:
    official.write_imagenet16(root, labels=[0, 1, 2])


def _images_of_32(root: Path) -> None:
    entry = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}
    official.write_pickle(root / imagenet16_120.FOLDER / "train_data_batch_1", entry)


def _svhn(**content: Any) -> Callable[[Path], None]:
    return lambda root: savemat(root / "train_32x32.mat", content)


def _idx_images(array: np.ndarray) -> Callable[[Path], None]:
    name, _ = fashion_mnist.FILES["train"]
    packed = gzip.compress(official.idx(array))
    return lambda root: (root / fashion_mnist.FOLDER / name).write_bytes(packed) and None


def _idx_labels(array: np.ndarray) -> Callable[[Path], None]:
    _, name = fashion_mnist.FILES["train"]
    packed = gzip.compress(official.idx(array))
    return lambda root: (root / fashion_mnist.FOLDER / name).write_bytes(packed) and None


def _grey(count: int, *sides: int) -> np.ndarray:
    return np.zeros((count, *sides), np.uint8)


@pytest.mark.parametrize(
    ("root", "damage", "match"),
    [
        ("cifar100", _few_names, "meta is no .*: it must name 100 fine classes, got 2"),
        ("cifar100", _coarse_alone, "train is no readable CIFAR-100 file: 'fine_labels'"),
        ("cifar100", _label_100, r"\[0, 100\), got 100 in row 1"),
        ("cifar100", _huge_label, "no readable CIFAR-100 file: .*too large"),
        ("imagenet16_120", _label_of_no_class, r"labels must be in 1\.\.1000, got 1001"),
        ("imagenet16_120", _label_zero, r"labels must be in 1\.\.1000, got 0"),
        ("imagenet16_120", _images_of_32, r"\(2, 768\), got uint8 of shape \(2, 3072\)"),
        ("svhn", _svhn(X=_grey(32, 32, 3, 2)), "no readable SVHN file: 'y'"),
        ("svhn", _svhn(X=_grey(32, 32, 3, 2), y=[1, 11]), r"labels must be in 1\.\.10, .*got 11"),
        ("svhn", _svhn(X=_grey(32, 32, 3, 2), y=[0, 1]), r"labels must be in 1\.\.10, .*got 0"),
        ("svhn", _svhn(X=_grey(32, 32, 3, 2), y=[1, 2, 3]), r"shape \(32, 32, 3, 3\), .*, 3, 2\)"),
        ("svhn", _svhn(X=_grey(32, 32, 3, 2) * 1.0, y=[1, 2]), "got float64"),
        ("fashion_mnist", _idx_images(_grey(20, 28, 27)), r"header says \(20, 28, 27\)"),
        ("fashion_mnist", _idx_images(_grey(0, 28, 28)), r"header says \(0, 28, 28\)"),
        ("fashion_mnist", _idx_images(_grey(20)), "must be an IDX file of uint8 in 3 dimensions"),
        ("fashion_mnist", _idx_labels(_grey(19)), "a label for each of 20 images, got 19"),
        ("fashion_mnist", _idx_labels(_grey(20) + 10), r"\[0, 10\), got 10 in row 0"),
    ],
    indirect=["root"],
)
def test_unfit_file_is_explained(
    root: Path, damage: Callable[[Path], None], match: str, request: pytest.FixtureRequest
):
    name = request.node.callspec.params["root"]
    damage(root)
    with pytest.raises(DataError, match=match):
        MODULES[name].load(config_of(name, root), "train")


def test_folder_of_the_files_itself_may_be_the_root(tmp_path: Path):
    official.write_fashion_mnist(tmp_path)
    inner = config_of("fashion_mnist", tmp_path / "FashionMNIST" / "raw")
    digest = fashion_mnist.digest(config_of("fashion_mnist", tmp_path))
    assert fashion_mnist.digest(inner) == digest
    (tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"--root {tmp_path} to get it"):
        fashion_mnist.digest(inner)
