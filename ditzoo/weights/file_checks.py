"""Checks of a file of weights against the network that it is for, and hints where they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.layers import relative_position_index, sincos_position_table
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.weights.adapt import told_options
from ditzoo.weights.checks import Check, compare, message, short, shown, some
from ditzoo.weights.files import FLOATS, Nest, WeightsFile
from ditzoo.weights.lookalikes import common_prefix, fitting, foreign
from ditzoo.weights.match import FileForNetwork, Shapes, shape_text
from ditzoo.weights.published import SAMPLED_HASHES
from ditzoo.weights.pytorch_files import damaged_member, has_checksums, is_zip

_INTEGERS = (torch.int16, torch.int32, torch.int64)
_HALVES = (torch.float16, torch.bfloat16)


def file_checks(found: FileForNetwork, asked: Nest | None, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    model, shapes, wanted = found.model, found.shapes, found.wanted
    yield _container_check(found.file, asked)
    yield _zip_check(found.file)
    yield from (_name_check(shapes, wanted, found.file.others), _shape_check(shapes, wanted))
    yield _dtype_check({key: tensor.dtype for key, tensor in found.weights.items() if key in wanted})
    yield from _value_checks(found)
    if "relative_position_index" in model.constant_buffers:
        yield _buffer_check(found)
    if why := found.misfit:
        yield from (Check(row, "not checked", why) for row in ("loads", "forward", "sampled hash"))
        return
    yield _layout_check(found.name, shapes)
    yield from _position_checks(model, found.values)
    digest = _hash_check(found)
    try:
        model.load_state_dict(dict(found.weights), strict=True, assign=True)
    except RuntimeError as error:
        yield Check("loads", "FAIL", "refused", "strictly", message(error))
        yield from (Check("forward", "not checked", "the weights do not load"), digest)
        return
    yield Check("loads", "pass", "strictly", "strictly")
    yield from (_forward_check(found, device, dtype), digest)


def _container_check(file: WeightsFile, asked: Nest | None) -> Check:
    details = "" if file.nest is None else f"weights under {file.nest!r}"
    if file.nest not in (None, "ema") and asked is None:
        details += "; there is no 'ema'"
    return Check("file", "note", f"{file.container}, {file.num_bytes:,} bytes", details=details)


def _zip_check(file: WeightsFile) -> Check:
    row, path = "zip checksums", file.files[0]  # shards are safetensors
    if not is_zip(path):
        return Check(row, "not checked", "not a zip archive")
    if not has_checksums(path):
        return Check(row, "not checked", "saved without any")
    if (member := damaged_member(path)) is None:
        return Check(row, "pass", "all agree", "all agree")
    return Check(
        row, "FAIL", "not those of the content", "all agree", f"{shown(member)} is damaged; fetch the file again"
    )


def _name_check(shapes: Shapes, wanted: Shapes, others: Mapping[str, str]) -> Check:
    missing = [key for key in wanted if key not in shapes]
    unexpected = [shown(key) for key in shapes if key not in wanted]
    unexpected += [f"{shown(key)} (of type {shown(kind)})" for key, kind in others.items()]
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
    details = some([f"{key} is {shape_text(shapes[key])} and should be {shape_text(wanted[key])}" for key in wrong])
    return Check("shapes", "FAIL", f"{len(wrong):,} differ", "all equal", details)


def _dtype_check(dtypes: Mapping[str, torch.dtype]) -> Check:
    if not dtypes:
        return Check("dtypes", "not checked", "no name in common")
    counts = Counter(short(dtype) for dtype in dtypes.values()).most_common()
    found = some([f"{count:,} in {dtype}" for dtype, count in counts], 2)
    wrong = {key: dtype for key, dtype in dtypes.items() if dtype not in FLOATS}
    details = some([f"{key} is in {short(dtype)}" for key, dtype in wrong.items()])
    if any("float8" in short(dtype) for dtype in wrong.values()):
        details += "; 8 bits hold rounded weights whose scale the file need not tell: take the authors' own file"
    return compare("dtypes", not wrong, found, "floats of 16 to 64 bits", details=details)


def _value_checks(found: FileForNetwork) -> Iterator[Check]:
    """Every value of the right name, shape and dtype is read, once."""
    broken, constant, compared, largest = [], [], 0, 0.0
    trained = _varied(found.model)
    for key, tensor in found.values.items():
        low, high = (float(value) for value in tensor.aminmax())  # NaN if any value is
        if not (math.isfinite(low) and math.isfinite(high)):
            broken.append(key)
            continue
        largest = max(largest, -low, high)
        compared += key in trained
        if low == high and key in trained:
            constant.append(key)
    number, total = len(found.values), len(found.wanted)
    if not number:
        yield Check("finite values", "not checked", "no tensor can be compared")
    elif broken:
        details = some(broken)
        yield Check(
            "finite values", "FAIL", f"NaN or infinity in {len(broken):,} of {number:,} tensors", "all", details
        )
    else:
        yield Check("finite values", "pass", f"in {number:,} of {total:,} tensors; largest {largest:.4g}", "all")
    row = "varied values"
    if not compared:
        yield Check(row, "not checked", "no trained tensor can be compared")
    elif not constant:
        yield Check(row, "pass", f"no constant among {compared:,} of {len(trained):,}", "no constant")
    else:
        # In a fresh network gates and biases are zero; in a trained one nothing is.
        wrong = found.is_published or len(constant) == len(trained)
        text = f"{len(constant):,} of {compared:,} trained tensors are constant"
        yield Check(row, "FAIL" if wrong else "note", text, "none after training", some(constant))


def _varied(model: DiffusionTransformer) -> set[str]:
    """Names of the tensors that training fills with different values."""
    trained = {key for key, value in model.named_parameters() if value.requires_grad and value.numel() > 1}
    return trained - {unused.name for unused in model.unused_weights() if unused.rows is None}


def _buffer_check(found: FileForNetwork) -> Check:
    """The originals' constant buffers say in which order the rows of their tables stand."""
    row = "constant buffers"
    if not found.buffers:
        return Check(row, "not checked", "the file has none; ditzoo computes them")
    wrong, number = wrong_buffers(found), len(found.buffers)
    text = f"{len(wrong)} of {number} differ" if wrong else f"{number} equal"
    return compare(row, not wrong, text, "as computed here", details=some(wrong))


def wrong_buffers(found: FileForNetwork) -> list[str]:
    """The constant buffers of a file that are not those that ditzoo computes."""
    index = relative_position_index(*found.model.grid, device=torch.device("cpu"))
    return [key for key, tensor in found.buffers.items() if not _same_index(tensor, index)]


def _same_index(tensor: Tensor, index: Tensor) -> bool:
    """Floats are taken too, rounded as they may be: some cast a whole state dict."""
    if tensor.shape != index.shape or not (tensor.dtype in FLOATS or tensor.dtype in _INTEGERS):
        return False
    return torch.equal(tensor, index.to(tensor.dtype))


def _position_checks(model: DiffusionTransformer, values: Mapping[str, Tensor]) -> Iterator[Check]:
    """A frozen position table is a formula, so that its values are known."""
    table = dict(model.named_parameters()).get("pos_embed")
    if table is None or table.requires_grad or not type(model).__module__.startswith("ditzoo.models."):
        return
    found, formula = values["pos_embed"], sincos_position_table(model.hidden_size, model.grid)
    error = float((found.float() - formula).abs().max())
    # A copy in float32 may have gone through half precision.
    rounded = [dtype for dtype in _HALVES if torch.equal(found.to(dtype).to(found.dtype), found)]
    bound = max(1e-6, *(torch.finfo(dtype).eps for dtype in (found.dtype, *rounded)))
    expected = f"at most {bound:.0e} from its formula"
    yield compare("position table", error <= bound, f"differs by {error:.1e}", expected)


def _layout_check(name: str, shapes: Shapes) -> Check:
    """Two networks can have the same names and shapes; a file does not say which of them it is for."""
    others = [other for other in fitting(shapes) if not registry.same_network(other, name)]
    if not others:
        return Check("layout", "pass", "of no other in the zoo", "of no other")
    details = (
        f"names and shapes are also those of {some(others)}; only the file's source or a recorded hash can tell which "
        "it is for"
    )
    return Check("layout", "note", f"also that of {some(others, 1)}", "of no other", details)


def _forward_check(found: FileForNetwork, device: torch.device, dtype: torch.dtype) -> Check:
    x, t, y, text = fixed_input(found.name, found.model)
    expected = "finite, not all zero" if found.is_published else "finite"
    try:
        model = found.model.to(device, dtype).eval()
        with torch.no_grad():
            output = model(x.to(device, dtype), t.to(device), None if y is None else y.to(device)).float().cpu()
    except (RuntimeError, ValueError, TypeError) as error:
        return Check("forward", "FAIL", f"stopped by a {type(error).__name__}", expected, message(error))
    if not bool(torch.isfinite(output).all()):
        count = int((~torch.isfinite(output)).sum())
        return Check("forward", "FAIL", f"{count:,} of {output.numel():,} values are NaN or infinite", expected)
    if not output.any():
        if found.is_published:
            return Check("forward", "FAIL", "zero everywhere", expected)
        return Check("forward", "note", "zero everywhere, as of a fresh network", expected)
    print_of = f"rms {output.square().mean().sqrt():.4g}, mean {output.mean():.4g}, first {output.flatten()[0]:.4g}"
    return Check("forward", "pass", "finite", expected, f"{print_of} for the input of {text}")


def fixed_input(name: str, model: DiffusionTransformer) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The same x (1, C, S, S), t (1,) and y (1,) on every machine, and their description."""
    shape = (1, model.in_channels, model.input_size, model.input_size)
    x = torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))
    t = _middle_time(registry.model_info(name).recipe)
    y = torch.zeros(1, dtype=torch.int64) if model.num_classes else None
    return x, t, y, f"seed 0, t = {t.item():g}" + (", y = 0" if y is not None else "")


def _middle_time(recipe: Recipe | None) -> Tensor:
    """Half of the last time that networks are told, (1,): of a thousand timesteps 500. So without a recipe."""
    if recipe is None:
        return torch.tensor([500])
    middle = recipe.last_network_time / 2
    return torch.tensor([round(middle) if recipe.is_discrete else middle])


def _hash_check(found: FileForNetwork) -> Check:
    known, digest = SAMPLED_HASHES.get(found.name), found.digest or ""
    owners = [name for name, recorded in SAMPLED_HASHES.items() if recorded == digest != known]
    details = f"it is the one recorded for {some(owners)}" if owners else ""
    if known is None:
        return Check("sampled hash", "note", f"{digest[:16]}...", "not recorded", details)
    return compare("sampled hash", digest == known, f"{digest[:16]}...", f"{known[:16]}...", details=details)


def hints(found: FileForNetwork) -> Iterator[str]:
    name, model, shapes, wanted = found.name, found.model, found.shapes, found.wanted
    if shapes == wanted:
        return
    if sentence := foreign(shapes):
        yield sentence
        return
    prefix = common_prefix(shapes, wanted)
    if prefix:
        yield f"Every name carries {shown(repr(prefix))} in front; save the state dict without it."
        shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
        if shapes == wanted:
            return
    if others := [other for other in fitting(shapes) if other != name]:
        commands = " or ".join(f"`ditzoo verify {other} --checkpoint {found.file.path}`" for other in others[:3])
        yield f"The file fits {some(others)}: run {commands}."
    elif told := told_options(model, shapes):
        options = ", ".join(f"{option}={each.value!r}" for option, each in told.items())
        evidence = "; ".join(each.evidence for each in told.values())
        yield f"ditzoo.create({name!r}, {options}) takes the file: {evidence}."
    else:
        yield "The file fits no network of the zoo at its named size and options."
