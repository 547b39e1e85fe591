"""Every family against tensors that its official implementation computed, and proof that this comparison can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ditzoo
import ditzoo.layers
import ditzoo.models.diffit.latent
import ditzoo.models.mdt
import ditzoo.models.uvit
from ditzoo.diffusion import guide
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Guidance
from tests.golden_cases import CASES, Case, golden_case, golden_facts, relative_error
from tests.zoo import on_meta

Compute = Callable[[DiffusionTransformer, Case, torch.dtype], Tensor]


def forward(model, case, dtype):
    return model(case["in.x"].to(dtype), case["in.t"], case.tensors.get("in.y"))


def forward_tfrac(model, case, dtype):
    return model(case["in.x"].to(dtype), case["in.t_frac"], case.tensors.get("in.y"))


def forward_train(model, case, dtype):
    """In train mode, where the original drops labels by draws of its own and this library by none."""
    dropped = case["in.train_label_rand"] < 0.1
    labels = torch.where(dropped, model.null_label, case["in.y"])
    return model.train()(case["in.x"].to(dtype), case["in.t"], labels)


def recorded_mask(model, case) -> ditzoo.TokenMask:
    """The mask of the recorded draws. MDTv2 computes its ratio in float32."""
    ratio = case["in.mask_ratio_drawn"] if "in.mask_ratio_rand" in case.tensors else model.mask_ratio
    batch = case["in.x"].shape[0]
    return ditzoo.random_token_mask(batch, model.num_tokens(), ratio, noise=case["in.mask_noise"])


def forward_masked(model, case, dtype):
    mask = recorded_mask(model, case)
    return model(case["in.x"].to(dtype), case["in.t"], case["in.y"], mask=mask)


def recorded_guidance(case, output) -> Guidance:
    kwargs = case.facts["cfg_kwargs"][output]
    if "scale_pow" not in kwargs:
        return Guidance(scale=kwargs["cfg_scale"], channels=3)
    assert kwargs["diffusion_steps"] == 1000
    return Guidance(scale=kwargs["cfg_scale"], channels=3, schedule="power_cosine", power=kwargs["scale_pow"])


def guided(output: str) -> Compute:
    """The official code returns [guided | guided]; the other channels are conditional in the first half and
    unconditional in the second. Ours returns the first half."""

    def compute(model, case, dtype):
        x, t, y = (case[f"in.cfg_{name}"].chunk(2) for name in "xty")
        assert torch.equal(t[0], t[1])
        assert set(y[1].tolist()) == {model.null_label}
        guidance = recorded_guidance(case, output)
        first = guide(model, guidance, model.null_label)(x[0].to(dtype), t[0], y[0])
        null = model(x[0].to(dtype), t[1], y[1])
        second = torch.cat([first[:, : guidance.channels], null[:, guidance.channels :]], dim=1)
        return torch.cat([first, second])

    return compute


def guided_uvit(model, case, dtype):
    guidance = Guidance(scale=0.4, convention="uvit")
    model = guide(model, guidance, model.null_label)
    return model(case["in.x"].to(dtype), case["in.t_frac"], case["in.y"])


COMPUTE: dict[str, Compute] = {
    "out.forward": forward,
    "out.forward_tfrac": forward_tfrac,
    "out.forward_train": forward_train,
    "out.forward_masked": forward_masked,
    "out.forward_with_cfg": guided("out.forward_with_cfg"),
    "out.forward_with_cfg_pow001": guided("out.forward_with_cfg_pow001"),
    "out.forward_with_cfg_none": forward,  # the official guidance without a scale
    "out.guided": guided_uvit,
}
OUTPUTS = [(case, output) for case in CASES for output in golden_facts(case)["outputs"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("case", "output"), OUTPUTS)
def test_output_equals_the_official_one(case, output, dtype):
    case = golden_case(case)
    with torch.no_grad():
        computed = COMPUTE[output](case.model(dtype), case, dtype)
    assert computed.dtype == dtype
    assert relative_error(computed, case[output]) < case.tolerance(dtype)


def test_every_published_class_has_golden_cases():
    published = [name for name in ditzoo.list_models() if not ditzoo.model_info(name).ours]
    published = [name for name in published if on_meta(name).has_original]
    classes = {ditzoo.model_info(name).model_cls for name in published}
    assert {golden_case(case).model_cls.__name__ for case in CASES} == classes


@pytest.mark.parametrize("case", [case for case in CASES if "in.ids_keep" in golden_case(case).tensors])
def test_mask_equals_the_official_one(case):
    case = golden_case(case)
    mask = recorded_mask(case.model(), case)
    assert torch.equal(mask.ids_keep, case["in.ids_keep"])
    assert torch.equal(mask.ids_restore, case["in.ids_restore"])
    assert torch.equal(mask.mask, case["in.mask"])


@pytest.mark.parametrize("case", CASES)
def test_official_state_dict_loads_strictly_and_is_left_as_it_was(case):
    case = golden_case(case)
    model, state = case.model_cls(**case.options), case.state
    before = list(state)
    result = model.load_state_dict(state, strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert list(state) == before
    constant = {key for key in state if key.rpartition(".")[2] in model.constant_buffers}
    assert set(model.state_dict()) == set(state) - constant
    assert bool(constant) == case.facts["constructor"].startswith(("MDT", "DiffiT"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_official_state_dict_loads_into_a_model_inside_another():
    case = golden_case("mdtv1")
    outer = nn.ModuleDict({"net": case.model_cls(**case.options)})
    outer.load_state_dict({f"net.{key}": value for key, value in case.state.items()}, strict=True)
    output = outer["net"](case["in.x"], case["in.t"], case["in.y"])
    assert relative_error(output, case["out.forward"]) < case.tolerance()


@pytest.mark.parametrize("change", ["missing", "superfluous", "other shape"])
def test_another_state_dict_is_refused(change):
    case = golden_case("diffit")
    state = case.state
    if change == "missing":
        del state["blocks.1.attn.qkv_temb.bias"]
    elif change == "superfluous":
        state["blocks.1.attn.relative_position"] = torch.zeros(1)
    else:
        state["pos_embed"] = state["pos_embed"][:, :9]
    with pytest.raises(RuntimeError, match=r"qkv_temb|relative_position|pos_embed"):
        case.model_cls(**case.options).load_state_dict(state)


# Mistakes that the comparison must see: name -> (cases, change of the model).


def wrong_gelu(model, monkeypatch):
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "none" if module.approximate == "tanh" else "tanh"


def wrong_eps(model, monkeypatch):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if module.eps == 1e-6 else 1e-6


def no_relative_bias(model, monkeypatch):
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            parameter.data.zero_()


def transposed_relative_bias(model, monkeypatch):
    for module in (ditzoo.models.mdt, ditzoo.models.diffit.latent):
        index = module.relative_position_index
        monkeypatch.setattr(
            module, "relative_position_index", lambda *a, index=index, **kw: index(*a, **kw).T.contiguous()
        )


def rows_for_columns(model, monkeypatch):
    column, row = model.pos_embed.data.chunk(2, dim=-1)
    model.pos_embed.data = torch.cat([row, column], dim=-1)


def cosines_for_sines(model, monkeypatch):
    weight = model.t_embedder.mlp[0].weight.data
    model.t_embedder.mlp[0].weight.data = weight.roll(weight.shape[1] // 2, dims=1)


def time_before_label(model, monkeypatch):
    order = [1, 0, *range(2, model.pos_embed.shape[1])]
    model.pos_embed.data = model.pos_embed.data[:, order]


def scale_for_shift(model, monkeypatch):
    for name, module in model.named_modules():
        if name.endswith("adaLN_modulation.1"):
            parts = module.weight.data.chunk(module.out_features // module.in_features)
            module.weight.data = torch.cat([parts[1], parts[0], *parts[2:]])


def values_for_queries(model, monkeypatch):
    for name, module in model.named_modules():
        if name.endswith("attn.qkv"):
            q, k, v = module.weight.data.chunk(3)
            module.weight.data = torch.cat([v, k, q])


def skip_before_tokens(model, monkeypatch):
    for name, module in model.named_modules():
        if name.endswith("skip_linear"):
            module.weight.data = module.weight.data.roll(module.in_features // 2, dims=1)


def first_in_first_out(model, monkeypatch):
    blocks = getattr(model, "en_outblocks", None) or model.out_blocks
    order = []
    for block in getattr(model, "en_inblocks", None) or model.in_blocks:
        block.register_forward_hook(lambda module, args, output: order.append(output))
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: (*args[:-1], order.pop(0)))


def channel_slowest(model, monkeypatch):
    layer = getattr(model, "decoder_pred", None) or model.final_layer.linear
    for parameter in layer.parameters():
        pixels = parameter.data.unflatten(0, (model.patch_size**2, model.out_channels))
        parameter.data = pixels.transpose(0, 1).flatten(0, 1)


def no_condition_in_attention(model, monkeypatch):
    for block in model.blocks:
        block.attn.qkv_temb.weight.data.zero_()


def no_positions_in_decoder(model, monkeypatch):
    model.decoder_pos_embed.data.zero_()


PROBES = ["dit_probe", "uvit_probe", "mdtv1_probe", "mdtv2_probe", "diffit_probe"]
MISTAKES = {
    wrong_gelu: PROBES,
    wrong_eps: PROBES,
    no_relative_bias: ["mdtv1", "mdtv2", "diffit", "diffit_in64_p8"],
    transposed_relative_bias: ["mdtv1", "mdtv2", "diffit", "diffit_in64_p8"],
    rows_for_columns: ["dit", "dit_nosigma_p4", "mdtv1", "mdtv2", "diffit", "diffit_in64_p8"],
    cosines_for_sines: ["dit", "mdtv1", "mdtv2", "diffit"],
    time_before_label: ["uvit"],
    scale_for_shift: ["dit", "mdtv1", "mdtv2"],
    values_for_queries: ["dit", "uvit", "uvit_conv_uncond", "mdtv1", "mdtv2", "diffit"],
    skip_before_tokens: ["uvit", "uvit_conv_uncond", "mdtv2"],
    first_in_first_out: ["uvit", "uvit_conv_uncond", "mdtv2"],
    channel_slowest: ["dit", "dit_nosigma_p4", "uvit", "uvit_conv_uncond", "mdtv1", "mdtv2", "diffit"],
    no_condition_in_attention: ["diffit", "diffit_in64_p8"],
    no_positions_in_decoder: ["mdtv1", "mdtv2"],
}


@pytest.mark.parametrize(
    ("mistake", "case"), [(mistake, case) for mistake, cases in MISTAKES.items() for case in cases]
)
def test_a_mistake_is_noticed(mistake, case, monkeypatch):
    case = golden_case(case)
    model = case.model()
    mistake(model, monkeypatch)
    with torch.no_grad():
        error = relative_error(forward(model, case, torch.float32), case["out.forward"])
    assert error > 2 * case.tolerance()


def masked_and_kept_exchanged(mask):
    return mask._replace(mask=1 - mask.mask)


def kept_tokens_not_restored(mask):
    return mask._replace(ids_restore=torch.arange(mask.mask.shape[1]).expand_as(mask.ids_restore))


@pytest.mark.parametrize("mistake", [masked_and_kept_exchanged, kept_tokens_not_restored])
@pytest.mark.parametrize("case", ["mdtv1", "mdtv2"])
def test_a_mistake_in_the_mask_is_noticed(case, mistake):
    case = golden_case(case)
    model = case.model()
    mask = mistake(recorded_mask(model, case))
    with torch.no_grad():
        output = model(case["in.x"], case["in.t"], case["in.y"], mask=mask)
    assert relative_error(output, case["out.forward_masked"]) > 100 * case.tolerance()


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("dit", {"channels": None}),
        ("dit", {"scale": 1.4}),
        ("dit", {"convention": "uvit"}),
        ("mdtv1", {"schedule": "constant"}),
        ("mdtv2", {"power": 3.0}),
        ("diffit", {"channels": 4}),
        ("diffit_in64_p8", {"schedule": "power_cosine"}),
    ],
)
def test_a_mistake_in_the_guidance_is_noticed(case, change):
    case = golden_case(case)
    model = case.model()
    x, t, y = (case[f"in.cfg_{name}"].chunk(2)[0] for name in "xty")
    asked = recorded_guidance(case, "out.forward_with_cfg")
    wrong = Guidance(**{**asked.__dict__, **change})
    with torch.no_grad():
        output = guide(model, wrong, model.null_label)(x, t, y)
    expected = case["out.forward_with_cfg"].chunk(2)[0]
    assert relative_error(output, expected) > 100 * case.tolerance()
