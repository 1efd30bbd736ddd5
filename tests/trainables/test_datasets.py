"""Digits, cifar10 and parquet: contents, determinism, and what they say of unfit files."""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.trainables.official import write_cifar10, write_official_file
from trainables import official_files
from trainables.datasets import cifar10, digits, parquet
from trainables.errors import DataError

# --- digits -------------------------------------------------------------------------------------


def test_digits_have_a_fixed_stratified_test_split():
    train, test = (digits.load(digits.Config(), split) for split in ("train", "test"))
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    counts = (train.labels.bincount() + test.labels.bincount()).double()
    # Each class gives 360 / 1797 of its images, rounded down or up.
    shares = counts * 360 / 1797
    assert torch.all((test.labels.bincount() - shares).abs() < 1)
    assert (train.crop_padding, train.flip) == (0, False)


def test_digits_test_rows_are_those_of_the_documented_rule():
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = digits.test_rows(data.target)
    assert len(set(rows.tolist())) == 360
    images = np.rint(data.images[rows] * 255 / 16).astype(np.uint8)
    test = digits.load(digits.Config(), "test")
    assert np.array_equal(test.images[:, 0].numpy(), images)
    assert np.array_equal(test.labels.numpy(), data.target[rows])
    train = digits.load(digits.Config(), "train")
    rest = np.setdiff1d(np.arange(1797), rows)
    assert np.array_equal(train.labels.numpy(), data.target[rest])
    # Within a class the rows of the lowest hash are taken: those left out have higher ones.
    for label in range(10):
        taken = [digits._rank(int(row)) for row in rows if data.target[row] == label]
        left = [digits._rank(int(row)) for row in rest if data.target[row] == label]
        assert max(taken) < min(left)


def test_digits_use_the_whole_range_of_uint8():
    images = digits.load(digits.Config(), "train").images
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert len(images.unique()) == 17


def test_digits_are_read_without_scikit_learn_wherever_its_file_lies(
    monkeypatch: pytest.MonkeyPatch,
):
    code = (
        "import sys; from trainables.datasets import digits; "
        "print(digits.digest(digits.Config()), 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digits.digest(digits.Config()), "False"]
    found = digits._table()
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert np.array_equal(found, digits._table())


# --- cifar10 ------------------------------------------------------------------------------------


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    write_cifar10(tmp_path)
    return tmp_path


def test_cifar10_reads_the_official_files_in_order(cifar_root: Path):
    config = cifar10.Config(root=str(cifar_root))
    train, test = cifar10.load(config, "train"), cifar10.load(config, "test")
    assert train.images.shape == (100, 3, 32, 32)
    assert test.images.shape == (20, 3, 32, 32)
    assert (train.crop_padding, train.flip, train.num_classes) == (4, True, 10)
    draw = np.random.default_rng(0)
    for number in range(5):
        pixels = draw.integers(0, 256, (20, 3072), dtype=np.uint8)
        part = train.images[20 * number : 20 * number + 20]
        # A row holds 1,024 red values, then green, then blue, each row by row.
        assert np.array_equal(part[:, 1, 2, 3].numpy(), pixels[:, 1024 + 2 * 32 + 3])
        assert np.array_equal(part.flatten(1).numpy(), pixels)
    assert train.labels[:12].tolist() == [*range(10), 0, 1]


def test_cifar10_agrees_with_torchvisions_own_reader(
    cifar_root: Path, monkeypatch: pytest.MonkeyPatch
):
    from torchvision.datasets import CIFAR10

    write_official_file(
        cifar_root / cifar10.FOLDER / "data_batch_1", np.full((2, 3072), 9, np.uint8), [3, 4]
    )
    folder = cifar_root / cifar10.FOLDER
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar10.CLASSES)}, 2))
    # Its integrity check knows the official files alone.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy: the official files name a module it has moved
        theirs = CIFAR10(str(cifar_root), train=True)
    ours = cifar10.load(cifar10.Config(root=str(cifar_root)), "train")
    assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets


def test_cifar10_root_may_be_the_folder_itself(cifar_root: Path):
    inner = cifar10.Config(root=str(cifar_root / cifar10.FOLDER))
    assert cifar10.digest(inner) == cifar10.digest(cifar10.Config(root=str(cifar_root)))


def test_cifar10_missing_names_the_command_that_downloads(tmp_path: Path):
    command = f"Run nas data prepare cifar10 --root {tmp_path}"
    for root in (tmp_path, tmp_path / cifar10.FOLDER):
        with pytest.raises(DataError, match=rf"data_batch_1 does not exist. {command} to get it"):
            cifar10.load(cifar10.Config(root=str(root)), "train")
    with pytest.raises(DataError, match="does not exist"):
        cifar10.digest(cifar10.Config(root=str(tmp_path)))


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_cifar10_runs_no_code_of_a_file(cifar_root: Path):
    target = cifar_root / "touched"
    content = pickle.dumps({"data": _Attack(target), "labels": []}, 2)
    (cifar_root / cifar10.FOLDER / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=r"it holds \S+, which is no image data"):
        cifar10.load(cifar10.Config(root=str(cifar_root)), "test")
    assert not target.exists()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _text(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def _no_data(path: Path) -> None:
    path.write_bytes(pickle.dumps({"labels": [1]}, 2))


def _a_list(path: Path) -> None:
    path.write_bytes(pickle.dumps([1, 2], 2))


def _wrong_shape(path: Path) -> None:
    write_official_file(path, np.zeros((3, 100), np.uint8), [0, 1, 2])


def _floats(path: Path) -> None:
    write_official_file(path, np.zeros((3, 3072)), [0, 1, 2])


def _too_few_labels(path: Path) -> None:
    write_official_file(path, np.zeros((3, 3072), np.uint8), [0, 1])


def _label_ten(path: Path) -> None:
    write_official_file(path, np.zeros((3, 3072), np.uint8), [0, 1, 10])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_truncated, "no readable CIFAR-10 file"),
        (_text, "no readable CIFAR-10 file"),
        (_no_data, "no readable CIFAR-10 file: 'data'"),
        (_a_list, "no readable CIFAR-10 file"),
        (_wrong_shape, r"uint8 pixels of shape \(3, 3072\), got uint8 of shape \(3, 100\)"),
        (_floats, r"uint8 pixels .*, got float64 of shape \(3, 3072\)"),
        (_too_few_labels, r"of shape \(2, 3072\), got uint8 of shape \(3, 3072\)"),
        (_label_ten, r"\[0, 10\), got 10 in row 2"),
    ],
)
def test_cifar10_damaged_file_is_named(cifar_root: Path, damage: Any, match: str):
    path = cifar_root / cifar10.FOLDER / "test_batch"
    damage(path)
    with pytest.raises(DataError, match=match) as caught:
        cifar10.load(cifar10.Config(root=str(cifar_root)), "test")
    assert cifar10.FOLDER in str(caught.value)


def test_cifar10_every_truncation_is_a_data_error(cifar_root: Path):
    path = cifar_root / cifar10.FOLDER / "test_batch"
    content = path.read_bytes()
    for length in [*range(0, 400, 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="test_batch"):
            cifar10.load(cifar10.Config(root=str(cifar_root)), "test")


def test_cifar10_knows_how_python_2_wrote_text(tmp_path: Path):
    # Protocol 2 pickles of NumPy arrays spell bytes as _codecs.encode(text, 'latin1').
    content = pickle.dumps(np.arange(3, dtype=np.uint8), protocol=2)
    assert b"_codecs\nencode" in content
    assert codecs.encode("\xff", "latin1") == b"\xff"
    path = tmp_path / "array"
    path.write_bytes(content)
    read = official_files.unpickled(path)
    assert read.tolist() == [0, 1, 2]


# --- parquet ------------------------------------------------------------------------------------


def png(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(path: Path, images: Any, labels: Any, names: list[str] | None = None) -> str:
    columns = {"image": images, "label": labels}
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path)
    return str(path)


def encoded(pixels: np.ndarray) -> list[dict[str, Any]]:
    return [{"bytes": png(image), "path": None} for image in pixels]


def test_parquet_reads_the_hugging_face_layout(tmp_path: Path):
    colours = pictures(6, 32, 33, 3)
    train = write(
        tmp_path / "a.parquet", encoded(colours), [0, 1, 2, 0, 1, 2], ["x", "y", "z", "w"]
    )
    test = write(tmp_path / "b.parquet", encoded(colours[::-1][:3]), [2, 1, 0])
    config = parquet.Config(train=train, test=test)
    images = parquet.load(config, "train")
    assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), colours)
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (images.num_classes, images.classes) == (4, ("x", "y", "z", "w"))
    assert (images.crop_padding, images.flip) == (4, True)
    in_unit = colours.reshape(-1, 3) / 255
    assert images.mean == pytest.approx(in_unit.mean(0), abs=1e-12)
    assert images.std == pytest.approx(in_unit.std(0), abs=1e-12)
    of_test = parquet.load(config, "test")
    assert np.array_equal(of_test.images.permute(0, 2, 3, 1).numpy(), colours[::-1][:3])
    assert (of_test.mean, of_test.num_classes) == (images.mean, 4)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("struct", (1, 8, 9)),
        ("binary", (1, 8, 9)),
        ("large_binary", (1, 8, 9)),
        ("lists_hw", (1, 8, 9)),
        ("lists_hwc", (3, 8, 9)),
        ("lists_chw", (3, 8, 9)),
        ("fixed_lists_chw", (3, 8, 9)),
        ("jpeg", (3, 8, 9)),
    ],
)
def test_parquet_reads_every_documented_form(tmp_path: Path, form: str, shape: tuple[int, ...]):
    pixels = pictures(5, *shape)
    chw = pixels if shape[0] == 3 else pixels[:, 0]
    hwc = pixels.transpose(0, 2, 3, 1) if shape[0] == 3 else pixels[:, 0]
    column: Any
    if form == "struct":
        column = encoded(hwc)
    elif form in ("binary", "large_binary"):
        column = pa.array([png(image) for image in hwc], getattr(pa, form)())
    elif form == "jpeg":
        column = [{"bytes": png(image, "JPEG"), "path": "a.jpg"} for image in hwc]
        opened = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in column]
        pixels = np.stack(opened).transpose(0, 3, 1, 2)
    elif form == "fixed_lists_chw":
        flat: Any = pa.array(chw.ravel())
        for size in (9, 8, 3):
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
        column = flat
    else:
        column = pa.array((hwc if form == "lists_hwc" else chw).tolist())
    train = write(tmp_path / "a.parquet", column, [0, 1, 0, 1, 0])
    images = parquet.load(parquet.Config(train=train), "train")
    assert np.array_equal(images.images.numpy(), pixels)
    assert images.num_classes == 2
    assert (images.crop_padding, images.flip) == (0, False)


def test_parquet_raw_lists_keep_their_rows_past_a_batch_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parquet, "_ROWS_AT_A_TIME", 4)
    pixels = pictures(11, 5, 6)
    train = write(tmp_path / "a.parquet", pa.array(pixels.tolist()), list(range(11)))
    images = parquet.load(parquet.Config(train=train), "train")
    assert np.array_equal(images.images[:, 0].numpy(), pixels)
    assert images.labels.tolist() == list(range(11))


def test_parquet_mixed_grey_and_colour_become_colour(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(parquet, "_ROWS_AT_A_TIME", 2)
    grey, colour = pictures(3, 8, 8), pictures(2, 8, 8, 3, seed=1)
    rows = [png(grey[0]), png(grey[1]), png(grey[2]), png(colour[0]), png(colour[1])]
    train = write(tmp_path / "a.parquet", rows, [0, 1, 0, 1, 0])
    images = parquet.load(parquet.Config(train=train), "train").images.numpy()
    for index in range(3):
        assert np.array_equal(images[index], np.stack([grey[index]] * 3))
    assert np.array_equal(images[3:], colour.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("limit", [1, 4, 5, 8, 100])
def test_parquet_limit_takes_the_first_rows(tmp_path: Path, monkeypatch: Any, limit: int):
    monkeypatch.setattr(parquet, "_ROWS_AT_A_TIME", 4)
    pixels = pictures(10, 8, 8)
    train = write(tmp_path / "a.parquet", [png(image) for image in pixels], list(range(10)))
    images = parquet.load(parquet.Config(train=train, limit=limit), "train")
    assert np.array_equal(images.images[:, 0].numpy(), pixels[:limit])


def test_parquet_columns_can_be_named(tmp_path: Path):
    pixels = pictures(2, 8, 8)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": [png(p) for p in pixels], "fine": [1, 0], "x": [5, 6]}), path)
    config = parquet.Config(train=str(path), image_column="img", label_column="fine")
    assert parquet.load(config, "train").labels.tolist() == [1, 0]


def test_parquet_digest_is_of_content_and_choice_not_of_place(tmp_path: Path):
    rows = [png(image) for image in pictures(4, 8, 8)]
    here = write(tmp_path / "a.parquet", rows, [0, 1, 0, 1])
    there = write(tmp_path / "b.parquet", rows, [0, 1, 0, 1])
    other = write(tmp_path / "c.parquet", rows, [0, 1, 1, 1])
    digests = [
        parquet.digest(config)
        for config in (
            parquet.Config(train=here),
            parquet.Config(train=other),
            parquet.Config(train=here, test=other),
            parquet.Config(train=here, limit=2),
            parquet.Config(train=here, label_column="image", image_column="label"),
        )
    ]
    assert parquet.digest(parquet.Config(train=there)) == digests[0]
    assert len(set(digests)) == len(digests)


def test_parquet_replaced_file_is_read_again(tmp_path: Path):
    rows = [png(image) for image in pictures(4, 8, 8)]
    path = tmp_path / "a.parquet"
    config = parquet.Config(train=write(path, rows, [0, 1, 0, 1]))
    first = parquet.load(config, "train")
    assert parquet.load(config, "train") is first
    digest = parquet.digest(config)
    write(path, rows, [1, 1, 0, 0])
    os.utime(path, ns=(1, 1))
    assert parquet.load(config, "train").labels.tolist() == [1, 1, 0, 0]
    assert parquet.digest(config) != digest


def _struct_without_bytes(path: Path) -> str:
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return write(path, pa.array(rows, kind), [0, 1])


def _not_parquet(path: Path) -> str:
    path.write_bytes(b"PAR1 this is not a table PAR1")
    return str(path)


def _cut_short(path: Path) -> str:
    write(path, encoded(pictures(4, 8, 8)), [0, 1, 0, 1])
    path.write_bytes(path.read_bytes()[:-200])
    return str(path)


def _overwritten_pages(path: Path) -> str:
    write(path, encoded(pictures(200, 8, 8)), [0, 1] * 100)
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)
    path.write_bytes(bytes(content))
    return str(path)


def _empty(path: Path) -> str:
    return write(path, pa.array([], pa.binary()), pa.array([], pa.int64()))


def _mixed_sizes(path: Path) -> str:
    rows = [png(pictures(1, 8, 8)[0]), png(pictures(1, 9, 8)[0])]
    return write(path, rows, [0, 1])


def _broken_image(path: Path) -> str:
    good = png(pictures(1, 8, 8)[0])
    return write(path, [good, good, good[:-30]], [0, 1, 0])


def _no_image(path: Path) -> str:
    return write(path, [png(pictures(1, 8, 8)[0]), b"hello"], [0, 1])


def _deep_image(path: Path) -> str:
    deep = png(np.full((8, 8), 40000, np.uint16))
    return write(path, [deep, deep], [0, 1])


def _text_labels(path: Path) -> str:
    return write(path, encoded(pictures(2, 8, 8)), ["cat", "dog"])


def _null_label(path: Path) -> str:
    return write(path, encoded(pictures(3, 8, 8)), [0, None, 1])


def _negative_label(path: Path) -> str:
    return write(path, encoded(pictures(3, 8, 8)), [0, 1, -1])


def _label_past_names(path: Path) -> str:
    return write(path, encoded(pictures(3, 8, 8)), [0, 1, 2], ["a", "b"])


def _text_images(path: Path) -> str:
    return write(path, ["a.png", "b.png"], [0, 1])


def _ragged_lists(path: Path) -> str:
    return write(path, pa.array([[[1, 2], [3, 4]], [[1, 2]]]), [0, 1])


def _flat_lists(path: Path) -> str:
    return write(path, pa.array([[1, 2], [3, 4]]), [0, 1])


def _large_values(path: Path) -> str:
    return write(path, pa.array([[[1, 256], [3, 4]]]), [0])


def _seven_channels(path: Path) -> str:
    return write(path, pa.array(np.zeros((2, 8, 8, 7), np.uint8).tolist()), [0, 1])


def _one_colour(path: Path) -> str:
    return write(path, encoded(np.zeros((2, 8, 8), np.uint8)), [0, 1])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_not_parquet, "no readable Parquet file"),
        (_cut_short, "no readable Parquet file"),
        (_overwritten_pages, "no readable"),
        (_empty, "has no rows"),
        (_mixed_sizes, "one size, got 8x8, 9x8. Resize"),
        (_broken_image, "row 2 is no readable PNG or JPEG"),
        (_no_image, "row 1 is no readable PNG or JPEG"),
        (_deep_image, "mode I;16 are not read; convert"),
        (_struct_without_bytes, "row 0 holds no bytes"),
        (_text_labels, "must hold integers 0, 1, ..., got string"),
        (_null_label, "row 1 has none"),
        (_negative_label, "got -1 in row 2"),
        (_label_past_names, r"\[0, 2\), got 2 in row 2"),
        (_text_images, "got string"),
        (_ragged_lists, "one size"),
        (_flat_lists, r"of shape \(2,\)"),
        (_large_values, r"0\.\.255"),
        (_seven_channels, r"1 or 3 channels, got \(8, 8, 7\)"),
        (_one_colour, "std must be > 0"),
    ],
)
def test_parquet_unfit_file_is_explained(tmp_path: Path, make: Any, match: str):
    with pytest.raises(DataError, match=match):
        parquet.load(parquet.Config(train=make(tmp_path / "bad.parquet")), "train")


def test_parquet_missing_files_and_columns_are_explained(tmp_path: Path):
    gone = str(tmp_path / "gone.parquet")
    with pytest.raises(DataError, match=r"dataset.train: the file .*gone.parquet does not exist"):
        parquet.load(parquet.Config(train=gone), "train")
    with pytest.raises(DataError, match="got the folder"):
        parquet.load(parquet.Config(train=str(tmp_path)), "train")
    train = write(tmp_path / "a.parquet", encoded(pictures(2, 8, 8)), [0, 1])
    with pytest.raises(DataError, match=r"dataset.test must name a Parquet file"):
        parquet.load(parquet.Config(train=train), "test")
    with pytest.raises(DataError, match=r"dataset.test: the file"):
        parquet.digest(parquet.Config(train=train, test=gone))
    with pytest.raises(DataError, match=r"no column 'lable' \(dataset.label_column\).*'label'\?"):
        parquet.load(parquet.Config(train=train, label_column="lable"), "train")


def test_parquet_test_split_must_fit_the_training_split(tmp_path: Path):
    train = write(tmp_path / "a.parquet", encoded(pictures(2, 8, 8)), [0, 1])
    larger = write(tmp_path / "b.parquet", encoded(pictures(2, 9, 9)), [0, 1])
    with pytest.raises(DataError, match=r"\(1, 8, 8\) of the training file, got \(1, 9, 9\)"):
        parquet.load(parquet.Config(train=train, test=larger), "test")
    unknown = write(tmp_path / "c.parquet", encoded(pictures(2, 8, 8)), [0, 2])
    with pytest.raises(DataError, match=r"\[0, 2\), got 2 in row 1"):
        parquet.load(parquet.Config(train=train, test=unknown), "test")


def test_parquet_settings_are_checked():
    with pytest.raises(ValueError, match="limit must be >= 1, got 0"):
        parquet.Config(train="a", limit=0)
    with pytest.raises(ValueError, match="must differ from image_column, got 'x'"):
        parquet.Config(train="a", image_column="x", label_column="x")


def test_parquet_reads_a_real_dataset(shared_data: Path):
    folder = shared_data / "cifar10-small"
    config = parquet.Config(train=str(folder / "train.parquet"), test=str(folder / "test.parquet"))
    train, test = parquet.load(config, "train"), parquet.load(config, "test")
    assert train.images.shape == (5000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [500] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert train.classes == cifar10.CLASSES
    # Known statistics of all 50,000 images; those of a tenth differ by a few thousandths.
    assert train.mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=5e-3)
    assert train.std == pytest.approx((0.2452, 0.2428, 0.2606), abs=5e-3)
