"""Whether the drawings of all models show what the networks do."""
# ruff: noqa: RUF001 (the drawings multiply with ×)

import inspect
import re

import pytest
import torch
import torch.nn.functional as F

import ditzoo
from ditzoo.models import DiffusionTransformer
from ditzoo.summary import draw_blocks, drawable
from tests.summary.reading import layers_in, links_in, passes_in
from tests.zoo import EVERY_NAME, TINY, distinct, inputs, on_meta


def test_a_built_model_is_drawn_as_its_shapes_are_and_left_as_it_was():
    model = ditzoo.create("mdt_ti_2").train()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    assert draw_blocks(model) == draw_blocks(on_meta("mdt_ti_2"))
    assert model.training
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_ascii_says_the_same():
    drawing = draw_blocks(on_meta("mdtv2_ti_2"))
    signs = dict(zip("│─┘┐├┬┴◄×", "|-+++++<x", strict=True))
    assert draw_blocks(on_meta("mdtv2_ti_2"), ascii=True) == "".join(signs.get(sign, sign) for sign in drawing)
    assert "".join(signs.get(sign, sign) for sign in drawing).isascii()
    assert drawable("utf-8")
    assert not drawable("latin-1")
    assert not drawable(None)
    assert not drawable("no-such-encoding")


def small(name: str) -> dict[str, int]:
    """Options for a narrow network of that name with as few blocks as every kind of link and of block takes."""
    config = ditzoo.model_info(name).config
    if "depth" not in config:
        return {}
    depth = min(config["depth"], config.get("decode_layer", 0) + 6)
    return {"depth": depth, "hidden_size": 64, "num_heads": 4}


#: Of each pattern of links and of blocks, one network in its full size.
LARGE = ["dit_xl_2", "dit_xl_2_crossattn", "dit_xl_2_incontext", "sit_xl_2", "uvit_h_2", "mdt_xl_2", "mdtv2_xl_2"]
LARGE += ["diffit_xl_2", "diffit_unet_64"]


@pytest.mark.parametrize(
    ("name", "options"), [(name, {}) for name in LARGE] + [(name, small(name)) for name in distinct(EVERY_NAME, small)]
)
def test_drawings_show_every_link_and_every_block_in_order(name, options):
    model = on_meta(name, **options)
    drawing = draw_blocks(model)
    check_links(drawing, model)
    check_blocks(drawing, model)


def check_links(drawing: str, model: DiffusionTransformer) -> None:
    assert max(len(line) for line in drawing.splitlines()) <= 88
    expected = []
    for first, second in (("in_blocks", "out_blocks"), ("en_inblocks", "en_outblocks")):
        if hasattr(model, first):
            last = len(getattr(model, first)) - 1
            span = f".0-{last}" if last else ".0"
            expected.append((f"{first}{span}", f"{second}{span}", f"{first}.{last}-0" if last else f"{first}.0"))
    if hasattr(model, "de_blocks"):
        last = len(model.de_blocks) - 1
        tip = ("de_blocks.0" + f"-{last}" * bool(last), "into each" * bool(last))
        expected.append(("(+) pos_embed", *tip))
    if hasattr(model, "decoder"):  # one from the last block of each resolution to where the decoder reaches it
        stages = range(len(model.decoder))
        last = [len(stage.blocks) - 1 for stage in model.encoder]
        for number, i in enumerate(reversed(stages)):
            source = f"encoder.{i}.blocks.0" + f"-{last[i]}" * bool(last[i])
            expected.append((source, f"decoder.{number}.match", f"encoder.{i}.blocks.{last[i]}"))
    plain, *masked = passes_in(drawing)
    assert links_in(plain) == expected
    assert len(masked) == model.supports_masking
    for one in masked:
        interpolated = ("(+) decoder_pos_embed", "(+)", "× (1 - mask.mask)")
        assert links_in(one) == [*expected[:-1], interpolated, *expected[-1:]]


def check_blocks(drawing: str, model: DiffusionTransformer) -> None:
    assert not any(line.endswith(" ") for line in drawing.splitlines())
    blocks, side = set(model.block_names()), model.input_size
    passes = passes_in(drawing)
    for number, one in enumerate(passes):
        drawn = layers_in(one)
        assert [layer for layer in drawn if layer in blocks] == model.block_names()
        assert ("sideblocks.0" in drawn) == bool(number)
        given = "t, y" if model.num_classes else "t"
        assert re.search(rf"^ x \({model.in_channels}, {side}, {side}\), with {given}", one, re.MULTILINE)
        assert one.rstrip().endswith(f"\n output ({model.out_channels}, {side}, {side})")
    assert len(passes) == 1 + model.supports_masking
    titles = re.sub(r"\n(?=[a-z]+(\.\d|\.\w+\.\d| each\)))", " ", drawing)  # long ones are broken
    kinds = re.findall(r"^(\w+): ([\w.]+).*\(([\d,]+) parameters", titles, re.MULTILINE)
    assert {type(model.get_submodule(block)).__name__ for block in blocks} <= {kind for kind, *_ in kinds}
    for kind, place, size in kinds:
        layer = model.get_submodule(place)
        assert type(layer).__name__ == kind
        assert sum(parameter.numel() for parameter in layer.parameters()) == int(size.replace(",", ""))


@pytest.mark.parametrize("name", TINY)
def test_no_activation_is_hidden_in_a_layer_of_one_line(name, monkeypatch):
    """The drawing tells of functions only in layers that it draws in full; in others activations are modules."""
    hidden, drawn = [], draw_blocks(on_meta(name))
    for function in ("silu", "gelu", "relu"):
        applied = getattr(F, function)

        def watched(*args, _applied=applied, **kwargs):
            hidden.append(inspect.currentframe().f_back.f_locals["self"])
            return _applied(*args, **kwargs)

        monkeypatch.setattr(F, function, watched)
    model = on_meta(name)
    model(*inputs(model))
    own = {type(layer).__name__ for layer in hidden if not type(layer).__module__.startswith("torch.")}
    assert hidden
    for kind in own:
        assert re.search(rf"^{kind}: ", drawn, re.MULTILINE), kind


def test_the_drawing_of_the_u_shaped_model_has_its_head_and_its_windows():
    drawing = draw_blocks(on_meta("diffit_unet_32"))
    assert "Head: norm GroupNorm, act SiLU, conv Conv2d 128 -> 3, 3x3" in re.sub(r"\s+(│\s+)?", " ", drawing)
    assert drawing.count(", in windows of 4x4\n") == drawing.count("DiffiTResBlock: ") == 2
    assert "in windows of 8x8\n" in draw_blocks(on_meta("diffit_unet_64"))
    assert "windows" not in draw_blocks(on_meta("diffit_ti_2"))


def test_options_change_the_drawing():
    assert "mask" not in draw_blocks(on_meta("mdt_ti_2", mask_ratio=None)).replace("mask_token", "")
    unconditional = draw_blocks(on_meta("dit_ti_2", num_classes=0))
    assert "y_embedder" not in unconditional
    assert unconditional.startswith("c (64) = t_embedder(t)\n")
    assert "\n x (1, 8, 8), with t\n" in unconditional
    assert "(17, 96)" in draw_blocks(on_meta("uvit_ti_2", num_classes=0))
    without = draw_blocks(on_meta("uvit_ti_2", skip=False))
    assert "skip_linear" not in without
    assert "◄" not in passes_in(without)[0]  # the blocks get a skip and do not look at it
    conv = draw_blocks(on_meta("uvit_ti_2", conv=True, mlp_time_embed=True))
    assert " final_layer   Conv2d 1 -> 1, 3x3\n" in conv
    assert "time_embed(cat(cos(t × const(48)), sin(t × const(48))))" in conv
    deep = draw_blocks(on_meta("uvit_ti_2", depth=11))
    assert "out_blocks.0-4  5 x UViTBlock ◄ in_blocks.4-0 ─" in deep
