"""A retrained network as a file for others: torch weights, an exported program, or ONNX.

retrained = open_retrained("studies/quickstart/checkpoints/0123456789abcdef/final.pt")
print(export(retrained, "cell.pt2", "pt2").difference)
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from spaces.core import plugins
from spaces.core.errors import NasError, SpaceError
from spaces.core.genotype import Genotype
from spaces.core.operations import Noise
from trainables.errors import StateError
from trainables.state import DTYPES, load_state

if TYPE_CHECKING:
    from trainables.streams import Images

Format = Literal["torch", "pt2", "onnx"]
SUFFIXES: Mapping[Format, str] = {"torch": ".pt", "pt2": ".pt2", "onnx": ".onnx"}
ABOUT_FORMAT = 1
TOLERANCES: Mapping[Format, float] = {"torch": 0.0, "pt2": 1e-4, "onnx": 1e-4}
"""Largest difference of logits from the network's, as a share of the largest logit (at least 1)."""

_NEEDED_BY_ONNX = ("onnx", "onnxscript", "onnxruntime")
_TRACED_BATCH = 4  # torch.export takes sizes 0 and 1 for constants
_CHECKED_BATCHES = (1, 5)


class ExportError(NasError):
    """A network that cannot be exported, or whose export computes something else."""


class Classifier(nn.Module):
    """A network without what only its training needs: images in, logits of the main head out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.draws = any(isinstance(part, Noise) for part in network.modules())

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images `(B, C, H, W)` to logits `(B, num_classes)`."""
        noise = torch.Generator().manual_seed(0) if self.draws else None
        logits: Tensor = self.network(images, generator=noise)[0]
        return logits


@dataclass(frozen=True)
class Retrained:
    """A retrained network as its accuracies are of it.

    Attributes:
        classifier: The network, on the CPU, in evaluation mode, without auxiliary head.
        about: What a user of it has to know, as plain JSON: `space`, `genotype`, `genotype_hash`,
            `network` (the arguments of `Space.build_network`), `input` (shape of an image, dtype,
            and the `mean` and `std` of each channel of pixels in [0, 1]), `classes`, `dataset`,
            `averaged` (whether weights are averages over the steps), `seed` and `torch`.
    """

    classifier: Classifier
    about: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of weights and images."""
        dtype: torch.dtype = getattr(torch, self.about["input"]["dtype"])
        return dtype

    def examples(self, batch: int) -> Tensor:
        """Return the same noise at every call, `(batch, C, H, W)`: it is not an image of anybody's.

        Args:
            batch: B, number of images.
        """
        shape = (batch, *self.about["input"]["shape"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=self.dtype)


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: The file.
        size: Its bytes.
        difference: Largest difference of a logit from the network's own, on fixed noise.
        tolerance: What it may be at most.
    """

    path: Path
    size: int
    difference: float
    tolerance: float


def data_of(images: Images) -> dict[str, Any]:
    """Return what a network's user has to know of the images it was trained on, as plain JSON."""
    return {
        "shape": [images.in_channels, images.image_size, images.image_size],
        "num_classes": images.num_classes,
        "mean": list(images.mean),
        "std": list(images.std),
        "classes": list(images.classes),
    }


def open_retrained(
    path: str | os.PathLike[str], *, dataset: Mapping[str, Any] | None = None
) -> Retrained:
    """Return the network of a retraining's `final.pt`.

    Args:
        path: The file.
        dataset: Where the data lies now; it is read only for a file from before such files said
            themselves what their images were like.

    Raises:
        StateError: The file is missing, damaged or of a search.
        NasError: Its plug-ins, or the data where it is needed, are not here.
    """
    state = load_state(path)
    try:
        settings = json.loads(state["settings"])
        retrain, where = settings["retrain"], settings["spaces"]
        genotype = Genotype.from_json(json.loads(state["genotype"]))
        tensors: dict[str, Tensor] = {**state["weights"], **state["buffers"]}
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path} is not the final state of a retraining ({error!r}).") from error
    data = json.loads(state["data"]) if "data" in state else _read_data(settings, dataset)
    sizes = {
        "in_channels": data["shape"][0],
        "num_classes": data["num_classes"],
        "channels": retrain["channels"],
        "cells": retrain["cells"],
        "image_size": max(data["shape"][1:]),
        "stem": retrain.get("stem", "cifar"),
    }
    name, config = plugins.make_config("spaces", where)
    network = plugins.load("spaces", name).build(config, name).build_network(genotype, **sizes)
    network.to(DTYPES[retrain["precision"]])
    _load(network, tensors, path)
    dtype = str(DTYPES[retrain["precision"]]).removeprefix("torch.")
    about = {
        "format": ABOUT_FORMAT,
        "space": where,
        "genotype": genotype.to_json(),
        "genotype_hash": genotype.hash,
        "network": sizes,
        "input": {"dtype": dtype, **{key: data[key] for key in ("shape", "mean", "std")}},
        "classes": data["classes"],
        "dataset": settings["datasets"]["name"],
        "averaged": retrain.get("ema_decay", 0.0) > 0,
        "seed": settings["seed"],
        "torch": str(torch.__version__),
    }
    return Retrained(Classifier(network).eval(), about)


def _read_data(settings: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    name, config = plugins.make_config("datasets", dataset or settings["datasets"])
    return data_of(plugins.load("datasets", name).load(config, "train"))


def _load(network: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Give a network its weights; what only the auxiliary head has is left out."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise StateError(f"{path} lacks {missing[0]}: it is of another version of the space.")
    try:
        network.load_state_dict({name: tensors[name] for name in wanted})
    except RuntimeError as error:  # a shape
        raise StateError(f"{path} does not fit its network: {error}") from error


def export(
    retrained: Retrained,
    path: str | os.PathLike[str],
    to: Format,
    more: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a network in one of the formats, read it back and compare its logits.

    The file appears once it has passed; a file that was there before stays until then.

    Args:
        retrained: The network.
        path: File to write; its folder is created.
        to: "torch": weights and `about`, for `torch.load` with `weights_only`. "pt2": a program
            of `torch.export`. "onnx": an ONNX graph, always in float32. All take any batch size.
        more: Entries for `about`, such as where the network comes from.

    Raises:
        ExportError: The network has no such form, a package is missing, or the logits differ.
    """
    if to not in get_args(Format):
        raise ExportError(f"format must be one of {', '.join(get_args(Format))}, got {to!r}.")
    _check_packages(to)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    about = {**retrained.about, **(more or {})}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        written = Path(folder) / f"network{SUFFIXES[to]}"
        run = _WRITERS[to](retrained, about, written)
        difference, tolerance = check_same(retrained, run, to, target)
        size = written.stat().st_size
        written.replace(target)
    return Exported(target, size, difference, tolerance)


def check_same(
    retrained: Retrained, run: Callable[[Tensor], Tensor], to: Format, path: Path
) -> tuple[float, float]:
    """Return by how much an exported network's logits differ, and by how much they may.

    Raises:
        ExportError: They differ by more.
    """
    difference, largest = compare(retrained, run)
    tolerance = TOLERANCES[to] * max(1.0, largest)
    if not difference <= tolerance:  # also where it is no number
        raise ExportError(
            f"the exported network must give the logits of the original within {tolerance:.2g}, "
            f"and differs by {difference:.2g}: {path} was not written."
        )
    return difference, tolerance


@torch.no_grad()
def compare(retrained: Retrained, run: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return the largest difference of logits, and the largest logit, over several batch sizes.

    Args:
        retrained: The network.
        run: The other one: images `(B, C, H, W)` to logits `(B, num_classes)`.
    """
    difference = largest = 0.0
    for batch in _CHECKED_BATCHES:
        images = retrained.examples(batch)
        own = retrained.classifier(images)
        gap = float((run(images).to(own.dtype) - own).abs().max())
        difference = gap if gap != gap else max(difference, gap)
        largest = max(largest, float(own.abs().max()))
    return difference, largest


def _check_packages(to: Format) -> None:
    missing = [name for name in _NEEDED_BY_ONNX if importlib.util.find_spec(name) is None]
    if to == "onnx" and missing:
        raise ExportError(
            f"format onnx needs {', '.join(missing)}: pip install 'nas-orchestrator[onnx]'."
        )


def portable(retrained: Retrained) -> Classifier:
    """Return a copy of the classifier that torch.export can take.

    Raises:
        ExportError: It cannot: the network draws random numbers.
    """
    if retrained.classifier.draws:
        raise ExportError(
            "the genotype has the operation 'noise', which draws anew in every pass: a program or "
            "graph cannot hold it. Use format torch."
        )
    # Channels-last weights are no whole blocks of memory to torch.export.save, which then warns.
    return copy.deepcopy(retrained.classifier).to(memory_format=torch.contiguous_format)


def program(retrained: Retrained) -> torch.export.ExportedProgram:
    """Return the network as a program that takes any number of images.

    Raises:
        ExportError: torch.export cannot follow it.
    """
    classifier, images = portable(retrained), retrained.examples(_TRACED_BATCH)
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            return torch.export.export(classifier, (images,), dynamic_shapes={"images": {0: batch}})
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"torch.export cannot follow this network: {error}") from error


def _write_torch(retrained: Retrained, about: Mapping[str, Any], path: Path) -> Callable[..., Any]:
    weights = retrained.classifier.network.state_dict()
    torch.save({"state_dict": dict(weights), "about": json.dumps(about)}, path)
    return Classifier(rebuild(path)[0])


def rebuild(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a file of format "torch", in evaluation mode, and its `about`.

    Raises:
        StateError: The file is missing, damaged or none of that format.
    """
    stored = load_state(path)
    try:
        about = json.loads(stored["about"])
        name, config = plugins.make_config("spaces", about["space"])
        space = plugins.load("spaces", name).build(config, name)
        network = space.build_network(Genotype.from_json(about["genotype"]), **about["network"])
        network.to(getattr(torch, about["input"]["dtype"]))
        network.load_state_dict(stored["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError, SpaceError) as error:
        raise StateError(f"{path} is no network of `nas export` ({error!r}).") from error
    return network.eval(), about


def _write_pt2(retrained: Retrained, about: Mapping[str, Any], path: Path) -> Callable[..., Any]:
    torch.export.save(program(retrained), path, extra_files={"about.json": json.dumps(about)})
    return torch.export.load(path).module()


def _write_onnx(retrained: Retrained, about: Mapping[str, Any], path: Path) -> Callable[..., Any]:
    import onnxruntime

    # The kernels of ONNX Runtime are for float32.
    about = {**about, "input": {**about["input"], "dtype": "float32"}}
    single = Retrained(copy.deepcopy(retrained.classifier).float(), about)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages, about each other
        graph = torch.onnx.export(
            program(single),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    if graph is None:
        raise ExportError("torch.onnx gave no graph for this network.")
    graph.model.metadata_props["about"] = json.dumps(about)
    graph.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.float().numpy()})
        return torch.from_numpy(logits)

    return run


_WRITERS: Mapping[Format, Callable[[Retrained, Mapping[str, Any], Path], Callable[..., Any]]] = {
    "torch": _write_torch,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}
