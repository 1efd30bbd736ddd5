"""What an experiment asks for against what there is: CPU cores, GPUs, images."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import factors
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment, sweep_word
from orchestrator.oracle import StudyOracle
from orchestrator.sweep_words import candidates
from spaces.core import plugins
from spaces.core.errors import OracleError, PluginSettingsError, SpaceError
from trainables.compiled import check_compiler
from trainables.errors import StateError

if TYPE_CHECKING:
    from spaces.core.genotype import Genotype

_COMBINATIONS = 1000  # more extremes of a method's settings add only time
_GENOTYPES = 5  # random ones whose network is tried


def visible_gpus() -> int | None:
    """Return the number of NVIDIA GPUs that a process may use, without importing torch.

    Returns:
        None where it cannot be told (another maker's, or Windows' subsystem for Linux).
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = None
    if listed is not None:
        entries = [entry.strip() for entry in listed.split(",")]
        # As CUDA does: what follows an invalid entry is invisible.
        invalid = [i for i, entry in enumerate(entries) if entry in ("", "-1", "NoDevFiles")]
        entries = entries[: invalid[0]] if invalid else entries
        if not entries:
            return 0
    present = _nvidia_devices()
    if present == 0 and any(Path(device).exists() for device in ("/dev/dxg", "/dev/kfd")):
        return None
    if entries is None:
        return present
    if present and any(entry.startswith("MIG-") for entry in entries):
        return len(entries)  # several of these are slices of one GPU
    return min(len(entries), present)


def check_real(experiment: Experiment) -> None:
    """Refuse to train what an experiment file calls a simulation.

    Raises:
        ConfigError: It has a section `simulation`.
    """
    if experiment.simulation is not None:
        raise ConfigError(
            f"{experiment.name}: its section `simulation` says that nothing is trained: run it by "
            "`nas simulate`, or take the section out."
        )


def check_hardware(experiment: Experiment) -> None:
    """Refuse a trial that cannot run on this machine; a cluster is asked when it is joined.

    Raises:
        ConfigError: One Ray trial needs more CPU cores or GPUs than there are, or what is to be
            compiled cannot be.
    """
    if experiment.ray.address != "local":
        return
    asked = experiment.tune.per_trial
    problems = []
    cores = os.cpu_count() or 1
    allowed = cores if experiment.ray.cpus is None else experiment.ray.cpus
    if asked.cpus > allowed:
        source = "this machine has" if experiment.ray.cpus is None else "ray.cpus is"
        problems.append(
            f"tune.per_trial.cpus must be <= {allowed}, got {asked.cpus:g}: {source} {allowed}."
        )
    gpus = visible_gpus()
    if gpus is not None and asked.most_gpus > gpus:
        hint = " Set tune.per_trial.gpus=0 to run on the CPU." if gpus == 0 else ""
        got = asked.gpus if asked.gpus == "auto" else f"{asked.gpus:g}"
        problems.append(
            f"tune.per_trial.gpus must be <= {gpus}, got {got}: "
            f"{gpus} NVIDIA GPUs are visible on this machine.{hint}"
        )
    problems += _retraining_problems(experiment, allowed, gpus)
    if problems:
        raise ConfigError("\n".join(f"{experiment.name}: {problem}" for problem in problems))


def _retraining_problems(experiment: Experiment, cpus: int, gpus: int | None) -> list[str]:
    asked, workers = experiment.tune.per_trial, experiment.workers
    problems = []
    if workers > 1:
        for name, each, there in (("cpus", asked.cpus, cpus), ("gpus", asked.most_gpus, gpus)):
            if there is not None and each <= there < each * workers:
                problems.append(
                    f"retrain.workers must be <= {int(there / each)}, got {workers}: each "
                    f"has the {each:g} {name} of tune.per_trial, and there are {there}."
                )
    if experiment.compiles:
        try:
            check_compiler("cuda" if asked.on_gpu else "cpu")
        except StateError as error:
            problems.append(str(error))
    return problems


def check_oracle(experiment: Experiment) -> None:
    """Read the table of the experiment's oracle, so that a wrong one is known before the search.

    Raises:
        ConfigError: It is damaged, lacks a column or is not of all cells.
    """
    if experiment.oracle is None:
        return
    try:
        StudyOracle(experiment.oracle, experiment.space)
    except OracleError as error:
        raise ConfigError(f"{experiment.name}: {error}") from error


def check_data(experiment: Experiment) -> None:
    """Load the training images and refuse batches that are larger than their split.

    Raises:
        ConfigError: A batch of the search or of the retraining can never be filled.
        DataError: The dataset cannot be read.
    """
    if experiment.training is not None:
        from orchestrator import training  # it needs this module

        training.check_images(experiment)
        return
    from trainables.streams import for_search

    name, config = plugins.make_config("datasets", experiment.dataset)
    module = plugins.load("datasets", name)
    pictures = module.load(config, "train")
    images, searched = len(pictures), len(for_search(pictures, 0))
    problems = []
    share = experiment.search["train_share"]
    smallest = min(
        min(train, searched - train)
        for train in (int(searched * value) for value in candidates(share))
    )
    largest = max(candidates(experiment.search["batch_size"]))
    if largest > smallest:
        problems.append(
            f"search.batch_size must be <= {smallest}, the images of the smaller of the two splits "
            f"of {name}'s {searched}, got {largest}."
        )
    if experiment.retrain is not None:
        if "test" not in module.splits(config):
            problems.append(
                f"retrain needs a test split, and this dataset {name} is set up without."
            )
        settings = experiment.retrain.settings
        left = int(images * (1.0 - settings.val_share))
        size, key = settings.batch_size, "retrain.batch_size"
        if experiment.retrain.consistent:
            size, key = largest, "search.batch_size, which the retraining takes,"
        if size > left:
            problems.append(f"{key} must be <= {left}, the training images of {name}, got {size}.")
    if problems:
        raise ConfigError("\n".join(f"{experiment.name}: {problem}" for problem in problems))


def check_methods(experiment: Experiment) -> None:
    """Build every method and refuse one whose parts do not go together or that searches nothing.

    Where retrainings are swept their networks are built.

    Raises:
        ConfigError: It cannot work, with the reason.
    """
    if experiment.training is not None:
        from orchestrator import training  # it needs this module

        training.check_networks(experiment)
        return
    from trainables.compose import (
        build_method,
        build_selection,
        check_going_back,
        check_space,
        check_supernets,
    )

    problems: list[str] = []
    for block in factors.blocks(experiment):
        epochs = min(candidates(block.tree["search"]["epochs"]))
        both = {"method": block.tree["method"], "space": block.tree["space"]}
        tried: set[str] = set()
        for parts in itertools.islice(extremes(both), _COMBINATIONS):
            plain = parts["method"]
            try:
                name, config = plugins.make_config("methods", plain)
                method = build_method(name, config, epochs=epochs)
                rule = build_selection(experiment.selection, plain, of_method=method)
                for decay in candidates(block.tree["search"]["weight_decay"]):
                    check_going_back(method, decay)
                goes_back = method.early_stop is not None and method.early_stop.go_back is not None
                if goes_back and experiment.tune.scheduler is not None:
                    problems.append(
                        "tune.scheduler cannot compare searches that go back "
                        "(method.early_stop, then: regularize): their epochs are not those of "
                        "the others. Leave out one of them."
                    )
                consistent = experiment.retrain is not None and experiment.retrain.consistent
                if consistent and len(method.stages_of(epochs)) > 1:
                    problems.append(
                        f"retrain.consistent cannot be combined with {name}, whose supernets have "
                        "several depths: give retrain.cells and the rest."
                    )
                structure = (method.structure, method.stages_of(epochs))
                needs = f"{structure} {parts['space']}"
                space = _space(parts["space"])
                check_space(space, rule)
                if needs not in tried:
                    tried.add(needs)
                    check_supernets(space, method, epochs=epochs)
                    check_network(experiment, space)
                if wants_imagenet_stem(experiment) and not space.has_imagenet_stem:
                    problems.append(
                        f"retrain.stem cannot be imagenet in space {space.name}, whose networks "
                        "have no such stem."
                    )
                if plain.get("select") and experiment.selection != {"name": "magnitude"}:
                    problems.append("selection has no effect where method.select is given.")
            except (PluginSettingsError, SpaceError) as error:
                problems.append(str(error))
    if problems:
        lines = (f"{experiment.name}: {problem}" for problem in dict.fromkeys(problems))
        raise ConfigError("\n".join(lines))


def check_network(experiment: Experiment, space: Any, genotype: Genotype | None = None) -> None:
    """Refuse a size that a retraining's network cannot have, without its memory.

    Args:
        experiment: Its `retrain` says the size.
        space: The space.
        genotype: What is to be trained; None is whatever a search may find.

    Raises:
        SpaceError: There is no such network.
    """
    import torch

    retrain = experiment.retrain
    if retrain is None or retrain.consistent:
        return  # a search of that size has been checked
    settings = retrain.settings
    found = [genotype] if genotype is not None else []
    draws = torch.Generator().manual_seed(0)
    # What a cell with more vertices cannot have, one with fewer may.
    for _ in range(0 if found else 1 if space.has_edges else _GENOTYPES):
        shapes = space.alpha_shapes().items()
        found.append(
            space.discretize({name: torch.rand(shape, generator=draws) for name, shape in shapes})
        )
    try:
        with torch.device("meta"):
            for each in found:
                space.build_network(
                    each,
                    3,
                    10,
                    channels=settings.channels,
                    cells=settings.cells,
                    auxiliary=settings.auxiliary_weight > 0 and space.has_auxiliary,
                    stem=settings.stem if space.has_imagenet_stem else None,
                )
    except SpaceError as error:
        raise SpaceError(f"retrain: {error}") from error


def wants_imagenet_stem(experiment: Experiment) -> bool:
    """Return whether what a study has found is to be retrained with the stem of ImageNet."""
    retrain = experiment.retrain
    return retrain is not None and not retrain.consistent and retrain.settings.stem == "imagenet"


def space_of(experiment: Experiment) -> Any:
    """Return the space of an experiment that has one alone."""
    return _space(experiment.settings("space"))


def _space(settings: Mapping[str, Any]) -> Any:
    name, config = plugins.make_config("spaces", settings)
    return plugins.load("spaces", name).build(config, name)


def extremes(node: Any) -> Iterator[Any]:
    """Yield a part of an experiment with each drawn value at each of its candidates."""
    if sweep_word(node) is not None:
        for candidate in candidates(node):
            yield from extremes(candidate)
    elif isinstance(node, Mapping):
        options = [list(extremes(value)) for value in node.values()]
        for values in itertools.product(*options):
            yield dict(zip(node, values, strict=True))
    else:
        yield node


def _nvidia_devices() -> int:
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return len(list(listed.iterdir()))
    return len([p for p in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", p.name)])
