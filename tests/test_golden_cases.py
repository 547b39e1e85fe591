"""The golden cases themselves: redrawn weights are the recorded ones, and a wrong output is told from a right one."""

import pytest
import torch

from tests.golden_cases import (
    CASES,
    FOLDER,
    PROCESS_CASES,
    Case,
    checksum,
    draw_state,
    golden_case,
    golden_facts,
    golden_tensors,
    process_case,
)
from tests.strip_golden import strip, to_json

#: Whose weights are stored as they were recorded, so that the redraw is held to more than its checksum.
STORED = "dit_probe"


def test_one_case_has_its_weights_stored():
    assert [case for case in CASES if golden_case(case).stored_state] == [STORED]


def test_redrawn_weights_are_the_stored_ones_bit_for_bit():
    case = golden_case(STORED)
    drawn = draw_state(case.packaged)
    assert case.state.keys() == case.stored_state.keys() == drawn.keys()
    assert len(drawn) == 32
    for key, value in case.stored_state.items():
        assert (value.dtype, drawn[key].dtype) == (torch.float32, torch.float32)
        assert torch.equal(value, drawn[key]), key


@pytest.mark.parametrize("case", CASES)
def test_weights_have_the_checksum_of_the_recorded_ones(case):
    assert checksum(golden_case(case).state) == golden_facts(case)["weights"]["sha256"]


def test_the_checksum_is_that_of_names_types_shapes_and_bytes():
    assert checksum({}) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    state = {"b": torch.tensor([1, -2]), "a": torch.tensor([[0.5, 0.0]])}
    assert checksum(state) == checksum(dict(reversed(state.items())))
    others = [
        {"b": state["b"]},
        {"c": state["b"], "a": state["a"]},
        {"b": state["a"], "a": state["b"]},
        state | {"b": state["b"].int()},
        state | {"a": state["a"].T},
        state | {"a": torch.tensor([[0.5, -0.0]])},
        state | {"a": state["a"].nextafter(torch.ones(1))},
    ]
    assert len({checksum(other) for other in [state, *others]}) == 8


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("dit", {"tag": "ditzoo-golden-v1/visible/dit/1002"}),
        ("mdtv1_probe", {"positions_from_table": False}),
        ("mdtv1_probe", {"post_scale": {}}),
        ("uvit", {"post_scale": {"norm.bias": 2.0}}),
        ("diffit", {"post_scale": {"^final_layer.linear.bias": 1.0000001}}),
    ],
)
def test_other_draws_have_other_checksums(case, change):
    case = golden_case(case)
    changed = Case(case.name, case.facts | {"weights": case.facts["weights"] | change}, case.tensors)
    assert checksum(draw_state(changed.packaged)) != case.facts["weights"]["sha256"]


def test_the_state_is_the_readers_to_change():
    case = golden_case("diffit")
    case.state["mask"] = case.state["x_embedder.proj.bias"].zero_()
    assert checksum(case.state) == case.facts["weights"]["sha256"]


def recorded(name: str) -> Case:
    """A case as it is recorded: weights stored, and no checksum."""
    case = golden_case(name)
    weights = {key: value for key, value in case.facts["weights"].items() if key != "sha256"}
    tensors = {key: value for key, value in case.tensors.items() if key.startswith(("in.", "out."))}
    tensors |= {f"state.{key}": value for key, value in case.state.items()}
    return Case(name, case.facts | {"weights": weights}, tensors)


@pytest.mark.parametrize("case", ["dit", "diffit", "uvit", "sit_probe"])
def test_the_files_are_what_the_script_leaves_of_a_recording(case):
    facts, tensors = strip(recorded(case))
    assert to_json(facts) == (FOLDER / f"{case}.json").read_text()
    assert tensors.keys() == golden_tensors(case).keys()
    assert all(torch.equal(value, golden_case(case)[key]) for key, value in tensors.items())


def test_weights_that_cannot_be_redrawn_are_not_dropped():
    case = recorded("mdtv1_probe")
    case["state.mask_token"][0, 0, 3] += 1e-6
    case.tensors["state.extra"] = torch.zeros(1)
    del case.tensors["state.blocks.0.attn.rel_pos_bias.relative_position_index"]
    with pytest.raises(ValueError, match=r"mdtv1_probe: the weights drawn again are not the recorded ones: ") as error:
        strip(case)
    names = ["blocks.0.attn.rel_pos_bias.relative_position_index", "extra", "mask_token"]
    assert str(error.value).endswith(": " + ", ".join(names) + ".")
    with pytest.raises(ValueError, match=r"^dit has no stored weights\.$"):
        strip(golden_case("dit"))


def test_the_folder_stays_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 5_000_000


def test_every_file_is_a_case():
    known = {"README.md", "param_counts.json"}
    known |= {f"{case}.{suffix}" for case in CASES + PROCESS_CASES for suffix in ("json", "safetensors")}
    assert {path.name for path in FOLDER.iterdir()} == known
    assert all(golden_facts(case)["case"] == case for case in CASES + PROCESS_CASES)


def test_the_process_cases_are_whole():
    outputs = {case: len(process_case(case).outputs) for case in PROCESS_CASES}
    assert outputs == {
        "diffusion_dit": 108,
        "diffusion_mdt": 54,
        "diffusion_uvit": 32,
        "diffusion_uvit_sde": 7,
        "sit_transport": 32,
    }


@pytest.mark.parametrize("case", PROCESS_CASES)
def test_a_looser_tolerance_is_that_of_an_output(case):
    case = process_case(case)
    looser = case.facts.get("tolerances", {})
    assert set(looser) <= set(case.outputs)
    assert all(2e-5 <= tolerance <= 5e-4 for tolerance in looser.values())
    assert {case.tolerance(output) for output in looser} == set(looser.values())


@pytest.mark.parametrize(
    ("case", "output", "tolerance"),
    [
        ("diffusion_dit", "out.spaced.1000_50", 0.0),
        ("diffusion_dit", "out.schedule.betas", 1e-12),
        ("diffusion_dit", "out.q_sample", 2e-5),
        ("diffusion_dit", "out.prior_bpd", 2e-4),
        ("diffusion_mdt", "out.v2.snr_f64", 1e-12),
        ("diffusion_mdt", "out.v1.grad_norm_total", 2e-5),  # of float32 gradients, summed in float64
        ("diffusion_mdt", "out.v1.grad.pos_embed", 5e-4),
        ("sit_transport", "out.ode_dopri5_default.sample", 5e-4),
        ("sit_transport", "out.ode_euler_num_steps10.model_t", 2e-5),
    ],
)
def test_tolerances_by_kind_of_output(case, output, tolerance):
    assert process_case(case).tolerance(output) == tolerance


@pytest.mark.parametrize("case", PROCESS_CASES)
def test_an_output_agrees_with_itself_and_with_no_other(case):
    case = process_case(case)
    for output in case.outputs:
        value = case[output]
        largest = value.abs().max()
        assert value.double().isfinite().all(), output
        assert case.agrees(output, value), output
        wrong = value.clone().flatten()
        if value.is_floating_point():
            wrong[-1] += 1.2 * case.tolerance(output) * largest
        else:
            wrong[-1] += 1
        assert not case.agrees(output, wrong.view_as(value)), output
        assert not case.agrees(output, torch.full(value.shape, torch.nan)), output


def test_an_output_of_another_shape_is_an_error():
    case = process_case("diffusion_dit")
    with pytest.raises(AssertionError, match=r"out\.prior_bpd: \(1,\), not \(3,\)"):
        case.agrees("out.prior_bpd", case["out.prior_bpd"][:1])


def test_networks_of_process_cases():
    assert type(process_case("diffusion_mdt").model("v2")).__name__ == "MDTv2"
    model = process_case("diffusion_uvit_sde").model(dtype=torch.float64)
    assert (type(model).__name__, model.num_classes, model.dtype) == ("UViT", 0, torch.float64)
