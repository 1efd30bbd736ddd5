"""Perturbation-based selection: rounds, masks, ties and topology on known losses, and real ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError
from spaces.core.genotype import Genotype
from spaces.core.mixture import Mixture, Norm
from spaces.core.space import Space
from tests.trainables.searches import SPACES, differences, small_search
from trainables.method import Method, OpWeights, SearchPoint, softmax
from trainables.search import SearchTrial
from trainables.selecting import TrainedSupernet
from trainables.selection.perturbation import Config, crowded_nodes, harms, select

pytestmark = pytest.mark.usefixtures("tiny_plugins")

RULE = "perturbation"
BOTH = ("nasbench201", "darts")
CRITERIA = ("accuracy", "loss")
# Into nodes 3, 4, 5 of the DARTS cell; node 2 has two edges to begin with.
DARTS_NODES = ((2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12, 13))
NUM_TURNS = {"nasbench201": 6, "darts": 14 + 3}

Rows = dict[str, list[list[float]]]
"""By cell type, a plain table of op weights."""
Judge = Callable[[OpWeights, int], tuple[float, float]]
"""Op weights and number of tunings to loss and accuracy."""


def space_of(name: str) -> Space:
    name, config = plugins.make_config("spaces", SPACES[name])
    space: Space = plugins.load("spaces", name).build(config, name)
    return space


@dataclass(frozen=True)
class Event:
    """What a rule did: "evaluate" at op weights, "fix" or "drop" a place, or "tune"."""

    kind: str
    place: tuple[Any, ...] = ()
    op_weights: OpWeights | None = None


class KnownSupernet(TrainedSupernet):
    """A supernet of uniform op weights, of known loss and accuracy, which notes what is done."""

    def __init__(self, space: Space, judge: Judge, seed: int = 0) -> None:
        self.space, self.judge = space, judge
        self.at = SearchPoint(0, 1, torch.Generator().manual_seed(seed))
        self.events: list[Event] = []
        self.rows = {
            name: torch.full(shape, 1.0 / shape[1], dtype=torch.float64)
            for name, shape in space.alpha_shapes().items()
        }

    def op_weights(self) -> OpWeights:
        return {name: matrix.clone() for name, matrix in self.rows.items()}

    def left(self, cell: str) -> torch.Tensor:
        return torch.ones(self.space.alpha_shapes()[cell], dtype=torch.bool)

    def evaluate(
        self, op_weights: OpWeights, norm: Norm, *, batches: int | None = None
    ) -> tuple[float, float]:
        kept = {name: matrix.clone() for name, matrix in op_weights.items()}
        self.events.append(Event("evaluate", (norm, batches), kept))
        return self.judge(kept, len(self.of("tune")))

    def fix(self, cell: str, edge: int, operation: int) -> None:
        self.events.append(Event("fix", (cell, edge, operation)))
        self.rows[cell][edge] = 0.0
        self.rows[cell][edge, operation] = 1.0

    def drop(self, cell: str, edge: int) -> None:
        self.events.append(Event("drop", (cell, edge)))
        self.rows[cell][edge] = 0.0

    def tune(self, epochs: int, *, lr_share: float | None) -> None:
        self.events.append(Event("tune", (epochs, lr_share)))

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [event.place for event in self.events if event.kind in kinds]

    def turns(self) -> list[list[Event]]:
        """What was done between the tunings."""
        found: list[list[Event]] = [[]]
        for event in self.events:
            if event.kind == "tune":
                found.append([])
            else:
                found[-1].append(event)
        return found


@functools.lru_cache
def mixed_judge(space: str, seed: int = 0) -> Judge:
    """A loss and an accuracy that have nothing to do with each other, v'q + q'Mq of all q.

    Every edge's best depends on the others, and on how often the supernet was tuned.
    """
    size = sum(edges * ops for edges, ops in space_of(space).alpha_shapes().values())
    source = torch.Generator().manual_seed(seed)
    linear = torch.randn(2, size, generator=source, dtype=torch.float64)
    squares = torch.randn(2, size, size, generator=source, dtype=torch.float64)

    def judge(op_weights: OpWeights, tunings: int) -> tuple[float, float]:
        q = torch.cat([matrix.flatten() for matrix in op_weights.values()]).roll(tunings)
        loss, accuracy = (v @ q + q @ m @ q for v, m in zip(linear, squares, strict=True))
        return loss.item(), accuracy.item()

    return judge


def flat_judge(op_weights: OpWeights, tunings: int) -> tuple[float, float]:
    return 1.0, 0.5


def projected(
    space: str, judge: Judge | None = None, seed: int = 0, **settings: Any
) -> tuple[KnownSupernet, Any]:
    supernet = KnownSupernet(space_of(space), judge or mixed_judge(space), seed)
    return supernet, select(supernet, config=Config(**settings))


def places(genotype: Genotype) -> set[tuple[str, int, int, str]]:
    return {(c.name, e.source, e.target, e.operation) for c in genotype.cells for e in c.edges}


# Rounds ----------------------------------------------------------------------------------------


def plain_projection(
    space: Space, judge: Judge, criterion: str, visits: list[list[tuple[str, int]]]
) -> tuple[list[tuple[Any, ...]], Rows, Rows]:
    """The second implementation: plain loops over tables, given the order of edges and nodes.

    Returns:
        Fixed and dropped places in order, the harms, and the op weights that are left.
    """
    rows: Rows = {
        name: [[1.0 / ops] * ops for _ in range(edges)]
        for name, (edges, ops) in space.alpha_shapes().items()
    }
    harmed: Rows = {name: [[0.0] * len(row) for row in table] for name, table in rows.items()}
    done: list[tuple[Any, ...]] = []

    def bad(changed: Rows, tunings: int) -> float:
        tables = {n: torch.tensor(table, dtype=torch.float64) for n, table in changed.items()}
        loss, accuracy = judge(tables, tunings)
        return loss if criterion == "loss" else 1.0 - accuracy

    def without(cell: str, edge: int, columns: list[int]) -> Rows:
        changed = {name: [list(row) for row in table] for name, table in rows.items()}
        for column in columns:
            changed[cell][edge][column] = 0.0
        return changed

    num_edge_turns = max(len(edges) for edges in space.edges.values())
    for turn, decisions in enumerate(visits):
        for cell, number in decisions:
            ops = range(len(space.operations[cell]))
            if turn < num_edge_turns:
                chosen, most = -1, -float("inf")
                for column in ops:
                    if space.operations[cell][column] == "none" and space.name != "nasbench201":
                        continue
                    harm = bad(without(cell, number, [column]), turn) - bad(rows, turn)
                    harmed[cell][number][column] = harm
                    if harm > most:
                        chosen, most = column, harm
                rows[cell][number] = [float(column == chosen) for column in ops]
                done.append((cell, number, chosen))
                if space.name != "nasbench201":
                    # `none` comes first, cannot be chosen, and is below all that can.
                    harmed[cell][number][0] = min(harmed[cell][number][1:]) - 1.0
            else:
                edges = DARTS_NODES[number]
                harm_of = {edge: bad(without(cell, edge, list(ops)), turn) for edge in edges}
                for edge in sorted(edges, key=lambda edge: (harm_of[edge], -edge))[:-2]:
                    rows[cell][edge] = [0.0] * len(ops)
                    done.append((cell, edge))
    return done, harmed, rows


def visits_of(supernet: KnownSupernet) -> list[list[tuple[str, int]]]:
    """Which edge, then which node, of every cell type was decided in each round."""
    found = []
    for turn in supernet.turns():
        decided: dict[tuple[str, int], None] = {}
        for event in turn:
            if event.kind == "fix":
                decided[event.place[0], event.place[1]] = None
            elif event.kind == "drop":
                (node,) = [i for i, rows in enumerate(DARTS_NODES) if event.place[1] in rows]
                decided[event.place[0], node] = None
        found.append(list(decided))
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("space", BOTH)
def test_it_equals_a_plain_loop(space: str, criterion: Any, seed: int) -> None:
    judge = mixed_judge(space, seed)
    supernet, selected = projected(space, judge, seed, criterion=criterion)
    visits = visits_of(supernet)
    done, harmed, rows = plain_projection(supernet.space, judge, criterion, visits)
    found = supernet.of("fix", "drop")
    # Which of two edges into a node is dropped first has no effect.
    assert [place for place in found if len(place) == 3] == [p for p in done if len(p) == 3]
    assert sorted(found, key=str) == sorted(done, key=str)
    left, dropped = set(), 0
    for name, table in harmed.items():
        scores = selected.scores[name]
        assert scores.dtype == torch.float64
        best = [max(row[c] for c in supernet.space.selectable(name)) for row in table]
        for edge, (source, target) in enumerate(supernet.space.edges[name]):
            expected = torch.tensor(table[edge], dtype=torch.float64)
            if not any(rows[name][edge]):
                dropped += 1
                mates = [e for e, (_, t) in enumerate(supernet.space.edges[name]) if t == target]
                least = min(best[mate] for mate in mates if any(rows[name][mate]))
                expected += least - 1.0 - best[edge]
            else:
                operation = supernet.space.operations[name][rows[name][edge].index(1.0)]
                left.add((name, source, target, operation))
            torch.testing.assert_close(scores[edge], expected, rtol=1e-9, atol=1e-9)
    assert dropped == (0 if space == "nasbench201" else 2 * (1 + 2 + 3))
    assert places(selected.genotype) == left
    supernet.space.check(selected.genotype)
    assert supernet.space.discretize(selected.scores) == selected.genotype


@pytest.mark.parametrize("space", [*BOTH, "darts_per_cell"])
def test_a_round_decides_one_of_every_cell_type(space: str) -> None:
    supernet, _ = projected(space, flat_judge)
    types = list(supernet.space.cell_types)
    visits = visits_of(supernet)
    assert len(visits) == NUM_TURNS[space.removesuffix("_per_cell")]
    assert all([cell for cell, _ in turn] == types for turn in visits)
    num_edges = len(supernet.space.edges[types[0]])
    by_type = list(zip(*visits, strict=True))
    for decided in by_type:
        numbers = [number for _, number in decided]
        assert sorted(numbers[:num_edges]) == list(range(num_edges))
        assert sorted(numbers[num_edges:]) == list(range(0 if space == "nasbench201" else 3))
        assert numbers[:num_edges] != sorted(numbers[:num_edges])
    # Cell types have orders of their own.
    assert len({tuple(number for _, number in decided) for decided in by_type}) == len(types)


def test_the_second_type_of_a_round_sees_what_the_first_has_become() -> None:
    supernet, _ = projected("darts")
    for turn in supernet.turns()[:14]:
        first = next(event.place for event in turn if event.kind == "fix")
        assert first[0] == "normal"
        later = turn[turn.index(next(event for event in turn if event.kind == "fix")) + 1 :]
        evaluated = [event.op_weights for event in later if event.op_weights is not None]
        assert len(evaluated) == 8
        for op_weights in evaluated:
            assert op_weights["normal"][first[1], first[2]] == 1.0


def test_the_order_is_drawn_from_the_generator_of_the_search() -> None:
    everywhere = torch.get_rng_state()
    orders = [visits_of(projected("darts", flat_judge, seed)[0]) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert torch.equal(torch.get_rng_state(), everywhere)
    # Edges come first of all, each about as often: 6 edges, 600 draws, 100 +- 9 (1 sigma).
    firsts = [visits_of(projected("nasbench201", flat_judge, s)[0])[0][0][1] for s in range(600)]
    assert all(60 < firsts.count(edge) < 140 for edge in range(6))


@pytest.mark.parametrize("epochs", [5, 2])
@pytest.mark.parametrize("space", BOTH)
def test_it_is_tuned_between_rounds_at_a_tenth_of_the_rate(space: str, epochs: int) -> None:
    supernet, _ = projected(space, flat_judge, **({} if epochs == 5 else {"tune_epochs": epochs}))
    # New optimizers once, and those kept.
    shares = [0.1] + [None] * (NUM_TURNS[space] - 2)
    assert supernet.of("tune") == [(epochs, share) for share in shares]
    assert supernet.events[0].kind == "evaluate"
    assert supernet.events[-1].kind in ("fix", "drop")


# Masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", BOTH)
def test_masks_take_one_operation_and_leave_the_rest_as_it_is(space: str) -> None:
    supernet, _ = projected(space)
    clean = KnownSupernet(supernet.space, flat_judge)
    candidates = range(5) if space == "nasbench201" else range(1, 8)
    for turn in supernet.turns()[: 6 if space == "nasbench201" else 14]:
        masks: list[tuple[str, int, int] | None] = []
        for event in turn:
            if event.op_weights is None:
                cell, edge, operation = event.place
                assert masks == [None, *((cell, edge, column) for column in candidates)]
                clean.fix(cell, edge, operation)
                masks = []
                continue
            changed = [
                (name, *place)
                for name, matrix in event.op_weights.items()
                for place in (matrix != clean.rows[name]).nonzero().tolist()
            ]
            assert all(event.op_weights[n][e, o] == 0.0 for n, e, o in changed)
            assert len(changed) <= 1
            masks.append(changed[0] if changed else None)


@pytest.mark.parametrize("num_ops", [8, 7])
def test_a_node_is_ranked_once_and_what_it_lost_stays_away(num_ops: int) -> None:
    """Of 7 operations, which are without `none`, the first is fixed on every edge."""
    name, config = plugins.make_config("spaces", SPACES["darts"] | {"operations": num_ops})
    space = plugins.load("spaces", "darts").build(config, name)
    supernet = KnownSupernet(space, mixed_judge("darts") if num_ops == 8 else flat_judge)
    select(supernet, config=Config())
    assert num_ops == 8 or {operation for _, _, operation in supernet.of("fix")} == {0}
    clean = KnownSupernet(supernet.space, flat_judge)
    for place in supernet.of("fix"):
        clean.fix(*place)
    for turn in supernet.turns()[14:]:
        rows: list[tuple[str, int] | None] = []
        dropped: list[tuple[str, int]] = []
        for event, following in itertools.pairwise([*turn, Event("end")]):
            if event.op_weights is None:
                clean.drop(*event.place)
                dropped.append(event.place)
                if following.kind != "drop":
                    (node,) = [n for n in DARTS_NODES if dropped[0][1] in n]
                    assert rows == [None, *((dropped[0][0], edge) for edge in node)]
                    assert len(dropped) == len(node) - 2
                    rows, dropped = [], []
                continue
            # Of this node nothing but the masked edge is away; of earlier ones all that they lost.
            changed = {
                (name, edge)
                for name, matrix in event.op_weights.items()
                for edge in (matrix != clean.rows[name]).any(dim=1).nonzero().flatten().tolist()
            }
            assert all(not event.op_weights[name][edge].any() for name, edge in changed)
            assert len(changed) <= 1
            rows.append(changed.pop() if changed else None)
    assert len(supernet.of("drop")) == 2 * (1 + 2 + 3)


def test_an_edges_own_absence_decides_and_not_its_scores() -> None:
    """Operations alike but for the first; edges hurt by their rank in a table, the two worst stay.

    On an edge of one operation only <costs> speaks; no mixture has such an edge's whole weight.
    """
    worth = torch.tensor([5.0, 1.0, 3.0, 9.0, 7.0, 2.0, 8.0, 4.0, 6.0, 1.0, 2.0, 3.0, 5.0, 4.0])

    def judge(op_weights: OpWeights, tunings: int) -> tuple[float, float]:
        whole = {n: (q.sum(dim=1) if tunings >= 14 else q[:, 3]) for n, q in op_weights.items()}
        normal, reduction = whole["normal"], whole["reduction"]
        return 0.0, float(worth.to(normal) @ normal - worth.to(normal) @ reduction)

    supernet, selected = projected("darts", judge)
    kept = {
        cell.name: sorted(
            supernet.space.edges[cell.name].index((e.source, e.target)) for e in edges
        )
        for cell in selected.genotype.cells
        for edges in [cell.edges]
    }
    # The reduction cells are better without: those of the least worth stay.
    assert kept["normal"] == [0, 1, 3, 4, 6, 8, 12, 13]
    assert kept["reduction"] == [0, 1, 2, 4, 5, 7, 9, 10]
    operations = {(p[0], p[3]) for p in places(selected.genotype)}
    assert operations == {("normal", "skip_connect"), ("reduction", "max_pool_3x3")}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_first_operation_and_the_last_edge_go_ahead_of_equals(criterion: Any) -> None:
    supernet, selected = projected("darts", flat_judge, criterion=criterion)
    assert {operation for _, _, operation in supernet.of("fix")} == {1}
    assert sorted(supernet.of("drop")) == [
        (cell, edge) for cell in ("normal", "reduction") for edge in (4, 7, 8, 11, 12, 13)
    ]
    assert {edge[1] for edge in places(selected.genotype)} == {0, 1}
    supernet, _ = projected("nasbench201", flat_judge, criterion=criterion)
    assert {operation for _, _, operation in supernet.of("fix")} == {0}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_all_operations_but_none_compete_where_genotypes_cannot_have_it(criterion: Any) -> None:
    def hurt(op_weights: OpWeights, tunings: int) -> tuple[float, float]:
        without = float(sum((matrix[:, 0]).sum() for matrix in op_weights.values()))
        return -without, without  # best where `none` is as it is

    supernet, selected = projected("darts", hurt, criterion=criterion)
    assert all(operation == 1 for _, _, operation in supernet.of("fix"))
    assert "none" not in {place[3] for place in places(selected.genotype)}
    supernet, selected = projected("nasbench201", hurt, criterion=criterion)
    assert {place[3] for place in places(selected.genotype)} == {"none"}


def test_only_darts_cells_lose_edges() -> None:
    assert crowded_nodes(space_of("nasbench201"), "cell") == []
    for name in ("darts", "darts_per_cell"):
        space = space_of(name)
        for cell in space.cell_types:
            nodes = crowded_nodes(space, cell)
            assert [(node.edges, node.kept) for node in nodes] == [(n, 2) for n in DARTS_NODES]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("batch", None)),
        ({"norm": "running", "batches": 2}, ("running", 2)),
    ],
)
def test_evaluations_have_the_norm_and_the_batches_of_the_settings(
    settings: dict[str, Any], expected: tuple[str, int | None]
) -> None:
    supernet, _ = projected("darts", flat_judge, **settings)
    assert set(supernet.of("evaluate")) == {expected}


# Real supernets --------------------------------------------------------------------------------


@functools.lru_cache
def _state(space: str) -> dict[str, Any]:
    trial = small_search(space=space, precision="float64", epochs=1, train_share=0.53)
    trial.run()
    return trial.state_dict()


def searched(space: str = "nasbench201") -> SearchTrial:
    """A search that is over, in float64; its 23 validation images are batches of 12 and 11."""
    trial = small_search(space=space, precision="float64", epochs=1, train_share=0.53)
    trial.load_state_dict(_state(space))
    return trial


def supernet_of(trial: SearchTrial, generator: torch.Generator | None = None) -> TrainedSupernet:
    at = trial._bilevel.point(max(0, trial.epoch - 1))
    if generator is not None:
        at = SearchPoint(at.epoch, at.epochs, generator)
    return TrainedSupernet(trial.space, trial._bilevel, trial._data, at)


@torch.no_grad()
def by_hand(
    trial: SearchTrial, op_weights: OpWeights, norm: Norm, batches: int | None
) -> tuple[float, float]:
    losses, correct, count = 0.0, 0, 0
    for images, labels in list(trial._data.validation())[:batches]:
        logits = trial._bilevel.supernet(images, Mixture(op_weights), norm=norm)
        losses += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return losses / count, correct / count


class FirstFixed(Exception):  # noqa: N818 (a stop, not an error)
    """Stops a rule at its first edge."""


FIRST = [
    *itertools.product(["nasbench201"], CRITERIA, ["batch", "running"], [None, 1]),
    ("darts", "loss", "batch", 1),
]


@pytest.mark.parametrize(("space", "criterion", "norm", "batches"), FIRST)
def test_the_first_edges_choice_is_the_exact_leave_one_out(
    monkeypatch: pytest.MonkeyPatch, space: str, criterion: Any, norm: Any, batches: int | None
) -> None:
    trial, untouched = searched(space), searched(space)
    op_weights = {name: torch.softmax(a.detach(), -1) for name, a in trial.alphas.items()}

    def noted(self: TrainedSupernet, cell: str, edge: int, operation: int) -> None:
        raise FirstFixed(cell, edge, operation)

    monkeypatch.setattr(TrainedSupernet, "fix", noted)
    settings = {"criterion": criterion, "norm": norm, "batches": batches, "tune_epochs": 0}
    with pytest.raises(FirstFixed) as stopped:
        trial.select({"name": RULE, **settings})
    cell, edge, chosen = stopped.value.args
    assert cell == trial.space.cell_types[0]
    found = []
    for column in trial.space.selectable(cell):
        masked = {name: matrix.clone() for name, matrix in op_weights.items()}
        masked[cell][edge, column] = 0.0
        loss, accuracy = by_hand(trial, masked, norm, batches)
        found.append((loss if criterion == "loss" else -accuracy, -column))
    if criterion == "loss":
        assert len({harm for harm, _ in found}) == len(found)
    assert -max(found)[1] == chosen
    # Even a rule that fails leaves the search as it was.
    assert differences(trial, untouched) == []


@pytest.mark.parametrize("space", BOTH)
def test_harms_are_of_masks_in_all_cells_of_a_type(space: str) -> None:
    trial = searched(space)
    cell = trial.space.cell_types[-1]
    parts: list[tuple[int, int | slice]] = [(0, 3), (2, slice(None))]
    config = Config(criterion="loss", batches=1)
    shared = harms(supernet_of(trial), config, cell, parts)
    clean = supernet_of(trial).op_weights()
    whole = by_hand(trial, clean, "batch", 1)[0]
    for (edge, operations), harm in zip(parts, shared, strict=True):
        masked = clean | {cell: clean[cell].clone()}
        masked[cell][edge, operations] = 0.0
        assert harm == pytest.approx(by_hand(trial, masked, "batch", 1)[0] - whole, abs=1e-12)
        assert abs(harm) > 1e-6
    # Op weights of single cells are masked in every one of them.
    num_cells = trial._bilevel.supernet.num_cells

    def relax(alphas: Any, at: SearchPoint) -> OpWeights:
        return {n: q.repeat(num_cells[n], 1, 1) for n, q in softmax(alphas, at).items()}

    trial._bilevel.method = Method(relax=relax)
    assert supernet_of(trial).op_weights()[cell].dim() == 3
    torch.testing.assert_close(harms(supernet_of(trial), config, cell, parts), shared)


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_search_stays_and_the_choice_is_the_projections(
    monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    trial, untouched = searched(), searched()
    fixed: list[tuple[int, int]] = []
    trained: list[tuple[int, float, int, Tensor]] = []
    fix, step = TrainedSupernet.fix, type(trial._bilevel).step

    def noted_fix(self: TrainedSupernet, cell: str, edge: int, operation: int) -> None:
        fixed.append((edge, operation))
        fix(self, cell, edge, operation)

    def noted_step(bilevel: Any, at: SearchPoint, *rest: Any) -> Any:
        found = step(bilevel, at, *rest)
        rate = bilevel.weight_optimizer.param_groups[0]["lr"]
        count = int(bilevel.alpha_optimizer.state[trial.alphas["cell"]]["step"])
        trained.append((at.step, rate, count, bilevel.relaxed(at)["cell"]))
        return found

    monkeypatch.setattr(TrainedSupernet, "fix", noted_fix)
    monkeypatch.setattr(type(trial._bilevel), "step", noted_step)
    selected = trial.select({"name": RULE, "tune_epochs": epochs})
    num_steps = trial._data.num_steps
    assert num_steps > 1
    assert len(trained) == 5 * num_steps * epochs
    for number, (place, rate, count, op_weights) in enumerate(trained):
        # One Adam and one SGD through all tunings, at a tenth of weight_lr 0.025.
        assert (place, count) == (number % num_steps, number + 1)
        assert rate == pytest.approx(0.0025, rel=1e-12)
        done = number // num_steps + 1
        one_hot = (op_weights.amax(dim=1) == 1.0).nonzero().flatten().tolist()
        assert one_hot == sorted(edge for edge, _ in fixed[:done])
    operations = trial.space.operations["cell"]
    chosen = {("cell", *trial.space.edges["cell"][e], operations[o]) for e, o in fixed}
    assert places(selected.genotype) == chosen
    assert len(chosen) == 6
    assert differences(trial, untouched) == []
    assert trial._bilevel.fixed == {}
    assert trial._bilevel.weight_lr(0) == untouched._bilevel.weight_lr(0)


def test_one_generator_gives_one_choice_and_another_another_order() -> None:
    orders, genotypes, scores = [], [], []
    for seed in (0, 0, 1):
        trial = searched()
        supernet = supernet_of(trial, torch.Generator().manual_seed(seed))
        order: list[int] = []
        fix = supernet.fix
        supernet.fix = lambda c, e, o, fix=fix, order=order: (order.append(e), fix(c, e, o))[1]
        selected = select(supernet, config=Config(tune_epochs=1, criterion="loss"))
        orders.append(order)
        genotypes.append(selected.genotype)
        scores.append(selected.scores["cell"])
    assert orders[0] == orders[1] != orders[2]
    assert genotypes[0] == genotypes[1]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_dropped_edge_is_absent_in_every_cell_of_its_type() -> None:
    trial = searched("darts")
    supernet = supernet_of(trial)
    free = supernet.op_weights()
    supernet.fix("normal", 2, 5)
    supernet.drop("normal", 2)
    supernet.drop("reduction", 13)
    found = supernet.op_weights()
    for name, gone in (("normal", 2), ("reduction", 13)):
        assert not found[name][gone].any()
        others = torch.arange(14) != gone
        assert torch.equal(found[name][others], free[name][others])


def test_an_evaluation_takes_the_first_batches_and_changes_nothing() -> None:
    trial, untouched = searched(), searched()
    supernet = supernet_of(trial)
    clean = supernet.op_weights()
    for batches in (None, 1, 9):
        found = supernet.evaluate(clean, "batch", batches=batches)
        assert found == pytest.approx(by_hand(trial, clean, "batch", batches), abs=1e-12)
    assert supernet.evaluate(clean, "batch") != supernet.evaluate(clean, "batch", batches=1)
    assert differences(trial, untouched) == []


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_alphas_are_decided_by_the_weights(criterion: Any) -> None:
    """The variant whose alphas stay 0: magnitude has nothing to go by, masks do."""
    trial = searched()
    with torch.no_grad():
        for alpha in trial.alphas.values():
            alpha.zero_()
    selected = trial.select({"name": RULE, "criterion": criterion, "tune_epochs": 0})
    trial.space.check(selected.genotype)
    assert len({edge[3] for edge in places(selected.genotype)}) > 1


# Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": 0}, r"batches must be >= 1, got 0\."),
        ({"tune_epochs": -1}, r"tune_epochs must be >= 0, got -1\."),
        ({"criterion": "acc"}, "criterion must be one of accuracy, loss, .*'acc'"),
        ({"norm": "batch_and_update"}, "norm must be one of batch, running"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        plugins.make_config("selections", {"name": RULE, **settings})
