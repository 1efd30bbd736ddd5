"""The weighted sum of feature maps against autograd's own."""

from __future__ import annotations

import pytest
import torch

from spaces.core.weighted_sum import weighted_sum


@pytest.mark.parametrize(("num_terms", "num_plain"), [(1, 0), (3, 0), (2, 1), (0, 3), (2, 3)])
def test_values_first_and_second_derivatives(num_terms: int, num_plain: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    weights = [draw() for _ in range(num_terms)]
    features = [draw(2, 2, 2, 3) for _ in range(num_terms)]
    plain = [draw(2, 2, 2, 3) for _ in range(num_plain)]

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        weighted = zip(tensors[:num_terms], tensors[num_terms : 2 * num_terms], strict=True)
        return weighted_sum(list(weighted), tensors[2 * num_terms :])

    inputs = (*weights, *features, *plain)
    before = [tensor.detach().clone() for tensor in inputs]
    expected = sum((w * f for w, f in zip(weights, features, strict=True)), sum(plain))
    assert torch.allclose(total(*inputs), expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(total, inputs)
    assert torch.autograd.gradgradcheck(total, inputs)
    for tensor, value in zip(inputs, before, strict=True):
        assert torch.equal(tensor, value)


def test_channels_last_gives_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = feature.clone(memory_format=memory_format).requires_grad_()
        out = weighted_sum([(weight, x)], [x])
        gradients.append(torch.autograd.grad(out.square().sum(), (weight, x)))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
