"""Which layer feeds which: one forward pass on the meta device, watched from outside.

Nothing here knows a family. Hooks see the layers that a module calls itself, and a torch function mode sees what it
does with their outputs in between.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Functions of one tensor that are worth a word; what cuts or reshapes is not.
_TELLING = {
    *("cos", "sin", "silu", "gelu", "relu", "tanh", "sigmoid", "softmax", "layer_norm", "rms_norm", "interpolate"),
    "scaled_dot_product_attention",
}
_SYMBOLS = {
    **dict.fromkeys(("add", "add_", "__radd__", "__iadd__"), "+"),
    **dict.fromkeys(("mul", "mul_", "__rmul__", "__imul__"), "×"),  # noqa: RUF001
    **dict.fromkeys(("sub", "sub_", "__rsub__", "__isub__"), "-"),
}


@dataclass(eq=False)
class Node:
    """A place in the flow: an input, a parameter used without a layer, a layer, an operation on several values, or
    the output."""

    kind: Literal["input", "parameter", "layer", "operation", "output"]
    name: str
    """of the argument, parameter or layer; of an operation its symbol or function"""
    shape: tuple[int, ...] = ()
    """of what comes out, batch included"""
    inputs: list[Value] = field(default_factory=list)
    layer: nn.Module | None = None
    call: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
    """arguments of the layer's call"""


class Value(NamedTuple):
    """What a node gave, perhaps cut or reshaped on the way."""

    node: Node
    shape: tuple[int, ...]
    functions: tuple[str, ...] = ()
    """telling functions that it passed through, and sums and products with a number, such as `1 +`"""
    argument: str = ""
    """which argument of a layer it is"""


class Trace(NamedTuple):
    """The flow through a module.

    Attributes:
        inputs: one node for each argument that holds tensors.
        nodes: layers and operations in order of execution; the output is last.
    """

    inputs: list[Node]
    nodes: list[Node]


def trace(module: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Call `module(*args, **kwargs)` and follow the tensors. The module and its inputs should be on the meta device,
    where nothing is computed; it is left as it was."""
    watcher = _Watcher(module, named_arguments(module, args, kwargs))
    try:
        with torch.no_grad(), watcher:
            output = module(*args, **kwargs)
    finally:
        for handle in watcher.handles:
            handle.remove()
    values = [value for tensor in _tensors(output) if (value := watcher.value_of(tensor))]
    watcher.nodes.append(Node("output", "output", values[0].shape if values else (), values))
    return Trace(list(watcher.inputs.values()), watcher.nodes)


def named_arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by the names that the module's `forward` has for them."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


class _Watcher(TorchFunctionMode):
    def __init__(self, module: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.values: dict[int, Value] = {}
        self.seen: list[Tensor] = []  # kept alive, so that no two tensors share an id
        self.nodes: list[Node] = []
        self.depth = 0  # of calls: layers inside layers are not looked at
        self.touched: set[int] = set()  # what functions inside the running layer got
        self.inputs: dict[str, Node] = {}
        for name, argument in arguments.items():
            tensors = list(_tensors(argument))
            if tensors:
                self.inputs[name] = Node("input", name, tuple(tensors[0].shape))
                self.put(tensors, self.inputs[name])
        for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
            self.put([parameter], Node("parameter", name, tuple(parameter.shape)))
        self.handles = [
            handle
            for name, layer in module.named_modules()
            if layer is not module
            for handle in (
                layer.register_forward_pre_hook(self.enter, with_kwargs=True),
                layer.register_forward_hook(self.leave(name), with_kwargs=True),
            )
        ]

    def put(self, tensors: list[Tensor], node: Node, functions: tuple[str, ...] = ()) -> None:
        for tensor in tensors:
            self.values[id(tensor)] = Value(node, tuple(tensor.shape), functions)
            self.seen.append(tensor)

    def value_of(self, tensor: Tensor) -> Value | None:
        return self.values.get(id(tensor))

    def enter(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        if self.depth == 0:
            self.touched.clear()
        self.depth += 1

    def leave(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.depth -= 1
            if self.depth:
                return
            given = named_arguments(layer, args, kwargs)
            taken = [(argument, tensor) for argument, some in given.items() for tensor in _tensors(some)]
            # What comes out as it went in passes by: nn.Identity, or a block that hands the condition on.
            outputs = [out for out in _tensors(output) if not any(out is tensor for _, tensor in taken)]
            if not outputs:
                return
            # What a layer is given and does not look at, such as a skip without long skips, does not flow in.
            used = [(argument, tensor) for argument, tensor in taken if id(tensor) in self.touched] or taken
            inputs = [
                value._replace(argument=argument) for argument, tensor in used if (value := self.value_of(tensor))
            ]
            node = Node("layer", name, tuple(outputs[0].shape), inputs, layer, (args, kwargs))
            self.nodes.append(node)
            self.put(outputs, node)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.depth == 0:
            self.observe(getattr(func, "__name__", ""), (args, kwargs or {}), output)
        else:
            self.touched.update(id(tensor) for tensor in _tensors((args, kwargs or {})))
        return output

    def observe(self, function: str, arguments: Any, output: Any) -> None:
        outputs = list(_tensors(arguments[0][0] if function == "__setitem__" else output))
        values = [value for tensor in _tensors(arguments) if (value := self.value_of(tensor))]
        nodes = dict.fromkeys(value.node for value in values)
        if not outputs or not nodes:
            return
        if len(nodes) == 1:
            passed = dict.fromkeys(name for value in values for name in value.functions)
            if function in _TELLING:
                passed[function] = None
            elif arithmetic := _with_number(function, arguments[0]):
                passed[arithmetic] = None
            self.put(outputs, next(iter(nodes)), tuple(passed))
            return
        node = Node("operation", _SYMBOLS.get(function, function.strip("_")), tuple(outputs[0].shape), values)
        self.nodes.append(node)
        self.put(outputs, node)


def _with_number(function: str, operands: tuple[Any, ...]) -> str:
    """`1 +` for the sum of a tensor and 1; empty for what is no arithmetic of a tensor and a number."""
    if len(operands) != 2 or not isinstance(operands[1], int | float):
        return ""
    symbol, number = _SYMBOLS.get(function, ""), f"{operands[1]:g}"
    first = function == "__rsub__" or symbol in ("+", "×")  # noqa: RUF001
    return symbol and (f"{number} {symbol}" if first else f"{symbol} {number}")


def _tensors(given: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for part in given:
            yield from _tensors(part)
    elif isinstance(given, Mapping):
        for part in given.values():
            yield from _tensors(part)
