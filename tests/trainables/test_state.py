"""Generators by purpose, stored states, device and fingerprint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces.core.genotype import Genotype
from trainables import state as state_module
from trainables.errors import StateError
from trainables.state import (
    Fingerprint,
    check_identity,
    cloned,
    identity_of,
    load_state,
    make_generator,
    purpose_seed,
    resolve_device,
    save_state,
    taking,
)


def test_a_purpose_seed_is_the_hash_of_both() -> None:
    # Half of the first 8 bytes of SHA-256 of "3/init": below 2**63.
    digest = hashlib.sha256(b"3/init").hexdigest()[:16]
    assert purpose_seed(3, "init") == int(digest, 16) // 2
    seeds = {purpose_seed(seed, purpose) for seed in range(50) for purpose in ("a", "b", "1/a")}
    assert len(seeds) == 150
    assert max(seeds) < 2**63


def test_a_generator_depends_on_seed_and_purpose_alone() -> None:
    def draws(seed: int, purpose: str) -> list[float]:
        return torch.rand(4, generator=make_generator(seed, purpose)).tolist()

    assert draws(0, "split") == draws(0, "split")
    assert draws(0, "split") != draws(1, "split")
    assert draws(0, "split") != draws(0, "init")


STATE: dict[str, Any] = {
    "tensor": torch.arange(6.0).reshape(2, 3),
    "nested": {"list": [1, 2.5, None, True, "text"], "bytes": torch.tensor([1], dtype=torch.uint8)},
}


def test_a_state_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "state.pt"
    save_state(STATE, path)
    found = load_state(path)
    assert torch.equal(found["tensor"], STATE["tensor"])
    assert found["nested"]["list"] == STATE["nested"]["list"]
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_a_failing_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    save_state({"epoch": 1}, path)

    def fail(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(state_module.torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_state({"epoch": 2}, path)
    assert load_state(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


class Hostile:
    """Executes code when it is unpickled: makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def test_unreadable_states_are_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"gone\.pt: there is no such stored state"):
        load_state(tmp_path / "gone.pt")
    whole = tmp_path / "whole.pt"
    save_state(STATE, whole)
    damaged = {
        "empty.pt": b"",
        "half.pt": whole.read_bytes()[: whole.stat().st_size // 2],
        "text.pt": b"hello",
        "zip.pt": b"PK\x03\x04 but no more",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StateError, match=name):
            load_state(tmp_path / name)
    torch.save({"epoch": Hostile(tmp_path / "made")}, tmp_path / "hostile.pt")
    with pytest.raises(StateError, match=r"hostile\.pt"):
        load_state(tmp_path / "hostile.pt")
    assert not (tmp_path / "made").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(StateError, match=r"list\.pt must hold a mapping, got list"):
        load_state(tmp_path / "list.pt")
    with pytest.raises(StateError, match="is no readable"):
        load_state(tmp_path)


def test_clones_share_no_memory() -> None:
    original = {"a": [torch.zeros(2), (torch.zeros(2, requires_grad=True),)], "b": 3}
    copy = cloned(original)
    original["a"][0].fill_(1)  # type: ignore[index]
    assert copy["a"][0].tolist() == [0, 0]
    assert not copy["a"][1][0].requires_grad
    assert isinstance(copy["a"][1], tuple)
    assert copy["b"] == 3


def test_devices_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    assert resolve_device("cpu") == resolve_device(torch.device("cpu"))
    with pytest.raises(StateError, match="got cuda:1: CUDA is missing"):
        resolve_device("cuda:1")
    with pytest.raises(StateError, match="got 'gpu'"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"


def test_the_fingerprint_names_what_the_last_bits_depend_on() -> None:
    found = Fingerprint.of(torch.device("cpu"), "float64")
    assert (found.precision, found.engine) == ("float64", "eager-cpu")
    assert found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert torch.backends.cpu.get_cpu_capability() in found.machine


def test_an_identity_leaves_out_threads_and_precision_and_names_a_difference() -> None:
    settings = {"epochs": 3, "threads": 2, "precision": "float64"}
    assert identity_of(settings) == {"epochs": 3}
    check_identity('{"seed": 1, "search": {"epochs": 3}}', {"seed": 1, "search": {"epochs": 3}})
    with pytest.raises(StateError, match="its seed is 1, here it is 2"):
        check_identity('{"seed": 1}', {"seed": 2})


def test_a_flipped_number_of_a_tensor_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    content = torch.arange(64.0)
    save_state({"weights": content}, path)
    data = bytearray(path.read_bytes())
    data[data.find(content.numpy().tobytes()) + 9] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch takes it for whole
    with pytest.raises(StateError, match="checksum"):
        load_state(path)


def test_a_state_of_other_shapes_is_named_and_full_memory_is_not_its_fault() -> None:
    said = r"a.pt holds no state of this trial \(KeyError\('x'\)\)"
    with pytest.raises(StateError, match=said), taking("a.pt"):
        raise KeyError("x")
    with pytest.raises(StateError, match=r"a.pt holds no state.*got list"), taking("a.pt"):
        Genotype.from_json([])
    with pytest.raises(torch.OutOfMemoryError), taking("a.pt"):
        raise torch.OutOfMemoryError("CUDA out of memory.")
