"""DiT's four ways of conditioning. Three have no official code: they are compared with the equations, written down
once more here, and with the sizes and costs that the paper prints."""

import pytest
import torch
import torch.nn.functional as F

import ditzoo
from ditzoo.metrics import count_macs
from ditzoo.models import DiT, SiT
from tests.golden_cases import relative_error
from tests.zoo import inputs, lively, on_meta

#: Table 4 of arXiv:2212.09748: millions of parameters and GMACs of DiT-XL/2 at 256x256.
PRINTED = {
    "dit_xl_2": (675, 118.64),
    "dit_xl_2_adaln": (600, 118.56),
    "dit_xl_2_crossattn": (598, 137.62),
    "dit_xl_2_incontext": (449, 119.37),
}
CONDITIONINGS = ["adaln_zero", "adaln", "cross_attention", "in_context"]
OTHERS = CONDITIONINGS[1:]


@pytest.mark.parametrize("name", PRINTED)
def test_sizes_and_costs_are_those_of_the_paper(name):
    millions, gmacs = PRINTED[name]
    assert ditzoo.model_info(name).num_params / 1e6 == pytest.approx(millions, rel=0.005)
    assert count_macs(name).gmacs == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_in_closed_form(name):
    model = on_meta(name)
    D, depth, C, p = 1152, 28, 4, 2
    embedders = (
        (C * p * p + 1) * D + (256 + 1) * D + (D + 1) * D + 1001 * D + 256 * D
    )  # patches, time, class, positions
    attention, mlp = 4 * (D * D + D), 2 * 4 * D * D + 5 * D
    linear, norm = (D + 1) * p * p * 2 * C, 2 * D
    blocks = {
        "adaln_zero": attention + mlp + 6 * (D * D + D),
        "adaln": attention + mlp + 4 * (D * D + D),
        "cross_attention": 2 * attention + mlp + 3 * norm,
        "in_context": attention + mlp + 2 * norm,
    }
    final = linear + (2 * (D * D + D) if model.modulated else norm)
    expected = embedders + depth * blocks[model.config["conditioning"]] + final
    assert sum(p.numel() for p in model.parameters()) == expected


def reference(model, x, t, y):
    """The network from its state dict by the equations of the paper, one image after the other."""
    w, heads, how = model.state_dict(), model.num_heads, model.config["conditioning"]

    def linear(v, name):
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(v, name=None):
        centred = v - v.mean(-1, keepdim=True)
        v = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return v if name is None else v * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(q, k, v):
        d = q.shape[-1] // heads
        parts = [
            ((q[:, i : i + d] @ k[:, i : i + d].T) / d**0.5).softmax(-1) @ v[:, i : i + d]
            for i in range(0, q.shape[-1], d)
        ]
        return torch.cat(parts, dim=-1)

    def one(image, time, label):
        phase = time * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128).double()
        time = linear(F.silu(linear(torch.cat([phase.cos(), phase.sin()]), "t_embedder.mlp.0")), "t_embedder.mlp.2")
        condition = [time]
        if label is not None:
            condition.append(w["y_embedder.embedding_table.weight"][label])
        c, sequence = sum(condition), torch.stack(condition)
        p = model.patch_size
        patches = image.unfold(1, p, p).unfold(2, p, p).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
        h = patches @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"] + w["pos_embed"][0]
        if how == "in_context":
            h = torch.cat([sequence, h])
        for i in range(model.depth):
            block = f"blocks.{i}"
            if model.modulated:
                parts = list(linear(F.silu(c), f"{block}.adaLN_modulation.1").chunk(6 if how == "adaln_zero" else 4))
                gates = (parts.pop(2), parts.pop(4)) if how == "adaln_zero" else (1, 1)
                first = norm(h) * (1 + parts[1]) + parts[0]
            else:
                gates, first = (1, 1), norm(h, f"{block}.norm1")
            q, k, v = linear(first, f"{block}.attn.qkv").chunk(3, dim=-1)
            h = h + gates[0] * linear(attention(q, k, v), f"{block}.attn.proj")
            if how == "cross_attention":
                q = linear(norm(h, f"{block}.norm_cross"), f"{block}.cross_attn.q")
                k, v = linear(sequence, f"{block}.cross_attn.kv").chunk(2, dim=-1)
                h = h + linear(attention(q, k, v), f"{block}.cross_attn.proj")
            second = norm(h) * (1 + parts[3]) + parts[2] if model.modulated else norm(h, f"{block}.norm2")
            h = h + gates[1] * linear(
                F.gelu(linear(second, f"{block}.mlp.fc1"), approximate="tanh"), f"{block}.mlp.fc2"
            )
        h = h[-len(patches) :]
        if model.modulated:
            shift, scale = linear(F.silu(c), "final_layer.adaLN_modulation.1").chunk(2)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h, "final_layer.norm_final")
        g, channels = image.shape[1] // p, model.head_channels
        pixels = linear(h, "final_layer.linear").view(g, g, p, p, channels)
        return pixels.permute(4, 0, 2, 1, 3).reshape(channels, g * p, g * p)[: model.out_channels]

    labels = [None] * len(x) if y is None else y
    return torch.stack([one(*each) for each in zip(x, t.double(), labels, strict=True)])


@pytest.mark.parametrize("num_classes", [10, 0])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("family", ["dit", "sit"])
def test_outputs_follow_the_equations(family, conditioning, num_classes):
    options = {"conditioning": conditioning, "num_classes": num_classes, "in_channels": 3, "learn_sigma": True}
    model = lively(f"{family}_ti_2", **options).double()
    x, t, y = inputs(model, batch=3)
    with torch.no_grad():
        assert relative_error(model(x, t, y), reference(model, x, t, y)) < 4e-6  # frequencies and phases are float32


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_comparison_notices_a_change_of_any_parameter(conditioning):
    model = lively("dit_ti_2", conditioning=conditioning, depth=2).double()
    x, t, _ = inputs(model, batch=3)
    y = torch.tensor([0, 4, 10])
    inert = {unused.name for unused in model.unused_weights()}
    with torch.no_grad():
        expected = model(x, t, y)
        for name, parameter in model.named_parameters():
            before = parameter.clone()
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            change = relative_error(model(x, t, y), expected)
            parameter.copy_(before)
            assert change > 1e-5 or name in inert, name


def test_gates_of_one_make_adaln_zero_adaln():
    gated, plain = lively("dit_ti_2").double(), lively("dit_ti_2_adaln").double()
    state = plain.state_dict()
    for name, value in gated.state_dict().items():
        if name.startswith("blocks.") and "adaLN_modulation" in name:
            parts = value.chunk(6)
            gate = torch.ones_like(parts[2]) if name.endswith("bias") else torch.zeros_like(parts[2])
            value.copy_(torch.cat([*parts[:2], gate, *parts[3:5], gate]))
            state[name] = torch.cat([*parts[:2], *parts[3:5]])
        else:
            state[name] = value
    plain.load_state_dict(state)
    given = inputs(gated)
    assert relative_error(gated(*given), plain(*given)) < 1e-12


def test_in_context_tokens_stand_in_front_and_are_removed():
    for num_classes, extra in [(10, 2), (0, 1)]:
        model = lively("dit_ti_2_incontext", num_classes=num_classes)
        assert model.num_extra_tokens == extra
        output, tokens = model.forward_intermediates(*inputs(model))
        assert {value.shape for value in tokens.values()} == {(2, extra + 16, 64)}
        assert output.shape == (2, 1, 8, 8)
    assert {lively(f"dit_ti_2{suffix}").num_extra_tokens for suffix in ("", "_adaln", "_crossattn")} == {0}


@pytest.mark.parametrize("conditioning", OTHERS)
def test_fresh_models_return_zero_and_are_plain_transformers(conditioning):
    model = ditzoo.create("dit_ti_2", conditioning=conditioning)
    output = model(*inputs(model))
    assert torch.equal(output, torch.zeros_like(output))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif "adaLN_modulation" in name or name.startswith("final_layer") or name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.any(), name


@pytest.mark.parametrize("layer", ["cross_attn.q", "cross_attn.kv", "cross_attn.proj"])
def test_cross_attention_starts_xavier_uniform(layer):
    weight = ditzoo.create("dit_ti_2_crossattn").get_parameter(f"blocks.1.{layer}.weight")
    bound = (6 / sum(weight.shape)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_registered_names_build_their_conditionings():
    names = {"adaln": "adaln", "crossattn": "cross_attention", "incontext": "in_context"}
    for size in ("ti", "xl"):
        assert ditzoo.model_info(f"dit_{size}_2").config["conditioning"] == "adaln_zero"
        for suffix, conditioning in names.items():
            assert ditzoo.model_info(f"dit_{size}_2_{suffix}").config["conditioning"] == conditioning


@pytest.mark.parametrize("model_cls", [DiT, SiT])
@pytest.mark.parametrize("value", ["adaln-zero", "", None, 3])
def test_an_unknown_conditioning_is_named(model_cls, value):
    message = (
        f"{model_cls.__name__}: unknown conditioning {value!r}; choose one of adaln_zero, adaln, cross_attention, in"
    )
    with pytest.raises(ValueError, match=message):
        model_cls(input_size=8, hidden_size=32, depth=1, num_heads=4, conditioning=value)
    with pytest.raises(ValueError, match=message):
        ditzoo.create(f"{model_cls.__name__.lower()}_ti_2", conditioning=value)
