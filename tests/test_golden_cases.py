"""The golden cases themselves: that redrawn weights are the recorded ones, and that a checksum would tell others."""

import pytest
import torch

from tests.golden_cases import CASES, FOLDER, Case, checksum, draw_state, golden_case, golden_facts, golden_tensors
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
