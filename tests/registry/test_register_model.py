"""`register_model`: models of one's own, and the classes and arguments that it refuses."""

import inspect
import math
import re
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import ditzoo
from ditzoo import Recipe
from ditzoo.cli import cli
from ditzoo.models import FAMILIES, DiffusionTransformer, DiT
from ditzoo.models.options import DERIVABLE_OPTIONS, SHARED_OPTIONS
from tests.own_models import WithOption
from tests.zoo import on_meta

BUILT_IN = [family.name for family in FAMILIES]
pytestmark = pytest.mark.usefixtures("registry_sandbox")


class OtherDiT(DiT):
    """A model of one's own."""


class Unfinished(DiffusionTransformer):
    """A model that keeps no contract."""

    def __init__(self) -> None:
        super().__init__({})


class OneChannel(DiffusionTransformer):
    """A model that gives the base class what its own constructor should take."""

    def __init__(
        self, *, input_size=8, mlp_ratio=4.0, num_classes=10, class_dropout_prob=0.1, learn_sigma=False
    ) -> None:
        super().__init__(locals(), in_channels=1, patch_size=1, hidden_size=8, depth=1, num_heads=1)


class Undivided(DiffusionTransformer):
    """A model that forgets to derive what it does not take."""

    def __init__(
        self, *, input_size=8, in_channels=1, mlp_ratio=4.0, num_classes=10, class_dropout_prob=0.1, learn_sigma=False
    ) -> None:
        super().__init__(locals())


class NotEvenBegun(DiffusionTransformer):
    """A model that leaves the base class's constructor out."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


EVERY_OPTION = (*SHARED_OPTIONS, *DERIVABLE_OPTIONS)
SMALL = {"input_size": 8, "in_channels": 1, "hidden_size": 32, "num_heads": 4, "depth": 2}


class FixedDiT(DiT):
    """Has the options of DiT in its config, and takes one of them."""

    def __init__(self, *, depth: int = 2) -> None:
        super().__init__(**{**SMALL, "depth": depth})


class Narrow(DiT):
    """Takes one option, and has no other in its config."""

    def __init__(self, *, depth: int = 2) -> None:
        super().__init__(**{**SMALL, "depth": depth})
        self.config = {"depth": depth}


class CatchAll(DiT):
    def __init__(self, **options) -> None:
        super().__init__(**options)


class Forgetful(WithOption):
    def keep(self, extra):
        del self.config["extra"]


class Growing(WithOption):
    """Writes twice the width into its config."""

    def keep(self, extra):
        self.config["hidden_size"] *= 2


class Hidden(WithOption):
    """Its layer depends on an option that the config does not give back."""

    def keep(self, extra):
        self.config["extra"] = None
        self.hidden = nn.Linear(3, 4 if extra is None else extra)


class Tangled(WithOption):
    def unused_weights(self):
        raise RuntimeError("no list")


class Choosy(WithOption):
    """Its own config does not build it."""

    def keep(self, extra):
        if extra == "done":
            raise ValueError("done before")
        self.config["extra"] = "done"


def test_a_registered_model_is_one_like_any_other():
    ditzoo.register_model("mine_s_2", DiT, {"depth": 2, "hidden_size": 32, "num_heads": 4}, family="dit")
    model = ditzoo.create("mine_s_2", num_classes=5)
    assert (type(model), model.depth, model.num_classes) == (DiT, 2, 5)
    assert "mine_s_2" in ditzoo.list_models(family="dit")
    info = ditzoo.model_info("mine_s_2")
    assert (info.ours, info.tags, info.paper, info.model_cls) == (True, (), "", "DiT")


def test_a_class_of_ones_own_in_a_family_of_ones_own():
    ditzoo.register_model("other_s_2", OtherDiT, SMALL, family="other", paper="A Paper, arXiv:0000.00000")
    assert ditzoo.list_families() == [*BUILT_IN, "other"]
    assert ditzoo.list_models(family="other") == ["other_s_2"]
    assert ditzoo.model_info("other_s_2").paper == "A Paper, arXiv:0000.00000"
    with pytest.raises(TypeError, match=r"other_s_2 has no option 'dept'\. Did you mean depth\?"):
        ditzoo.create("other_s_2", dept=3)


def test_the_given_configuration_may_change_afterwards():
    config = {"depth": 2}
    ditzoo.register_model("mine_s_2", DiT, config, family="dit")
    config["depth"] = 3
    assert on_meta("mine_s_2").depth == 2


def test_lists_in_the_configuration_are_nobody_elses():
    config = {"extra": [1, [2]]}
    ditzoo.register_model("mine_s_2", WithOption, config, family="mine")
    for kept in (config, ditzoo.create("mine_s_2").config, ditzoo.model_info("mine_s_2").config):
        kept["extra"][1].append(3)
    assert ditzoo.create("mine_s_2").config["extra"] == [1, [2]]
    assert ditzoo.model_info("mine_s_2").config["extra"] == [1, [2]]


def test_a_size_of_a_paper_can_be_told_from_ones_own():
    paper = "A Paper, arXiv:0000.00000"
    ditzoo.register_model("mine_s_2", DiT, {"depth": 1}, family="mine", paper=paper, ours=False)
    ditzoo.register_model("mine_b_2", DiT, {"depth": 1}, family="mine", paper=paper)
    assert [ditzoo.model_info(name).ours for name in ("mine_s_2", "mine_b_2")] == [False, True]
    lines = CliRunner().invoke(cli, ["list", "mine*"]).output.splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["ours", "paper"]  # mine_b_2 comes first


def test_a_taken_name():
    with pytest.raises(ValueError, match=r"'dit_xl_2' is already registered, as DiT; choose another name\."):
        ditzoo.register_model("dit_xl_2", DiT, family="dit")


@pytest.mark.parametrize("name", ["My-Model", "dit_xl_2.mine", "", "dit xl", "dít"])
def test_a_malformed_name(name):
    with pytest.raises(ValueError, match=f"{name!r} is no model name: use lower-case letters"):
        ditzoo.register_model(name, DiT, family="dit")


@pytest.mark.parametrize("model_cls", [nn.Linear, "DiT", OtherDiT.__init__, None, DiffusionTransformer])
def test_something_that_is_no_model(model_cls):
    with pytest.raises(TypeError, match=re.escape(f"{model_cls!r} is no subclass of")):
        ditzoo.register_model("mine_s_2", model_cls, family="dit")


def test_a_network_in_place_of_its_class():
    with pytest.raises(TypeError, match=r"^model_cls must be a class, got an instance of DiT; give DiT itself\.$"):
        ditzoo.register_model("mine_s_2", on_meta("dit_ti_2"), family="dit")


def test_a_recipe_of_ones_own():
    recipe = ditzoo.model_info("sit_ti_2").recipe
    ditzoo.register_model("mine_s_2", DiT, {"depth": 1}, family="dit", recipe=recipe)
    ditzoo.register_model("mine_b_2", DiT, {"depth": 1}, family="dit")
    assert ditzoo.model_info("mine_s_2").recipe == recipe
    assert ditzoo.model_info("mine_b_2").recipe is None


@pytest.mark.parametrize(
    ("model_cls", "config", "cause"),
    [
        (DiT, {"hidden_size": 30}, "ValueError: DiT: hidden_size 30 is not divisible by num_heads 16"),
        (Unfinished, {}, f"TypeError: the constructor of Unfinished lacks {', '.join(EVERY_OPTION)}: take the options"),
        (OneChannel, {}, "TypeError: the constructor of OneChannel lacks in_channels: take the options"),
        (
            Undivided,
            {},
            "TypeError: the constructor of Undivided lacks patch_size, hidden_size, depth, num_heads: take the options "
            "that all families share as keywords, and begin with super().__init__(locals()); patch_size, hidden_size, "
            "depth, num_heads may be derived and given after locals().",
        ),
        (NotEvenBegun, {}, "AttributeError: 'NotEvenBegun' object has no attribute 'config'"),
    ],
)
def test_a_model_that_cannot_be_built(model_cls, config, cause):
    message = f"'mine_s_2' cannot be registered: {model_cls.__name__}(**{config}) on the meta device raised {cause}"
    with pytest.raises(TypeError, match=re.escape(message)):
        ditzoo.register_model("mine_s_2", model_cls, config, family="dit")
    assert ditzoo.list_models("mine*") == []


@pytest.mark.parametrize(
    ("model_cls", "config", "fault"),
    [
        (FixedDiT, {}, "has input_size, patch_size, in_channels, hidden_size, num_heads, mlp_ratio, num_classes, "),
        (Narrow, {}, "lacks input_size, in_channels, mlp_ratio, num_classes, "),
        (CatchAll, {}, "cannot hold what **options takes: name every option in the constructor. "),
        (Forgetful, {"extra": 1}, "lacks extra. "),
        (Growing, {}, "builds another network: hidden_size is 64 in the first and 128 in the second. "),
        (
            Hidden,
            {"extra": 7},
            "builds another network: the shape of hidden.weight is (7, 3) in the first and (4, 3) in the second. ",
        ),
    ],
)
def test_a_class_whose_config_does_not_build_the_same_network(model_cls, config, fault):
    start = f"'mine_s_2' cannot be registered: the config of {model_cls.__name__}(**{config}) {fault}"
    with pytest.raises(TypeError) as caught:
        ditzoo.register_model("mine_s_2", model_cls, config, family="mine")
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(
        "begins with super().__init__(locals()) of DiffusionTransformer, has the right one."
    )
    assert ditzoo.list_models("mine*") == []


def test_a_class_with_an_option_that_create_takes_itself():
    class Strict(WithOption):
        def __init__(self, *, strict: bool = True, **options: Any) -> None:
            super().__init__(**options)
            self.config["strict"] = strict

    Strict.__signature__ = inspect.signature(WithOption).replace(
        parameters=[
            *inspect.signature(WithOption).parameters.values(),
            inspect.Parameter("strict", inspect.Parameter.KEYWORD_ONLY, default=True),
        ]
    )
    message = "has strict, which ditzoo.create takes itself: give the option another name"
    with pytest.raises(TypeError, match=re.escape(message)):
        ditzoo.register_model("mine_s_2", Strict, family="mine")


def test_a_class_that_cannot_list_its_unused_weights():
    message = "unused_weights() of Tangled(**{}) on the meta device raised RuntimeError: no list"
    with pytest.raises(TypeError, match=re.escape(message)):
        ditzoo.register_model("mine_s_2", Tangled, family="mine")


def test_a_class_that_its_own_config_does_not_build():
    message = (
        "'mine_s_2' cannot be registered: Choosy(**{}) builds, but Choosy(**model.config) on the meta device "
        "raised ValueError: done before"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        ditzoo.register_model("mine_s_2", Choosy, family="mine")


@pytest.mark.parametrize("value", [1, 2.5, -0.0, "a", True, False, None, [], [1, [2.5, "b", None]], {"a": [1]}])
def test_options_that_json_keeps(value):
    ditzoo.register_model("mine_s_2", WithOption, {"extra": value}, family="mine")
    assert ditzoo.model_info("mine_s_2").config["extra"] == value


@pytest.mark.parametrize(
    "value",
    [(8, 8), [(8, 8)], {1: 2}, {1}, torch.float32, torch.ones(2), nn.GELU, math.nan, [math.inf], 1j, b"a"],
    ids=repr,
)
def test_options_that_json_does_not_keep(value):
    message = (
        f"has extra={value!r}, which JSON does not keep: options are numbers, strings, True, False, None and lists"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        ditzoo.register_model("mine_s_2", WithOption, {"extra": value}, family="mine")
    assert ditzoo.list_models("mine*") == []


@pytest.mark.parametrize("family", ["", "My Family", "my-family", "a.b", "dít", "dit\n"])
def test_a_malformed_family(family):
    with pytest.raises(ValueError, match=re.escape(f"{family!r} is no family: use lower-case letters, digits and")):
        ditzoo.register_model("mine_s_2", DiT, family=family)
    assert ditzoo.list_families() == BUILT_IN


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("name", 5, "a model name is a string, got 5."),
        ("name", None, "a model name is a string, got None."),
        ("family", None, "a family is a string, got None."),
        ("family", ["dit"], "a family is a string, got ['dit']."),
        ("config", ["depth"], "config must be a mapping of constructor arguments, or None, got ['depth']."),
        ("paper", None, "paper must be a string, title and arXiv number, got None."),
        ("paper", 2212.09748, "paper must be a string, title and arXiv number, got 2212.09748."),
        ("recipe", {"prediction": "epsilon"}, "(Recipe.from_dict() makes one of a dict), or None, got {'predic"),
        ("recipe", "dit_xl_2", "recipe must be a ditzoo.Recipe "),
        ("recipe", Recipe, "recipe must be a ditzoo.Recipe "),
        ("ours", None, "ours must be True or False, got None."),
        ("ours", "paper", "ours must be True or False, got 'paper'."),
    ],
)
def test_an_argument_of_another_type(argument, value, message):
    arguments = {"name": "mine_s_2", "model_cls": DiT, "config": {"depth": 1}, "family": "mine", argument: value}
    with pytest.raises(TypeError, match=re.escape(message)):
        ditzoo.register_model(**arguments)
    assert ditzoo.list_models("mine*") == []


def test_an_option_the_class_does_not_have():
    with pytest.raises(TypeError, match=r"mine_s_2 has no option 'windw'\."):
        ditzoo.register_model("mine_s_2", DiT, {"windw": 8}, family="dit")
    assert "mine_s_2" not in ditzoo.list_models()


def test_the_tests_before_left_nothing_behind():
    assert ditzoo.list_families() == BUILT_IN
    assert ditzoo.list_models("mine*") == ditzoo.list_models("other*") == []
