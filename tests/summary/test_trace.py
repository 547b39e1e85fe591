"""What a trace tells of the operations on the stream."""
# ruff: noqa: RUF001 (multiplications are ×)

import torch
from torch import Tensor, nn

from ditzoo.summary.trace import Trace


def steps_of(forward, **tensors: Tensor) -> list[tuple[str, str]]:
    """Names and operands of what becomes of the first tensor; the others join it."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(4))
            self.emb, self.time_emb, self.take = nn.Linear(4, 4), nn.Linear(4, 4), Taking()

    Module.forward = forward
    return [(step.name, step.operands) for step in Trace(Module(), list(tensors), **tensors).steps]


class Taking(nn.Module):
    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return h + c


def test_operations_are_told_with_their_operands_in_order():
    x, c, d = torch.zeros(1, 2, 4), torch.ones(1, 4), torch.ones(1, 4)

    def arithmetic(self, x, c):
        return 3 - (x * 2 - c) / 4

    assert steps_of(arithmetic, x=x, c=c)[1:] == [
        ("×", "2"),
        ("-", "x, c"),
        ("/", "x, 4"),
        ("-", "3, x"),
        ("output", ""),
    ]

    def concatenation(self, x, c, d):
        return torch.cat([c[:, None], x, d[:, None]], dim=1)

    assert steps_of(concatenation, x=x, c=c, d=d)[1] == ("cat", "c, x, d")

    def constants(self, x, c):
        phase = c * torch.arange(4)
        return torch.cat([x * phase.cos()[:, None], torch.ones(1, 1, 4)], dim=1) + torch.tensor(2.0)

    assert steps_of(constants, x=x, c=c)[1:-1] == [
        ("×", "cos(c × const(4))"),
        ("cat", "x, const(1, 1, 4)"),
        ("+", "const"),
    ]

    def parts(self, x, c):
        first, second = (1 - torch.sin(self.emb(c))).chunk(2, dim=-1)
        x[..., :2] = x[..., :2] * second + first
        x += self.table
        return x

    assert steps_of(parts, x=x, c=c)[1:-1] == [
        ("×", "(1 - sin(emb(c)))[1]"),
        ("+", "(1 - sin(emb(c)))[0]"),
        ("setitem", "x, x"),
        ("+", "table"),
    ]


def test_an_expression_goes_by_the_name_that_a_layer_has_for_it():
    def forward(self, x, t):
        y = self.take(x, self.emb(t))
        return self.take(y * self.time_emb(t), self.emb(t) + 1)

    x, t = torch.zeros(1, 4), torch.zeros(1, 4)
    assert steps_of(forward, x=x, t=t)[1:-1] == [("take", "c"), ("×", "time_emb(t)"), ("take", "1 + c")]
