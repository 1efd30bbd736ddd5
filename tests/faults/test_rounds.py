"""A few rounds of the campaign, always the same ones; `nas bench faults` runs as many as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from benchmarks.faults.campaign import Campaign


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    with Campaign(seed=7) as made:
        yield made


@pytest.mark.parametrize(
    ("number", "kinds"),
    [(0, ["node", "ledger"]), (1, ["full", "states"])],
)
def test_nothing_is_lost_doubled_or_wrong(
    campaign: Campaign, number: int, kinds: Sequence[str]
) -> None:
    possible = [kind for kind in kinds if kind in campaign.kinds]
    result = campaign.run(number, possible)
    assert (result.lost, result.doubled, result.wrong) == ([], [], [])
    assert result.redone == 0
    assert result.faults in (possible, possible[:1])  # the second may come when all has ended
