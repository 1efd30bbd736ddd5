"""Exports compute what the network computes, and carry what a user of them has to know."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from spaces.core.genotype import Genotype
from tests.trainables.test_retrain import genotype, small_digits
from trainables import exporting
from trainables.datasets import digits
from trainables.errors import StateError
from trainables.exporting import ExportError, Retrained, compare, export, open_retrained, rebuild
from trainables.images import ImageSet
from trainables.retrain import RetrainTrial
from trainables.state import save_state

DATA = digits.Config()
SIZES = {"nasbench201": {"channels": 2, "cells": 1}, "darts": {"channels": 2, "cells": 3}}


@pytest.fixture(autouse=True)
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original = digits.load

    def load(config: Any, split: str) -> ImageSet:
        return small_digits(original(config, split), 150)

    monkeypatch.setattr(digits, "load", load)
    return


def trained(folder: Path, space: str = "nasbench201", **changes: Any) -> RetrainTrial:
    """Train a small network for an epoch, and leave its final.pt in the folder."""
    given: Any = changes.pop("genotype", None) or genotype(space)
    size = SIZES.get(space, SIZES["darts"])
    retrain = {"epochs": 1, "batch_size": 48, "cutout": 2, **size, **changes}
    trial = RetrainTrial(genotype=given, space=space, dataset="digits", retrain=retrain)
    trial.run()
    save_state(trial.final_state(), folder / "final.pt")
    return trial


def images(split: str = "test") -> ImageSet:
    return digits.load(DATA, split)


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_the_network_is_that_of_the_accuracies(space: str, tmp_path: Path) -> None:
    # Averaged weights and, in darts, an auxiliary head that is left out.
    trial = trained(tmp_path, space, ema_decay=0.5)
    retrained = open_retrained(tmp_path / "final.pt")
    test = images()
    with torch.no_grad():
        logits = retrained.classifier(test.normalised(test.images, torch.float32))
    loss = float(functional.cross_entropy(logits, test.labels))
    assert loss == pytest.approx(trial.curve[-1]["test_loss"], rel=1e-5)
    assert not any("auxiliary" in name for name in retrained.classifier.state_dict())
    assert retrained.about["averaged"] is True


def test_what_a_user_needs_is_said(tmp_path: Path) -> None:
    trial = trained(tmp_path)
    about = open_retrained(tmp_path / "final.pt").about
    train = images("train")
    assert about["input"] == {
        "dtype": "float32",
        "shape": [1, 8, 8],
        "mean": list(train.mean),
        "std": list(train.std),
    }
    assert about["classes"] == list(train.classes)
    assert Genotype.from_json(about["genotype"]).hash == trial.genotype.hash
    json.dumps(about, allow_nan=False)


def test_a_final_state_from_before_it_said_its_data_reads_the_data(tmp_path: Path) -> None:
    trained(tmp_path)
    whole = open_retrained(tmp_path / "final.pt")
    state = torch.load(tmp_path / "final.pt", weights_only=True)
    del state["data"]
    save_state(state, tmp_path / "final.pt")
    assert open_retrained(tmp_path / "final.pt", dataset={"name": "digits"}).about == whole.about


@pytest.mark.parametrize("to", ["torch", "pt2", "onnx"])
def test_an_export_has_the_logits_of_the_network_for_any_batch(
    to: exporting.Format, tmp_path: Path
) -> None:
    if to == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("left out: onnxruntime is missing (the extra onnx)")
    trained(tmp_path)
    retrained = open_retrained(tmp_path / "final.pt")
    done = export(retrained, tmp_path / "out" / "file", to, {"study": "tiny"})
    assert done.difference <= done.tolerance
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    run, about = READERS[to](done.path)
    assert about == {**retrained.about, "study": "tiny"}
    for batch in (1, 3, 7):
        noise = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            torch.testing.assert_close(run(noise), retrained.classifier(noise), atol=1e-5, rtol=0)


def _read_torch(path: Path) -> Any:
    network, about = rebuild(path)
    return lambda noise: network(noise)[0], about


def _read_pt2(path: Path) -> Any:
    extra = {"about.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra["about.json"])


def _read_onnx(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["about"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), about


READERS = {"torch": _read_torch, "pt2": _read_pt2, "onnx": _read_onnx}


def test_double_precision_stays_in_a_file_of_weights(tmp_path: Path) -> None:
    trained(tmp_path, precision="float64")
    retrained = open_retrained(tmp_path / "final.pt")
    export(retrained, tmp_path / "x.pt", "torch")
    assert {t.dtype for t in rebuild(tmp_path / "x.pt")[0].state_dict().values()} == {torch.float64}


def test_an_export_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path)
    retrained = open_retrained(tmp_path / "final.pt")
    (tmp_path / "x.pt").write_text("before")

    def wrong(retrained: Retrained, about: Any, path: Path) -> Any:
        path.write_text("wrong")
        return lambda noise: retrained.classifier(noise) + 0.01

    monkeypatch.setattr(exporting, "_WRITERS", {"torch": wrong})
    with pytest.raises(ExportError, match=r"differs by 0\.01.*was not written"):
        export(retrained, tmp_path / "x.pt", "torch")
    assert (tmp_path / "x.pt").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final.pt", "x.pt"]


def test_logits_that_are_no_numbers_do_not_pass(tmp_path: Path) -> None:
    trained(tmp_path)
    difference, _ = compare(
        open_retrained(tmp_path / "final.pt"), lambda noise: torch.full((len(noise), 10), torch.nan)
    )
    assert difference != difference


def test_noise_can_be_kept_as_weights_alone(tmp_path: Path) -> None:
    text = json.dumps(genotype("darts").to_json()).replace('"darts"', '"s4"')
    text = re.sub(r"\w+_pool_3x3", "noise", text)
    noisy = json.loads(re.sub(r"\w+_conv_3x3|skip_connect", "sep_conv_3x3", text))
    trained(tmp_path, "s4", genotype=Genotype.from_json(noisy))
    retrained = open_retrained(tmp_path / "final.pt")
    assert export(retrained, tmp_path / "x.pt", "torch").difference == 0
    with pytest.raises(ExportError, match=r"operation 'noise'.*Use format torch"):
        export(retrained, tmp_path / "x.pt2", "pt2")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path)
    retrained = open_retrained(tmp_path / "final.pt")
    monkeypatch.setattr(exporting, "_NEEDED_BY_ONNX", ("torch", "no_such_package"))
    with pytest.raises(ExportError, match=r"needs no_such_package: pip install .*\[onnx\]"):
        export(retrained, tmp_path / "x.onnx", "onnx")


def test_what_is_no_retraining_is_refused(tmp_path: Path) -> None:
    save_state({"weights": {}, "alphas": {}}, tmp_path / "search.pt")
    with pytest.raises(StateError, match="not the final state of a retraining"):
        open_retrained(tmp_path / "search.pt")
    with pytest.raises(StateError, match="no network of `nas export`"):
        rebuild(tmp_path / "search.pt")
    trained(tmp_path)
    state = torch.load(tmp_path / "final.pt", weights_only=True)
    state["weights"] = dict(list(state["weights"].items())[1:])
    save_state(state, tmp_path / "final.pt")
    with pytest.raises(StateError, match=r"lacks \S+: it is of another version"):
        open_retrained(tmp_path / "final.pt")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    retrained = replace(open_retrained(tmp_path / "final.pt"))
    with pytest.raises(ExportError, match="torch, pt2, onnx, got 'jit'"):
        export(retrained, tmp_path / "x", "jit")  # type: ignore[arg-type]
