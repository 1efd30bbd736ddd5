"""Random search: uniform genotypes, a second plain search, two rounds of candidates."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from spaces.core.errors import PluginSettingsError
from spaces.core.genotype import Genotype
from spaces.core.mixture import Mixture, Norm
from spaces.core.space import Space
from tests.spaces.helpers import space_of
from tests.trainables.plain_search import note_mixtures, one_step
from tests.trainables.searches import SPACES, small_search
from tests.trainables.test_gdas import SampledSearch
from tests.trainables.test_passes import counted
from trainables.compose import build_method
from trainables.errors import MethodError
from trainables.landscape import landscape
from trainables.method import OpWeights, SearchPoint, softmax
from trainables.methods.random import Config, select, uniform_genotype
from trainables.probes import one_hot
from trainables.selecting import TrainedSupernet

pytestmark = pytest.mark.usefixtures("tiny_plugins")

SMALL: dict[str, Any] = {"name": "random", "candidates": 3, "finalists": 2}
BOTH = ("nasbench201", "darts")


def choices(genotype: Genotype) -> list[tuple[str, int, int, str]]:
    return [(c.name, e.source, e.target, e.operation) for c in genotype.cells for e in c.edges]


# Uniform genotypes.


def assert_uniform(counts: Counter[Any], number: int, kinds: int) -> None:
    """Chi-square at a fixed seed; there are some 70 of them, which at 1e-4 would rarely fail."""
    assert len(counts) == kinds
    assert chisquare(list(counts.values())).pvalue > 1e-4
    assert counts.total() == number


def by_scores(space: Space, number: int) -> list[Genotype]:
    generator = torch.Generator().manual_seed(0)
    return [uniform_genotype(space, generator) for _ in range(number)]


def by_start_alphas(space: Space, number: int) -> list[Genotype]:
    # As `Bilevel` draws alphas and `SearchTrial` reads them without shared weights.
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        alphas = {
            name: 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in space.alpha_shapes().items()
        }
        found.append(space.discretize(softmax(alphas, SearchPoint(0, 1, generator))))
    return found


@pytest.mark.parametrize("draw", [by_scores, by_start_alphas])
def test_genotypes_of_nasbench201_are_uniform(
    draw: Callable[[Space, int], list[Genotype]],
) -> None:
    drawn = draw(space_of(SPACES["nasbench201"]), 4000)
    edges = [[e.operation for e in genotype.cells[0].edges] for genotype in drawn]
    for edge in range(6):
        assert_uniform(Counter(row[edge] for row in edges), 4000, 5)
    # Edges are independent: all pairs of operations of two of them.
    for first, second in itertools.combinations(range(6), 2):
        assert_uniform(Counter((row[first], row[second]) for row in edges), 4000, 25)


@pytest.mark.parametrize("draw", [by_scores, by_start_alphas])
def test_genotypes_of_the_darts_space_are_uniform(
    draw: Callable[[Space, int], list[Genotype]],
) -> None:
    drawn = [choices(genotype) for genotype in draw(space_of(SPACES["darts"]), 4000)]
    for cell in ("normal", "reduction"):
        for node in range(2, 6):
            rows = [[c for c in row if c[0] == cell and c[2] == node] for row in drawn]
            # 1, 3, 6 or 10 pairs of sources; 7 operations on each kept edge, whichever it is.
            sources = Counter(tuple(c[1] for c in row) for row in rows)
            if node > 2:
                assert_uniform(sources, 4000, node * (node - 1) // 2)
            assert len(sources) == node * (node - 1) // 2
            assert_uniform(Counter(tuple(c[3] for c in row) for row in rows), 4000, 49)


def test_without_shared_weights_a_seed_is_a_genotype_and_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = set()
    for seed in range(8):
        trial = small_search({"name": "random", "share_weights": False}, seed=seed)
        before = trial._bilevel.state_dict()["supernet"]
        forwards, backwards = counted(trial, 0, monkeypatch)
        monkeypatch.undo()
        assert forwards == Counter(batch=1)
        assert backwards == Counter()
        expected = trial.space.discretize({n: a.softmax(-1) for n, a in trial.alphas.items()})
        assert trial.run() == expected
        after = trial._bilevel.supernet.state_dict()
        assert all(torch.equal(after[path], value) for path, value in before.items())
        found.add(expected.hash)
    assert len(found) == 8


# Training with shared weights.


def plain_draw(space: Space, generator: torch.Generator, like: OpWeights) -> OpWeights:
    """One-hot op weights of a uniform genotype, by the rules of both spaces written out."""
    scores = {
        name: torch.rand(alpha.shape, generator=generator, dtype=torch.float64).tolist()
        for name, alpha in like.items()
    }
    found = {}
    for name, rows in scores.items():
        op_weights = torch.zeros(like[name].shape, dtype=torch.float64)
        first = 0 if space.name == "nasbench201" else 1  # the DARTS space leaves out `none`
        best = [max(row[first:]) for row in rows]
        for node in {target for _, target in space.edges[name]}:
            into = [row for row, edge in enumerate(space.edges[name]) if edge[1] == node]
            if space.name == "darts":
                into = sorted(into, key=lambda row: best[row])[-2:]
            for row in into:
                op_weights[row, rows[row].index(best[row])] = 1.0
        found[name] = op_weights
    return found


@pytest.mark.parametrize("space", BOTH)
def test_steps_equal_those_of_a_plain_search(space: str) -> None:
    trial = small_search(SMALL, space=space, precision="float64", batch_size=6)
    generator = torch.Generator()
    generator.set_state(trial._bilevel.generators["method"].get_state())
    plain = SampledSearch(trial)
    plain.scalars = False
    drawn = []
    for epoch in range(3):
        train_batch, val_batch = trial._data.next_batches()
        op_weights = plain_draw(trial.space, generator, trial.alphas)
        plain.weight_step(epoch, train_batch, op_weights)
        one_step(trial, epoch, train_batch, val_batch)
        plain.assert_equal(trial)
        drawn.append(op_weights)
    for first, second in itertools.combinations(drawn, 2):
        assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("space", BOTH)
def test_only_the_operations_of_the_drawn_genotype_run(space: str) -> None:
    trial = small_search(SMALL, space=space, batch_size=6)
    seen = note_mixtures(trial)
    one_step(trial, 0, *trial._data.next_batches())
    trial._metrics(trial._bilevel.point(0), {"train_loss": [torch.zeros(())]})
    assert len(seen) > 2
    for mixture in seen:
        assert mixture.active is not None
        assert mixture.offsets is None
        for name, active in mixture.active.items():
            assert torch.equal(mixture.op_weights[name], active.float())
            # Two of the edges into each node, or all.
            assert active.sum() == {"nasbench201": 6, "darts": 8}[space]
    # Validation accuracy is that of the genotype of the alphas, which rest.
    start = one_hot(trial.space, trial.genotype, trial.alphas)
    for mixture in seen[1:]:
        assert all(torch.equal(mixture.op_weights[name], m) for name, m in start.items())


def test_a_step_is_one_pass_and_the_alphas_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = small_search(SMALL, batch_size=6)
    before = trial.alphas["cell"].detach().clone()
    forwards, backwards = counted(trial, 0, monkeypatch)
    assert forwards == Counter(batch_and_update=1)
    assert backwards == Counter(weights=1)
    assert torch.equal(trial.alphas["cell"], before)


def test_it_says_that_it_needs_a_space() -> None:
    method = build_method("random", Config(), epochs=3)
    at = SearchPoint(0, 3, torch.Generator())
    for relax in (method.relax, method.mean):
        assert relax is not None
        with pytest.raises(MethodError, match="genotypes of a space, and there is none here"):
            relax({"cell": torch.zeros(6, 5)}, at)


# The two rounds.

Judge = Callable[[Genotype, int | None], tuple[float, float]]


class KnownSupernet:
    """Judges genotypes by a table and notes what it was asked."""

    def __init__(self, judge: Judge, space: str = "darts") -> None:
        self.space = space_of(SPACES[space])
        self.at = SimpleNamespace(generator=torch.Generator().manual_seed(3))
        self.asked: list[tuple[Genotype, Norm, int | None]] = []
        self.judge = judge

    def op_weights(self) -> OpWeights:
        return {
            n: torch.zeros(s, dtype=torch.float64) for n, s in self.space.alpha_shapes().items()
        }

    def evaluate(
        self, op_weights: OpWeights, norm: Norm, *, batches: int | None = None
    ) -> tuple[float, float]:
        for matrix in op_weights.values():
            assert set(matrix.unique().tolist()) <= {0.0, 1.0}
        genotype = self.space.discretize(op_weights)
        # Only those edges have a weight that the genotype keeps.
        like = self.op_weights()
        again = one_hot(self.space, genotype, like)
        assert all(torch.equal(again[name], op_weights[name]) for name in again)
        self.asked.append((genotype, norm, batches))
        return self.judge(genotype, batches)


def chosen(judge: Judge, space: str = "darts", **settings: Any) -> tuple[KnownSupernet, Any]:
    supernet = KnownSupernet(judge, space)
    found = select(cast(TrainedSupernet, supernet), config=Config(**settings))
    return supernet, found


def skips(genotype: Genotype) -> float:
    return sum(choice[3] == "skip_connect" for choice in choices(genotype)) / 16


@pytest.mark.parametrize("space", BOTH)
def test_the_best_candidates_are_judged_again_and_the_best_of_them_wins(space: str) -> None:
    def judge(genotype: Genotype, batches: int | None) -> tuple[float, float]:
        # The second round thinks the opposite of the first.
        return 0.0, skips(genotype) if batches is not None else 1.0 - skips(genotype)

    settings: dict[str, Any] = {"candidates": 60, "finalists": 7, "candidate_batches": 3}
    supernet, found = chosen(judge, space, norm="running", **settings)
    first, second = supernet.asked[:60], supernet.asked[60:]
    assert {asked[1:] for asked in first} == {("running", 3)}
    assert {asked[1:] for asked in second} == {("running", None)}
    generator = torch.Generator().manual_seed(3)
    drawn = [uniform_genotype(supernet.space, generator) for _ in range(60)]
    assert [asked[0] for asked in first] == drawn
    ranked = sorted(drawn, key=lambda genotype: -skips(genotype))
    assert [asked[0] for asked in second] == ranked[:7]
    assert skips(ranked[6]) < skips(ranked[0])
    assert found.genotype == min(ranked[:7], key=skips)
    assert supernet.space.discretize(found.scores) == found.genotype
    assert all(score.sum() > 0 for score in found.scores.values())
    assert {score.dtype for score in found.scores.values()} == {torch.float64}


def test_the_defaults_are_a_thousand_candidates_of_one_batch_and_ten_finalists() -> None:
    supernet, _ = chosen(lambda *_: (0.0, 0.0))
    assert len(supernet.asked) == 1010
    assert Counter(asked[1:] for asked in supernet.asked) == {
        ("batch", 1): 1000,
        ("batch", None): 10,
    }


def test_equal_accuracies_go_by_loss_and_then_by_their_draw() -> None:
    supernet, found = chosen(lambda *_: (0.5, 0.5), candidates=20, finalists=4)
    drawn = [asked[0] for asked in supernet.asked[:20]]
    assert [asked[0] for asked in supernet.asked[20:]] == drawn[:4]
    assert found.genotype == drawn[0]
    supernet, found = chosen(lambda g, _: (skips(g), 0.5), candidates=20, finalists=4)
    assert found.genotype == min(drawn, key=skips)
    # A lower loss makes up for no accuracy.
    supernet, found = chosen(lambda g, _: (skips(g), skips(g)), candidates=20, finalists=4)
    assert found.genotype == max(drawn, key=skips)


def test_all_are_finalists_where_there_are_no_more() -> None:
    supernet, _ = chosen(lambda *_: (0.0, 0.0), candidates=4)
    assert len(supernet.asked) == 8


@pytest.mark.parametrize("space", BOTH)
def test_the_result_of_a_search_is_the_best_by_the_trained_supernet(space: str) -> None:
    settings = {"name": "random", "candidates": 12, "finalists": 3}
    trial = small_search(settings, space=space, precision="float64")
    trial.run()
    generator = torch.Generator()
    generator.set_state(trial._bilevel.generators["method"].get_state())
    bilevel, data = trial._bilevel, trial._data
    batches = list(data.validation())
    assert len(batches) == 2

    def judged(op_weights: OpWeights, number: int) -> tuple[float, float]:
        correct = loss = count = 0.0
        for images, labels in batches[:number]:
            with torch.no_grad():
                mixture = bilevel.mixture(op_weights, bilevel.point(2))
                logits: Tensor = bilevel.supernet(images, mixture, norm="batch")
            loss -= logits.log_softmax(-1)[range(len(labels)), labels].sum().item()
            correct += (logits.argmax(-1) == labels).sum().item()
            count += len(labels)
        return -correct / count, loss / count

    drawn = [plain_draw(trial.space, generator, trial.alphas) for _ in range(12)]
    ranked = sorted(drawn, key=lambda op_weights: judged(op_weights, 1))
    best = min(ranked[:3], key=lambda op_weights: judged(op_weights, 2))
    assert all(torch.equal(trial.scores[name], matrix) for name, matrix in best.items())
    assert trial.genotype == trial.space.discretize(best)
    # Judgement draws from the state of the search and leaves it as it was.
    assert trial.select(trial._selection).genotype == trial.genotype
    assert trial.curve[-1]["genotype"] == trial.genotype.to_json()


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "candidates must be >= 1, got 0"),
        ({"candidate_batches": 0}, "candidate_batches must be >= 1, got 0"),
        ({"finalists": -1}, "finalists must be >= 1, got -1"),
        *(
            (
                {"share_weights": False, name: value},
                f"{name} has no effect without share_weights; leave it out, got {value!r}",
            )
            for name, value in {
                "candidates": 10,
                "candidate_batches": 2,
                "finalists": 3,
                "norm": "running",
            }.items()
        ),
    ],
)
def test_it_refuses_settings_of_no_effect(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**settings)
    with pytest.raises(PluginSettingsError, match=message):
        small_search({"name": "random"} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perturb": "sdarts_rs"}, "random runs one drawn operation"),
        ({"alpha_gradient": "unrolled"}, "the alphas of random are not trained"),
        ({"alpha_start": 1}, "the alphas of random are not trained"),
        ({"genotype_of": "best_epoch"}, "best_epoch has no effect"),
    ],
)
def test_it_refuses_parts_of_no_effect(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        small_search(SMALL | settings)


def test_its_file_does_not_hide_the_standard_library() -> None:
    code = (
        "import random, trainables.methods.random as ours\n"
        "from spaces.core import plugins\n"
        "plugins.load('methods', 'random')\n"
        "import random as again, tempfile\n"
        "assert again is random and hasattr(random, 'Random') and ours is not random\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_curve_ends_with_the_accuracy_of_the_winner() -> None:
    method = {"name": "random", "candidates": 4, "finalists": 2}
    trial = small_search(method, epochs=2)
    trial.run()
    winner = one_hot(trial.space, trial.genotype, trial.alphas)
    loss, accuracy = trial._bilevel.evaluate(
        Mixture(winner), trial._data.validation(), "batch"
    ).tolist()
    assert trial.curve[-1]["val_accuracy"] == pytest.approx(accuracy)
    assert trial.curve[-1]["val_loss"] == pytest.approx(loss)
    assert trial.curve[0]["val_loss"] != trial.curve[-1]["val_loss"]
    # What would be measured of alphas that nobody trains is left out.
    assert "alpha_entropy" not in trial.curve[-1]


def test_no_rule_but_its_own_has_anything_to_choose_by() -> None:
    for settings in ({}, {"share_weights": False}):
        trial = small_search({"name": "random"} | settings, epochs=2)
        with pytest.raises(PluginSettingsError, match="nothing to choose by"):
            trial.select({"name": "operation_strength"})
        with pytest.raises(MethodError, match="trained alphas"):
            landscape(trial, size=3)
