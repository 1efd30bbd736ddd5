"""What every dataset plug-in must do; those that need files are given small ones."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.dataset_paths import offers
from spaces.core import plugins
from tests.trainables.official import WRITERS
from tests.trainables.test_datasets import encoded, pictures, png, write
from trainables.errors import DataError
from trainables.images import ImageSet
from trainables.streams import Images, go_through, make_augmentation, make_batches


def _settings(name: str, folder: Path) -> dict[str, Any]:
    """Return settings under which a shipped dataset can be read from `folder`."""
    if name in WRITERS:
        WRITERS[name](folder)
        more = {"size": 9, "workers": 0} if name == "imagenet" else {}
        return {"root": str(folder), **more}
    if name == "image_folder":
        for split in ("train", "test"):
            for label, image in enumerate(pictures(10, 9, 9, seed=len(split))):
                path = folder / split / f"class {label // 2}" / f"{label}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(image))
        return {"root": str(folder)}
    if name == "parquet":
        labels = [0, 1, 2, 3] * 3
        train = write(folder / "train.parquet", encoded(pictures(12, 9, 9)), labels)
        test = write(folder / "test.parquet", encoded(pictures(12, 9, 9, seed=1)), labels)
        return {"train": train, "test": test}
    return {}


def pixels(images: Images) -> torch.Tensor:
    """Return all images of a split, resident or not, as networks see them: (N, C, H, W)."""
    return torch.cat([batch for batch, _ in go_through(images, 1000)])


@pytest.fixture(params=plugins.available("datasets"))
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    settings = {"name": request.param, **_settings(request.param, tmp_path)}
    return plugins.load("datasets", request.param), plugins.make_config("datasets", settings)[1]


def test_both_splits_fit_together(dataset: tuple[Any, Any]):
    module, config = dataset
    assert module.splits(config) == ("train", "test")
    train, test = module.load(config, "train"), module.load(config, "test")
    assert len(train) >= len(test) > 0
    assert pixels(train).shape[1:] == pixels(test).shape[1:]
    for name in ("num_classes", "mean", "std", "classes"):
        assert getattr(train, name) == getattr(test, name)
    if isinstance(train, ImageSet):
        assert (train.crop_padding, train.flip) == (test.crop_padding, test.flip)
    assert train.labels.unique().tolist() == list(range(train.num_classes))
    assert len(train.classes) in (0, train.num_classes)


def test_no_image_is_in_both_splits(dataset: tuple[Any, Any]):
    module, config = dataset
    train, test = (pixels(module.load(config, split)).flatten(1) for split in ("train", "test"))
    assert not {bytes(row) for row in train.numpy()} & {bytes(row) for row in test.numpy()}


def test_loading_is_memoised_and_deterministic(dataset: tuple[Any, Any]):
    module, config = dataset
    first = module.load(config, "train")
    assert module.load(config, "train") is first
    assert module.load(dataclasses.replace(config), "train") is first


def test_batches_can_be_cut_from_it(dataset: tuple[Any, Any]):
    module, config = dataset
    images = module.load(config, "train")
    batches = make_batches(
        images,
        5,
        generator=torch.Generator().manual_seed(0),
        augmentation=make_augmentation(images, "auto", 0),
        dtype=torch.float32,
    )
    got, labels = batches.next_batch()
    assert got.shape == (5, *pixels(images).shape[1:])
    assert got.shape[1] == images.in_channels
    assert got.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_digest_is_sixteen_hexadecimal_characters(dataset: tuple[Any, Any]):
    module, config = dataset
    digest = module.digest(config)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert module.digest(config) == digest


def test_files_are_all_that_is_read(dataset: tuple[Any, Any]):
    module, config = dataset
    if not hasattr(module, "prepare"):
        assert not hasattr(module, "files")
        return
    files = module.files(config)
    root = Path(config.root)
    assert len(set(files)) == len(files)
    assert {path for path in root.rglob("*") if path.is_file()} == set(files)


@pytest.mark.parametrize(
    "name", [name for name in plugins.available("datasets") if offers(name, "prepare")]
)
def test_missing_data_names_the_command_that_gets_it(name: str, tmp_path: Path):
    module = plugins.load("datasets", name)
    config = plugins.make_config("datasets", {"name": name, "root": str(tmp_path / "my data")})[1]
    command = f"nas data prepare {name} --root '{tmp_path / 'my data'}'"
    for read in (module.files, module.digest, lambda config: module.load(config, "train")):
        with pytest.raises(DataError, match="does not exist") as caught:
            read(config)
        assert f"Run {command} to get it" in str(caught.value)


def test_unknown_split_is_refused(dataset: tuple[Any, Any]):
    module, config = dataset
    with pytest.raises(DataError, match="the splits train and test, got 'val'"):
        module.load(config, "val")


def test_settings_survive_their_mapping(dataset: tuple[Any, Any]):
    module, config = dataset
    name = module.__name__.rpartition(".")[2]
    mapping = plugins.settings_of(name, config)
    restored = plugins.make_config("datasets", mapping)[1]
    assert plugins.settings_of(name, restored) == mapping


@pytest.mark.parametrize("name", plugins.available("datasets"))
def test_plug_in_has_a_summary_and_a_source(name: str):
    info = plugins.describe("datasets", name)
    assert info.source
    assert info.summary.endswith(".")


def test_importing_datasets_imports_nothing_heavy():
    # A worker that waits, and a check of an experiment file, must not pay for these.
    heavy = [
        "torch",
        "torchvision",
        "pyarrow",
        "PIL",
        "sklearn",
        "scipy",
        "numpy",
        "ray",
        "mlflow",
        "yaml",
    ]
    names = ", ".join(plugins.available("datasets"))
    code = (
        f"import sys; from trainables.datasets import {names}; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
