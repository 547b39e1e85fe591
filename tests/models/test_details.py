"""What is known of a model comes back from JSON as it was, and nothing else does."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ditzoo
from ditzoo.models import EvaluationResult, ModelDetails
from ditzoo.recipe import Recipe

RECIPE = Recipe(prediction="velocity", schedule="flow_linear", sampler="heun", licence="MIT", source="a drawer")

#: Every character but those of control.
printed = st.characters(exclude_categories=("Cc", "Cf", "Cs"))
names = st.text(printed, min_size=1, max_size=10)
paragraphs = st.text(printed | st.sampled_from("\n\t"), max_size=10)
texts = st.none() | paragraphs
results = st.builds(
    EvaluationResult,
    metric=names,
    value=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6),
    dataset=names,
    settings=paragraphs,
    source=paragraphs,
)
details = st.builds(
    ModelDetails,
    name=st.none() | names,
    recipe=st.sampled_from([None, RECIPE]),
    label_names=st.none() | st.lists(names, max_size=3).map(tuple),
    data=texts,
    results=st.lists(results, max_size=2).map(tuple),
    training_command=texts,
)


@given(details)
def test_details_survive_json(one):
    assert ModelDetails.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one


def test_licence_and_source_are_the_recipes():
    assert (ModelDetails(recipe=RECIPE).licence, ModelDetails(recipe=RECIPE).source) == ("MIT", "a drawer")
    assert (ModelDetails().licence, ModelDetails().source) == (None, None)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"names": "x"}, ValueError, "unknown entries: 'names'."),
        ({"name": 5}, TypeError, "name must be a string, got 5."),
        ({"data": ["x"]}, TypeError, "data must be a string, got ['x']."),
        ({"recipe": "fast"}, TypeError, "recipe: it must be a mapping of entries to values, or None, got 'fast'."),
        ({"recipe": {"schedule": "edm"}}, ValueError, "recipe: a recipe needs prediction."),
        ({"label_names": "abc"}, TypeError, "label_names must be a list of strings, got 'abc'."),
        ({"label_names": ["a", 1]}, TypeError, "label_names must be a list of strings, got ['a', 1]."),
        ({"results": {}}, TypeError, "results: it must be a list of mappings of entries to values, got {}."),
        ({"results": [{"metric": "FID"}]}, ValueError, "results: a result lacks dataset, value."),
        (
            {"results": [{"metric": "FID", "value": 1, "dataset": "x", "steps": 3}]},
            ValueError,
            "results: unknown entries: 'steps'.",
        ),
        (
            {"results": [{"metric": "FID", "value": "2.27", "dataset": "x"}]},
            TypeError,
            "results: the value of 'FID' must be a number, got '2.27'.",
        ),
        (
            {"results": [{"metric": "", "value": 1, "dataset": "x"}]},
            ValueError,
            "results: a result needs a metric, got ''.",
        ),
    ],
)
def test_what_no_details_have(values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ModelDetails.from_dict(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400])
def test_a_result_is_a_number(value):
    with pytest.raises(ValueError, match=r"the value of 'FID' must be finite, got (nan|inf|10{59}); leave it out"):
        EvaluationResult(metric="FID", value=value, dataset="x")


@pytest.mark.parametrize("control", ["\x1b", "\0", "\r", "\x7f", "\x9b", "\u202e", "\ud800", "\n"], ids=ascii)
def test_texts_do_not_drive_terminals(control):
    text = f"a{control}b"
    one_line = ["name", "label_names"]
    for entry in one_line + ["data", "training_command"] * (control != "\n"):
        kind = "line breaks or other control characters" if entry in one_line else "control characters"
        message = rf"must be a text without {kind}, got 'a\\.+b'; take them out\."
        with pytest.raises(ValueError, match=message) as raised:
            ModelDetails(**{entry: [text] if entry == "label_names" else text})
        assert str(raised.value).isprintable()
    if control == "\n":
        assert ModelDetails(data=text, training_command=text).data == text
        return
    for entry in ("metric", "dataset", "settings", "source"):
        with pytest.raises(ValueError, match=rf"{entry} of a result must be a text without control characters"):
            EvaluationResult(**{"metric": "FID", "value": 1.0, "dataset": "x", entry: text})
    for entry in ("licence", "source", "latent_codec"):
        with pytest.raises(ValueError, match=rf"{entry} must be a text without control characters"):
            dataclasses.replace(RECIPE, **{entry: text})


def test_a_new_model_knows_its_name_and_recipe_but_claims_no_weights():
    model = ditzoo.create("dit_xl_2.in256", depth=1, hidden_size=64, num_heads=4)
    info = ditzoo.model_info("dit_xl_2.in256")
    assert model.details.name == "dit_xl_2.in256"
    assert model.details.recipe == dataclasses.replace(info.recipe, licence=None, source=None)
    assert (model.details.data, model.details.licence, model.details.label_names) == (None, None, None)
