"""DiT's weights in diffusers' class and back, and how far diffusers' own time frequencies move its output."""

from __future__ import annotations

import re
import sys
import warnings

import pytest
import torch
from torch import nn

import ditzoo
from ditzoo.interop import from_diffusers, patch_diffusers, to_diffusers
from ditzoo.interop.dit import DEVIATION
from ditzoo.weights.diffusers_names import diffusers_state
from tests.golden_cases import golden_case, relative_error
from tests.zoo import TINY, inputs, lively, on_meta

#: Recorded DiTs whose position table is the sin-cos one.
GOLDEN = ["dit", "dit_nosigma_p4"]
MODELS = {
    **{name: lambda name=name: golden_case(name).model() for name in GOLDEN},
    "one channel": lambda: lively("dit_ti_2"),
    "latents": lambda: lively("dit_s_4", in_channels=4, depth=2, learn_sigma=True, num_classes=7),
    "half": lambda: lively("dit_ti_2", depth=2).to(torch.bfloat16),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def outputs(model, transformer):
    x, t, y = inputs(model, batch=3)
    with torch.no_grad():
        return model(x, t, y), transformer(x, t, y).sample


def unpatched(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return to_diffusers(model)


# There.


def test_patched_module_computes_what_the_model_does(model):
    expected, found = outputs(model, to_diffusers(model, patch=True))
    assert found.dtype == expected.dtype == model.dtype
    assert relative_error(found, expected) < (2e-5 if model.dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("name", GOLDEN)
def test_patched_module_computes_what_the_official_code_did(name):
    case = golden_case(name)
    transformer = to_diffusers(case.model(), patch=True)
    for t, output in (("in.t", "out.forward"), ("in.t_frac", "out.forward_tfrac")):
        if output in case.outputs:
            with torch.no_grad():
                found = transformer(case["in.x"], case[t], case["in.y"]).sample
            assert relative_error(found, case[output]) < 2e-5


def test_every_weight_counts():
    model = lively("dit_ti_2", depth=2)
    transformer = to_diffusers(model, patch=True)
    expected, found = outputs(model, transformer)
    assert relative_error(found, expected) < 2e-5
    for name, parameter in transformer.named_parameters():
        if name.endswith("to_k.bias"):
            continue  # the softmax cancels it
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.5 * torch.randn(parameter.shape)
        assert relative_error(outputs(model, transformer)[1], expected) > 1e-4, name
        parameter.data.copy_(kept)


def test_weights_under_diffusers_names():
    model = lively("dit_ti_2", depth=2)
    state, official = diffusers_state(model), model.state_dict()
    block, emb = "transformer_blocks.1.", "transformer_blocks.1.norm1.emb."
    expected = {
        "pos_embed.proj.weight": official["x_embedder.proj.weight"],
        f"{block}attn1.to_q.weight": official["blocks.1.attn.qkv.weight"][:64],
        f"{block}attn1.to_k.bias": official["blocks.1.attn.qkv.bias"][64:128],
        f"{block}attn1.to_v.weight": official["blocks.1.attn.qkv.weight"][128:],
        f"{block}attn1.to_out.0.bias": official["blocks.1.attn.proj.bias"],
        f"{block}ff.net.0.proj.weight": official["blocks.1.mlp.fc1.weight"],
        f"{block}ff.net.2.weight": official["blocks.1.mlp.fc2.weight"],
        f"{block}norm1.linear.weight": official["blocks.1.adaLN_modulation.1.weight"],
        f"{emb}timestep_embedder.linear_1.bias": official["t_embedder.mlp.0.bias"],
        f"{emb}timestep_embedder.linear_2.weight": official["t_embedder.mlp.2.weight"],
        f"{emb}class_embedder.embedding_table.weight": official["y_embedder.embedding_table.weight"],
        "proj_out_1.weight": official["final_layer.adaLN_modulation.1.weight"],
        "proj_out_2.bias": official["final_layer.linear.bias"],
    }
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    # Patches 2; a block 5 embedders' tensors and 7 layers' weights and biases; last layers 4.
    assert len(state) == 2 + 2 * (5 + 2 * 7) + 4


def test_module_is_diffusers_own_and_shares_nothing(diffusers):
    model = lively("dit_ti_2", depth=2)
    seed = torch.random.get_rng_state()
    transformer = to_diffusers(model, patch=True)
    assert torch.equal(torch.random.get_rng_state(), seed), "random numbers were drawn"
    assert type(transformer) is diffusers.DiTTransformer2DModel
    assert not transformer.training
    assert all(parameter.requires_grad for parameter in transformer.parameters())
    config = {
        **{"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 1, "out_channels": 1, "num_layers": 2},
        **{"sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_eps": 1e-6},
    }
    assert config.items() <= dict(transformer.config).items()
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*transformer.parameters(), *model.parameters())]
    assert len(set(storages)) == len(storages)


# How far diffusers moves the output.


def moved(model, t: int, *, shift: int, eps: float) -> float:
    """Relative error of diffusers' module with its time frequencies (shift 1) or DiT's (0), and an eps."""
    transformer = to_diffusers(model, patch=True)
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps = shift, eps
    x, _, y = inputs(model, batch=3)
    with torch.no_grad():
        t = torch.full((3,), t)
        return relative_error(transformer(x, t, y).sample, model(x, t, y))


def test_stock_module_deviates_on_the_recorded_case_as_documented():
    case = golden_case("dit")
    transformer = unpatched(case.model())
    with torch.no_grad():
        found = transformer(case["in.x"], case["in.t"], case["in.y"]).sample
    errors = {int(t): relative_error(a, b) for t, a, b in zip(case["in.t"], found, case["out.forward"], strict=True)}
    assert errors[0] < 1e-6  # all phases are 0
    assert errors[417] == pytest.approx(0.104, abs=0.001)
    assert errors[999] == pytest.approx(0.179, abs=0.001)
    assert {t: round(100 * error) for t, error in errors.items() if t} == DEVIATION


def test_deviation_comes_from_the_frequencies():
    model = golden_case("dit").model()
    for t in (1, 100, 999):
        assert moved(model, t, shift=0, eps=1e-6) < 2e-5
        assert moved(model, t, shift=0, eps=1e-5) < 2e-5  # diffusers' default eps
        assert moved(model, t, shift=1, eps=1e-6) > 1e-4
    assert moved(model, 999, shift=1, eps=1e-6) > 0.1


def test_warning_says_by_how_much_and_where(recwarn):
    to_diffusers(lively("dit_ti_2"), patch=True)
    assert recwarn.list == []
    with pytest.warns(UserWarning, match="deviates from this model") as caught:
        to_diffusers(lively("dit_ti_2"))
    assert str(caught[0].message) == (
        "The DiTTransformer2DModel that to_diffusers() returns deviates from this model: diffusers computes the "
        "frequencies of the time embedding in another way than DiT's authors. That moved the output by 10 % at t = 417 "
        "and 18 % at t = 999 of its largest value in the case of docs/diffusers.md; other weights, other numbers. To "
        "make it exact in memory: to_diffusers(model, patch=True)."
    )
    assert caught[0].filename == __file__


def test_patch_works_on_a_module_of_diffusers_defaults(diffusers):
    model = lively("dit_ti_2", in_channels=4)
    reloaded = diffusers.DiTTransformer2DModel.from_config({**unpatched(model).config, "norm_eps": 1e-5})
    reloaded.load_state_dict(diffusers_state(model))
    expected, before = outputs(model, reloaded.eval())
    assert relative_error(before, expected) > 1e-2
    assert patch_diffusers(reloaded) is reloaded
    assert relative_error(outputs(model, reloaded)[1], expected) < 2e-5
    assert reloaded.config.norm_eps == 1e-6


# Back.


def test_round_trip_is_bit_equal(model):
    back = from_diffusers(to_diffusers(model, patch=True))
    assert type(back) is ditzoo.models.DiT
    assert back.config == model.config
    state, again = model.state_dict(), back.state_dict()
    assert set(again) == set(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name
    assert not back.training
    assert [name for name, p in back.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_round_trip_from_diffusers_is_bit_equal(diffusers):
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, out_channels=8, num_embeds_ada_norm=3
    )
    first, *others = theirs.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    model = from_diffusers(theirs, class_dropout_prob=0.2)
    assert (model.config["class_dropout_prob"], model.training, model.null_label) == (0.2, True, 3)
    again = to_diffusers(model, patch=True).state_dict()
    assert set(again) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again[name], tensor), name
    assert torch.equal(model.pos_embed, theirs.pos_embed.pos_embed)
    assert torch.equal(model.pos_embed, ditzoo.models.DiT(**model.config).pos_embed)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.zero_()
    assert theirs.transformer_blocks[0].ff.net[0].proj.weight.any(), "weights are shared"


# What cannot be converted.


@pytest.mark.parametrize("name", [name for name in TINY if type(on_meta(name)) is not ditzoo.models.DiT])
def test_other_families_are_refused(name):
    model = on_meta(name)
    message = f"diffusers has a class for DiT alone; a {type(model).__name__} cannot be converted. ditzoo.interop.Diff"
    with pytest.raises(TypeError, match=message):
        to_diffusers(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditioning": "adaln"}, "has no DiT with conditioning='adaln'; it needs 'adaln_zero'"),
        ({"conditioning": "cross_attention"}, "conditioning='cross_attention'; it needs 'adaln_zero'"),
        ({"conditioning": "in_context"}, "conditioning='in_context'; it needs 'adaln_zero'"),
        ({"num_classes": 0}, "num_classes=0; it needs 1 or more, a model with labels"),
        ({"class_dropout_prob": 0.0}, "class_dropout_prob=0.0; it needs above 0, which adds the null label"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0; it needs 4"),
    ],
)
def test_options_that_diffusers_does_not_have(options, message):
    with pytest.raises(ValueError, match=f"{message}.*DiffusersTransformer"):
        to_diffusers(on_meta("dit_ti_2", **options))


def test_changed_position_table_is_refused():
    with pytest.raises(ValueError, match="pos_embed is not the sin-cos table any more, and diffusers always computes"):
        to_diffusers(golden_case("dit_probe").model())
    to_diffusers(lively("dit_ti_2", depth=1).half().float(), patch=True)  # rounded is not changed


@pytest.fixture
def theirs():
    return to_diffusers(lively("dit_ti_2", depth=2), patch=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_fn": "geglu"}, "no counterpart of activation_fn='geglu'; what works is 'gelu-approximate'"),
        ({"attention_bias": False}, "attention_bias=False; what works is True"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True; what works is False"),
        ({"norm_eps": 1e-3}, "norm_eps=0.001; what works is 1e-6, DiT's, or 1e-5"),
        ({"dropout": 0.1}, "dropout=0.1; what works is 0"),
        ({"out_channels": 3}, "out_channels=3; what works is 4 or, with a variance, 8"),
    ],
)
def test_options_that_dit_does_not_have(diffusers, options, message):
    small = {"num_attention_heads": 1, "attention_head_dim": 8, "num_layers": 1, "sample_size": 4}
    with pytest.raises(ValueError, match=message):
        from_diffusers(diffusers.DiTTransformer2DModel(**small, **options))


def test_channels_that_diffusers_leaves_out(diffusers):
    small = {"num_attention_heads": 1, "attention_head_dim": 8, "num_layers": 1, "sample_size": 4}
    model = from_diffusers(diffusers.DiTTransformer2DModel(**small))
    assert (model.out_channels, model.learn_sigma) == (4, False)


def test_other_classes_are_refused(diffusers):
    model = on_meta("dit_ti_2")
    for function in (from_diffusers, patch_diffusers):
        with pytest.raises(TypeError, match=f"{function.__name__} takes a diffusers.DiTTransformer2DModel, not a DiT"):
            function(model)


def test_names_of_other_weights_are_named(theirs):
    theirs.transformer_blocks[1].attn1.to_v = nn.Identity()
    name = "transformer_blocks.1.attn1.to_v"
    with pytest.raises(ValueError, match=f"the transformer lacks {name}.bias, {name}.weight. Convert it as diffusers"):
        from_diffusers(theirs)


def test_superfluous_names_are_named(theirs):
    theirs.adapter = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    found = "adapter.0.bias, adapter.0.weight, adapter.1.bias and 1 more"
    with pytest.raises(ValueError, match=f"the transformer has, besides those of the class, {found}. Convert"):
        from_diffusers(theirs)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("transformer_blocks.0.attn1.to_k.weight", (64, 32), (64, 64)),
        ("transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight", (10, 64), (11, 64)),
        ("proj_out_2.bias", (8,), (4,)),
    ],
)
def test_wrong_shapes_are_named(theirs, name, shape, wanted):
    path, _, kind = name.rpartition(".")
    setattr(theirs.get_submodule(path), kind, nn.Parameter(torch.zeros(shape)))
    message = f"{name} has shape {shape}, but the transformer's configuration makes it {wanted}"
    with pytest.raises(ValueError, match=re.escape(message)):
        from_diffusers(theirs)


def test_blocks_with_embedders_of_their_own_are_refused(theirs):
    with torch.no_grad():
        theirs.transformer_blocks[1].norm1.emb.timestep_embedder.linear_2.bias[3] += 1e-6
    message = (
        "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias differs from transformer_blocks.0.norm1.emb."
        "timestep_embedder.linear_2.bias. diffusers trains the embedders of each block apart, and DiT has one "
        "t_embedder for all"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        from_diffusers(theirs)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for function in (to_diffusers, from_diffusers, patch_diffusers):
        message = f'{function.__name__} needs diffusers: pip install "ditzoo[diffusers]"'
        with pytest.raises(ImportError, match=re.escape(message)):
            function(on_meta("dit_ti_2"))
