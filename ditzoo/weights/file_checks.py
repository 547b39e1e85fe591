"""Checks of a file of weights against the network that it is for, and hints where they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.layers import relative_position_index, sincos_position_table
from ditzoo.models import DiffusionTransformer
from ditzoo.weights.checks import Check, Status, compare, message, short, some
from ditzoo.weights.files import Nest, WeightsFile
from ditzoo.weights.published import SAMPLED_HASHES, same_network

Shapes = dict[str, tuple[int, ...]]


def file_checks(
    name: str,
    model: DiffusionTransformer,
    file: WeightsFile,
    asked: Nest,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Check]:
    yield _container_check(file, asked)
    shapes, wanted = shapes_of(weights), shapes_of(model.state_dict())
    names, sizes = _name_check(shapes, wanted, file.others), _shape_check(shapes, wanted)
    yield from (names, sizes)
    yield Check("dtypes", "note", _dtypes(weights.values()))
    count = sum(math.prod(shape) for key, shape in shapes.items() if key in wanted)
    total = sum(math.prod(shape) for shape in wanted.values())
    yield compare("parameters in file", count == total, f"{count:,}", f"{total:,}")
    yield from _value_checks(model, weights)
    if "relative_position_index" in model.constant_buffers:
        yield _buffer_check(model, file.tensors)
    if not "pass" == names.status == sizes.status:
        for row in ("loads", "forward"):
            yield Check(row, "not checked", "names or shapes differ")
        return
    yield _layout_check(name, shapes)
    yield from _position_checks(model, weights)
    try:
        model.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:
        yield Check("loads", "FAIL", "refused", "strictly", message(error))
        yield Check("forward", "not checked", "the weights do not load")
        return
    yield Check("loads", "pass", "strictly")
    yield _forward_check(name, model, device, dtype)


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _container_check(file: WeightsFile, asked: Nest) -> Check:
    place = "" if file.nest is None else f", weights under {file.nest!r}"
    if file.nest not in (None, "ema") and asked == "ema":
        place += ": no 'ema' in it"
    return Check("file", "note", f"{file.container}, {file.num_bytes:,} bytes{place}")


def _name_check(shapes: Shapes, wanted: Shapes, others: Mapping[str, str]) -> Check:
    missing = [key for key in wanted if key not in shapes]
    unexpected = [key for key in shapes if key not in wanted]
    unexpected += [f"{key} (of type {kind})" for key, kind in others.items()]
    if not missing and not unexpected:
        return Check("names", "pass", f"{len(shapes):,}", f"{len(wanted):,}")
    parts = [f"{kind} {some(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    found = f"{len(missing):,} missing, {len(unexpected):,} unexpected"
    return Check("names", "FAIL", found, f"{len(wanted):,}", "; ".join(parts))


def _shape_check(shapes: Shapes, wanted: Shapes) -> Check:
    common = [key for key in wanted if key in shapes]
    wrong = [key for key in common if shapes[key] != wanted[key]]
    if not common:
        return Check("shapes", "not checked", "no name in common")
    if not wrong:
        return Check("shapes", "pass", f"{len(common):,} equal", "all equal")
    details = some([f"{key} is {_side(shapes[key])} and should be {_side(wanted[key])}" for key in wrong])
    return Check("shapes", "FAIL", f"{len(wrong):,} differ", "all equal", details)


def _side(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape) or "scalar"


def _dtypes(tensors: Iterable[Tensor]) -> str:
    counts = Counter(short(tensor.dtype) for tensor in tensors)
    return ", ".join(f"{count} in {dtype}" for dtype, count in counts.most_common())


def _value_checks(model: DiffusionTransformer, weights: Mapping[str, Tensor]) -> Iterator[Check]:
    """Every value is read, once."""
    broken, constant, largest = [], [], 0.0
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    trained -= {unused.name for unused in model.unused_weights() if unused.rows is None}
    for key, tensor in weights.items():
        if not tensor.numel():
            continue
        low, high = (float(value) for value in _readable(tensor).aminmax())  # NaN if any value is
        if not (math.isfinite(low) and math.isfinite(high)):
            broken.append(key)
            continue
        largest = max(largest, -low, high)
        if low == high and tensor.numel() > 1 and key in trained:
            constant.append(key)
    if broken:
        found = f"NaN or infinity in {len(broken):,} of {len(weights):,} tensors"
        yield Check("finite values", "FAIL", found, "all", some(broken))
    else:
        yield Check("finite values", "pass", f"all; the largest is {largest:.4g}", "all")
    trained &= set(weights)
    if not trained:
        yield Check("varied values", "not checked", "the file has no trained tensor of this network")
    elif not constant:
        yield Check("varied values", "pass", "no trained tensor is constant", "none")
    else:
        # In a fresh network gates and biases are zero; in a trained one nothing is.
        status: Status = "FAIL" if len(constant) == len(trained) else "note"
        found = f"{len(constant):,} of {len(trained):,} trained tensors are constant"
        yield Check("varied values", status, found, "none after training", some(constant))


def _readable(tensor: Tensor) -> Tensor:
    usual = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return tensor if tensor.dtype in usual else tensor.float()


def _buffer_check(model: DiffusionTransformer, tensors: Mapping[str, Tensor]) -> Check:
    """The originals' constant buffers say in which order the rows of their tables stand."""
    row = "constant buffers"
    buffers = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[2] == "relative_position_index"}
    if not buffers:
        return Check(row, "not checked", "the file has none; ditzoo computes them")
    index = relative_position_index(*model.grid)
    wrong = [key for key, tensor in buffers.items() if not torch.equal(tensor.long(), index)]
    if wrong:
        return Check(row, "FAIL", f"{len(wrong)} of {len(buffers)} differ", "as computed here", some(wrong))
    return Check(row, "pass", f"{len(buffers)} equal", "as computed here")


def _position_checks(model: DiffusionTransformer, weights: Mapping[str, Tensor]) -> Iterator[Check]:
    """A frozen position table is a formula, so that its values are known."""
    table = dict(model.named_parameters()).get("pos_embed")
    if table is None or table.requires_grad or not type(model).__module__.startswith("ditzoo.models."):
        return
    found, formula = weights["pos_embed"], sincos_position_table(model.hidden_size, model.grid)
    error = float((_readable(found).float() - formula).abs().max())
    bound = max(1e-6, torch.finfo(found.dtype).eps) if found.is_floating_point() else 1e-6
    expected = f"at most {bound:.0e} from the sin-cos formula"
    yield compare("position table", error <= bound, f"differs by {error:.1e}", expected)


def _layout_check(name: str, shapes: Shapes) -> Check:
    """Two networks can have the same names and shapes; a file does not say which of them it is for."""
    others = [other for other in _fitting(shapes) if not same_network(other, name)]
    if not others:
        return Check("layout", "pass", "of no other network in the zoo", "of no other")
    return Check("layout", "note", f"the same as of {some(others)}: only the file's source can tell", "of no other")


def _forward_check(name: str, model: DiffusionTransformer, device: torch.device, dtype: torch.dtype) -> Check:
    x, t, y, text = fixed_input(name, model)
    try:
        model = model.to(device, dtype).eval()
        with torch.no_grad():
            output = model(x.to(device, dtype), t.to(device), None if y is None else y.to(device)).float().cpu()
    except (RuntimeError, ValueError, TypeError) as error:
        return Check("forward", "FAIL", f"stopped by a {type(error).__name__}", "finite output", message(error))
    if not bool(torch.isfinite(output).all()):
        count = int((~torch.isfinite(output)).sum())
        return Check("forward", "FAIL", f"{count:,} of {output.numel():,} values are NaN or infinite", "finite output")
    if not output.any():
        return Check("forward", "note", "zero everywhere, as of a fresh network", "another output")
    print_of = f"rms {output.square().mean().sqrt():.4g}, mean {output.mean():.4g}, first {output.flatten()[0]:.4g}"
    return Check("forward", "pass", f"finite: {print_of}", f"finite ({text})")


def fixed_input(name: str, model: DiffusionTransformer) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The same x (1, C, S, S), t (1,) and y (1,) on every machine, and their description."""
    recipe = registry.model_info(name).recipe
    shape = (1, model.in_channels, model.input_size, model.input_size)
    x = torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))
    t = torch.tensor([0.5]) if recipe is not None and recipe.is_flow else torch.tensor([500])
    y = torch.zeros(1, dtype=torch.int64) if model.num_classes else None
    return x, t, y, f"seed 0, t = {t.item():g}" + (", y = 0" if y is not None else "")


def hash_check(name: str, digest: str) -> Check:
    known = SAMPLED_HASHES.get(name)
    found = f"{digest[:16]}..."
    if known is None:
        return Check("sampled hash", "note", found, "not recorded")
    return compare("sampled hash", digest == known, found, f"{known[:16]}...")


def hints(name: str, model: DiffusionTransformer, file: WeightsFile, weights: Mapping[str, Tensor]) -> Iterator[str]:
    shapes, wanted = shapes_of(weights), shapes_of(model.state_dict())
    if shapes == wanted:
        return
    if any(key.startswith("transformer_blocks.") for key in shapes):
        yield (
            "The names are those of the diffusers library, whose files have another layout. This release does not "
            "read it; take the authors' own file."
        )
        return
    prefix = _common_prefix(shapes, wanted)
    if prefix:
        yield f"Every name carries {prefix!r} in front; save the state dict without it."
        shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
        if shapes == wanted:
            return
    fitting = [other for other in _fitting(shapes) if other != name]
    if fitting:
        commands = " or ".join(f"`ditzoo verify {other} --checkpoint {file.path}`" for other in fitting[:3])
        yield f"The file fits {some(fitting)}: run {commands}."
    elif (classes := _other_classes(model, shapes, wanted)) is not None:
        yield f"Only the label table differs: ditzoo.create({name!r}, num_classes={classes}) takes the file."
    else:
        yield "The file fits no network of the zoo at its named size and options."


def _other_classes(model: DiffusionTransformer, shapes: Shapes, wanted: Shapes) -> int | None:
    """How many classes the file is for, where nothing but that differs."""
    wrong = [key for key in {**wanted, **shapes} if shapes.get(key) != wanted.get(key)]
    tables = ("embedding_table.weight", "label_emb.weight")
    if len(wrong) != 1 or not wrong[0].endswith(tables) or not {*wrong} <= {*shapes} & {*wanted}:
        return None
    same_width = shapes[wrong[0]][1:] == wanted[wrong[0]][1:]
    return shapes[wrong[0]][0] - (model.null_label is not None) if same_width else None


def _common_prefix(shapes: Shapes, wanted: Shapes) -> str:
    """What stands in front of every wanted name in the file; empty if nothing does."""
    first = next(iter(wanted))
    for key in shapes:
        prefix = key.removesuffix(first)
        if prefix not in ("", key) and all(prefix + other in shapes for other in wanted):
            return prefix
    return ""


def _fitting(shapes: Shapes) -> list[str]:
    """Registry names whose state dict has just these names and shapes; a tag only where its bare name has not."""
    count = sum(math.prod(shape) for shape in shapes.values())
    names = registry.list_models() + registry.list_models(pretrained=True)
    # Few have as many parameters, and only those are built.
    fitting = [name for name in names if registry.model_info(name).num_params == count and _layout(name) == shapes]
    return [name for name in fitting if "." not in name or name.partition(".")[0] not in fitting]


def _layout(name: str) -> Shapes:
    with torch.device("meta"):
        return shapes_of(registry.create(name).state_dict())
