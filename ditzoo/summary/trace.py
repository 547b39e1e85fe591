"""What a module does to its input, step by step: one forward pass on the meta device, watched from outside.

Nothing here knows a family. Hooks see the layers that a module calls itself, and a torch function mode sees what it
does with their outputs in between.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Functions of one tensor that are worth a word; what cuts or reshapes is not.
_TELLING = {
    *("cos", "sin", "silu", "gelu", "relu", "tanh", "sigmoid", "softmax", "layer_norm", "group_norm", "rms_norm"),
    *("interpolate", "roll", "scaled_dot_product_attention"),
}
_SYMBOLS = {"add": "+", "mul": "×", "sub": "-", "div": "/"}  # noqa: RUF001


class Value(NamedTuple):
    """Where a tensor comes from."""

    step: int | None
    """number of a step of the stream; None for what joins it: time, class, parameters and what is made of them"""
    text: str
    """what happened to it since that step; of what joins the stream, the expression that made it"""
    shape: tuple[int, ...]
    """batch included"""


@dataclass(eq=False)
class Step:
    """A place on the stream: its start, a layer, an operation, or the output."""

    name: str
    """of the argument or layer; of an operation its symbol or function"""
    shape: tuple[int, ...]
    """of what comes out, batch included"""
    chain: Value | None = None
    """what the step before gives this one; None where that feeds only later ones"""
    links: Sequence[Value] = ()
    """what earlier steps give"""
    operands: str = ""
    """of an operation; of a layer what joins the stream there"""
    layer: nn.Module | None = None
    call: tuple[Sequence[Any], Mapping[str, Any]] = ((), {})
    """positional and named arguments of the layer"""
    follow: Sequence[str] = ()
    """arguments of the layer through which something flows, that of `chain` first"""


class Trace(TorchFunctionMode):
    """What becomes of `module(*args, **kwargs)`, which should be on the meta device and is left as it was.

    Args:
        module: any.
        follow: arguments in which something flows; the stream starts in the first, and the others join it.

    Attributes:
        steps: the stream in order of execution; the output is last.
        inputs: what joins the stream from outside, and shapes; () for what is not one tensor.
        layers: those that work on what joins the stream, by name.
        definitions: the expressions that join the stream, by the names that layers have for them.
    """

    def __init__(self, module: nn.Module, follow: Sequence[str], /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = _bound(module, args, kwargs)
        self.steps = [Step(follow[0], tuple(_tensors(given[follow[0]])[0].shape))]
        self.inputs = {name: tuple(getattr(given[name], "shape", ())) for name in follow[1:]}
        self.layers: dict[str, nn.Module] = {}
        self.definitions: dict[str, Value] = {}
        self._values: dict[int, Value] = {}
        self._seen: list[Tensor] = []  # kept alive, so that no two tensors share an id
        self._depth = 0  # of calls: layers inside layers are not looked at
        self._touched: set[int] = set()  # what functions inside the running layer got
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            self._put([tensor], None, name + " (not trained)" * frozen)
        self._put(_tensors(given[follow[0]]), 0)
        for name in follow[1:]:
            parts = given[name]._asdict() if hasattr(given[name], "_asdict") else {"": given[name]}
            for key, part in parts.items():
                self._put(_tensors(part), None, f"{name}.{key}".rstrip("."))
        self._run(module, args, kwargs)

    def _run(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        layers = [(name, layer) for name, layer in module.named_modules() if layer is not module]
        handles = [layer.register_forward_pre_hook(self._enter) for _, layer in layers]
        handles += [layer.register_forward_hook(partial(self._leave, name), with_kwargs=True) for name, layer in layers]
        try:
            with torch.no_grad(), self:
                outputs = _tensors(module(*args, **kwargs))
        finally:
            for handle in handles:
                handle.remove()
        self._step("output", outputs, self._values_of(outputs))
        for step, (name, value) in itertools.product(self.steps, self.definitions.items()):
            step.operands = re.sub(rf"(?<![\w.]){re.escape(value.text)}", name, step.operands)

    def _put(self, tensors: Sequence[Tensor], step: int | None, text: str = "") -> None:
        self._seen += tensors
        self._values |= {id(tensor): Value(step, text, tuple(tensor.shape)) for tensor in tensors}

    def _values_of(self, tensors: Sequence[Tensor]) -> list[Value]:
        return [self._values[id(tensor)] for tensor in tensors if id(tensor) in self._values]

    def _chain(self, values: Sequence[Value]) -> Value | None:
        return next((value for value in values if value.step == len(self.steps) - 1 and not value.text), None)

    def _step(self, name: str, outputs: Sequence[Tensor], values: Sequence[Value], **facts: Any) -> None:
        chain, links = self._chain(values), [value for value in values if value.step is not None]
        if chain is not None:
            links.remove(chain)
        self._put(outputs, len(self.steps))
        self.steps.append(Step(name, tuple(outputs[0].shape), chain, list(dict.fromkeys(links)), **facts))

    def _enter(self, *_: Any) -> None:
        if self._depth == 0:
            self._touched.clear()
        self._depth += 1

    def _leave(self, name: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        taken = [(key, tensor) for key, part in _bound(layer, args, kwargs).items() for tensor in _tensors(part)]
        # What comes out as it went in passes by: nn.Identity, or a block that hands the condition on.
        outputs = [out for out in _tensors(output) if not any(out is tensor for _, tensor in taken)]
        # What a layer is given and does not look at, such as a skip without long skips, does not flow in.
        used = [(key, tensor) for key, tensor in taken if id(tensor) in self._touched] or taken
        flows = [(key, value) for key, tensor in used for value in self._values_of([tensor])]
        values = [value for _, value in flows]
        if outputs and all(value.step is None for value in values):
            self.layers[name] = layer
            self._put(outputs, None, f"{name}({', '.join(dict.fromkeys(value.text for value in values))})")
        elif outputs:
            for key, value in flows:
                if "(" in value.text and key not in (self.steps[0].name, *self.inputs):
                    self.definitions.setdefault(key, value)
            chain = self._chain(values)
            flows.sort(key=lambda flow: (flow[1] != chain, flow[1].step is None))
            follow = list(dict.fromkeys(key for key, _ in flows))
            sides = dict.fromkeys(value.text for value in values if value.step is None)
            self._step(
                name, outputs, values, operands=" and ".join(sides), layer=layer, call=(args, kwargs), follow=follow
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        output, given = func(*args, **(kwargs or {})), _tensors((args, kwargs or {}))
        if self._depth:
            self._touched.update(id(tensor) for tensor in given)
            return output
        function = getattr(func, "__name__", "").strip("_")
        outputs = _tensors(args[0] if function == "setitem" else output)
        if outputs and self._values_of(given):
            if function == "cat" or _symbol(function) in _SYMBOLS.values():
                self._name_constants(given)
            self._function(function, args, self._values_of(given), outputs)
        return output

    def _name_constants(self, given: Sequence[Tensor]) -> None:
        """Tensors that come from nowhere, such as frequencies computed on the way, are named by their shape."""
        for tensor in given:
            if id(tensor) not in self._values:
                sizes = ", ".join(map(str, tensor.shape))
                self._put([tensor], None, f"const({sizes})" if sizes else "const")

    def _function(self, function: str, args: Any, values: list[Value], outputs: list[Tensor]) -> None:
        name = _symbol(function)
        infix, commutes = name in _SYMBOLS.values(), name in (_SYMBOLS["add"], _SYMBOLS["mul"])
        if not infix and name != "cat":  # elsewhere several parts of one tensor, such as queries and keys, count once
            values = list({value[:2]: value for value in values}.values())
        number = f"{args[1]:g}" if infix and len(args) == 2 and isinstance(args[1], int | float) else ""
        if len(values) == 1 and not number and name not in _TELLING:
            several = len(outputs) > 1 and values[0].step is None
            for place, tensor in enumerate(outputs):
                self._put(
                    [tensor], values[0].step, f"{_closed(values[0].text)}[{place}]" if several else values[0].text
                )
            return
        chain, streams = self._chain(values), [value for value in values if value.step is not None]
        operands = [self._operand(value, chain) for value in values if value.step is None or not commutes]
        if number:
            operands.insert(0 if commutes or function.startswith("r") else 1, number)
        text = f" {name} ".join(map(_closed, operands)) if infix else f"{name}({', '.join(operands)})"
        if not streams:
            self._put(outputs, None, text)
        elif chain is None and len(streams) == 1:  # on the way of a link
            self._put(outputs, streams[0].step, f"{streams[0].text} {f'{name} ' * commutes}{text}".strip())
        else:
            alone = operands == [self.steps[0].name]
            self._step(name, outputs, values, operands="" if alone else ", ".join(operands))

    def _operand(self, value: Value, chain: Value | None) -> str:
        if value.step is None:
            return value.text
        source = self.steps[value.step]
        return source.name if source.layer and value != chain else self.steps[0].name


def _symbol(function: str) -> str:
    """The sign of an arithmetic function, in place and reflected ones included; of others the name."""
    return _SYMBOLS.get(function.lstrip("ri").removeprefix("true"), function)


def _closed(expression: str) -> str:
    return f"({expression})" if " " in expression else expression


def _bound(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by the names that the module's `forward` has for them."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def _tensors(given: Any) -> list[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(given, Tensor):
        return [given]
    parts = given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
