"""Reference supernet of NAS-Bench-1Shot1: plain, op by op, in NCHW, with torch's own layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spaces.core.choice_blocks import ChoiceSupernet


def conv_norm_relu(c_in: int, c_out: int, kernel: int, *, affine: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
        nn.ReLU(),
    )


class ReferenceCell(nn.Module):
    """A cell; its operations see the first 1 / parts of the channels of a block's input."""

    def __init__(self, blocks: int, c_in: int, c: int, parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        self.to_blocks = nn.ModuleList(conv_norm_relu(c_in, c, 1) for _ in range(blocks))
        self.to_output = conv_norm_relu(c_in, blocks * c, 1)
        self.operations = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.MaxPool2d(3, 1, 1),
                    conv_norm_relu(c // parts, c // parts, 3),
                    conv_norm_relu(c // parts, c // parts, 1),
                ]
            )
            for _ in range(blocks)
        )

    def forward(
        self,
        x: Tensor,
        weights: dict[str, Tensor],
        factors: dict[str, Tensor] | None = None,
        offsets: dict[str, Tensor] | None = None,
        skip_scale: float = 0.0,
    ) -> Tensor:
        factors = factors or {name: torch.ones(len(w)) for name, w in weights.items()}
        offsets = offsets or {name: torch.zeros(len(w)) for name, w in weights.items()}
        outputs: list[Tensor] = []
        for number, (project, operations) in enumerate(
            zip(self.to_blocks, self.operations, strict=True), start=1
        ):
            sources = [project(x), *outputs]
            name = f"inputs_{number}"
            if name in weights:
                row = weights[name][0]
                sources = [row[i] * sources[i] for i in range(number)]
                total = factors[name][0] * (sum(sources[1:], sources[0]) + offsets[name][0])
            else:
                total = sum(sources[1:], sources[0])
            seen = total[:, : total.shape[1] // self.parts]
            rest = total[:, total.shape[1] // self.parts :]
            mixed = [weights["operations"][number - 1, o] * operations[o](seen) for o in range(3)]
            block = mixed[0] + mixed[1] + mixed[2] + skip_scale * seen
            block = block + offsets["operations"][number - 1]
            block = factors["operations"][number - 1] * torch.cat([block, rest], 1)
            outputs.append(nn.functional.channel_shuffle(block, self.parts))
        row = weights["output"][0]
        joined = torch.cat([row[i + 1] * output for i, output in enumerate(outputs)], 1)
        whole = row[0] * self.to_output(x) + joined + offsets["output"][0]
        return factors["output"][0] * whole


class ReferenceSupernet(nn.Module):
    def __init__(
        self, blocks: int, c: int, cells: int, in_channels: int, classes: int, parts: int = 1
    ) -> None:
        super().__init__()
        self.stem = conv_norm_relu(in_channels, c, 3, affine=True)
        self.pooled = [index in (cells // 3, 2 * cells // 3) for index in range(cells)]
        before, layers = c, []
        for pooled in self.pooled:
            c = 2 * c if pooled else c
            layers.append(ReferenceCell(blocks, before, c, parts))
            before = blocks * c
        self.cells = nn.ModuleList(layers)
        self.post = nn.Sequential(
            nn.ReLU(), nn.Conv2d(before, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)
        )
        self.classifier = nn.Linear(c, classes)

    def forward(self, images: Tensor, op_weights: dict[str, Tensor], **extras: Any) -> Tensor:
        x = self.stem(images)
        for place, (cell, pooled) in enumerate(zip(self.cells, self.pooled, strict=True)):
            x = nn.functional.max_pool2d(x, 2, 2, padding=1) if pooled else x
            x = cell(
                x, {n: w[place] if w.dim() == 3 else w for n, w in op_weights.items()}, **extras
            )
        return self.classifier(self.post(x).mean((2, 3)))


Part = tuple[str, Tensor, slice, Tensor]


def matched(engine: ChoiceSupernet, reference: ReferenceSupernet) -> Iterator[Part]:
    """Yield (name, engine tensor, rows of it, reference tensor) for every weight and statistic."""
    yield from _layer("stem", engine.stem, reference.stem)
    for place, (ours, theirs) in enumerate(zip(engine.cells, reference.cells, strict=True)):
        start = 0
        for plain in (*theirs.to_blocks, theirs.to_output):
            rows = slice(start, start + plain[0].out_channels)
            start = rows.stop
            name = f"cells.{place}.projection.{rows.start}"
            yield from _pair(name, ours.projection, ours.projection_norm, plain[0], plain[1], rows)
        for index, (block, operations) in enumerate(
            zip(ours.blocks, theirs.operations, strict=True)
        ):
            yield from _layer(f"cells.{place}.{index}.3x3", block.conv3x3, operations[1])
            yield from _layer(f"cells.{place}.{index}.1x1", block.conv1x1, operations[2])
    post = engine.postprocess
    yield from _pair("post", post.convolution, post.batch_norm, *reference.post[1:], slice(None))
    for what in ("weight", "bias"):
        ours, theirs = getattr(engine.head.classifier, what), getattr(reference.classifier, what)
        yield f"classifier.{what}", ours, slice(None), theirs


def copy_weights(engine: ChoiceSupernet, reference: ReferenceSupernet) -> None:
    """Copy weights and running statistics of a supernet into its reference."""
    copied, used = set(), set()
    with torch.no_grad():
        for _, ours, rows, theirs in matched(engine, reference):
            theirs.copy_(ours[rows])
            copied.add(theirs)
            used.add(ours)
    for net, done in ((reference, copied), (engine, used)):
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            if value not in done and "num_batches" not in name:
                raise AssertionError(f"not copied: {name}")


def _layer(name: str, ours: nn.Module, plain: nn.Sequential) -> Iterator[Part]:
    yield from _pair(name, ours.convolution, ours.batch_norm, plain[0], plain[1], slice(None))


def _pair(
    name: str,
    conv: nn.Module,
    norm: nn.Module,
    plain: nn.Module,
    plain_norm: nn.Module,
    rows: slice,
) -> Iterator[Part]:
    yield f"{name}.weight", conv.weight, rows, plain.weight
    for what in ("weight", "bias", "running_mean", "running_var"):
        if getattr(plain_norm, what) is not None:
            yield f"{name}.norm.{what}", getattr(norm, what), rows, getattr(plain_norm, what)
