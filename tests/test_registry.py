"""Names, tags and options, and what the errors say when one of them is wrong."""

import math
import re
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import ditzoo
from ditzoo import Recipe, random_token_mask, registry
from ditzoo.cli import cli
from ditzoo.models import FAMILIES, MDT, DiffusionTransformer, DiT, MDTv2
from tests.zoo import EVERY_NAME, MASKED, TINY, inputs, lively, on_meta

TAGGED = ditzoo.list_models(pretrained=True)
BUILT_IN = [family.name for family in FAMILIES]


class TestNames:
    def test_all_names(self):
        names = ditzoo.list_models()
        assert len(names) == len(set(names))
        assert {"dit_xl_2", "uvit_h_4", "mdt_s_2", "mdtv2_b_2", "diffit_xl_2"} <= set(names)
        assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name) for name in names)

    def test_patterns(self):
        sizes = ["b", "l", "s", "ti", "xl"]
        assert ditzoo.list_models("dit_*_2") == [f"dit_{size}_2" for size in sizes]
        assert ditzoo.list_models("mdt*_xl_?") == ["mdt_xl_2", "mdtv2_xl_2"]
        assert ditzoo.list_models("nothing*") == []
        assert ditzoo.list_models("*.in64") == ["uvit_l_4.in64", "uvit_m_4.in64"]
        assert ditzoo.list_models("dit_xl_2.*") == ["dit_xl_2.in256", "dit_xl_2.in512"]

    def test_families(self):
        assert ditzoo.list_families() == BUILT_IN
        assert {"dit", "uvit", "mdt", "diffit"} <= set(BUILT_IN)
        found = [name for family in BUILT_IN for name in ditzoo.list_models(family=family)]
        assert sorted(found) == sorted(ditzoo.list_models())
        assert ditzoo.list_models("*_xl_*", family="mdt") == ["mdt_xl_2", "mdtv2_xl_2"]
        for family in BUILT_IN:
            assert {ditzoo.model_info(n).family for n in ditzoo.list_models(family=family)} == {family}

    def test_published_weights(self):
        bare = {name.partition(".")[0] for name in TAGGED}
        assert len(TAGGED) == len(set(TAGGED))
        assert set(ditzoo.list_models(pretrained=False)) == set(ditzoo.list_models()) - bare
        assert ditzoo.list_models(family="uvit", pretrained=True) == [n for n in TAGGED if n.startswith("uvit")]
        assert ditzoo.list_models("*.in512", pretrained=True) == ditzoo.list_models("*.in512")

    def test_names_sort_naturally(self, registry_sandbox):
        for number in (10, 9, 2):
            registry.register_model(f"zz_s_{number}", DiT, family="zz")
        assert ditzoo.list_models("zz*") == ["zz_s_2", "zz_s_9", "zz_s_10"]
        assert ditzoo.list_models("uvit_l_4.*") == ["uvit_l_4.in64", "uvit_l_4.in512"]

    def test_unknown_family_is_named_with_the_known_ones(self):
        with pytest.raises(ValueError, match=rf"Unknown family 'sdxl'; the families are {', '.join(BUILT_IN)}\."):
            ditzoo.list_models(family="sdxl")


class TestModelInfo:
    def test_a_bare_name(self):
        info = ditzoo.model_info("dit_xl_2")
        assert (info.name, info.family, info.model_cls) == ("dit_xl_2", "dit", "DiT")
        assert (info.num_params, info.num_trainable_params, info.num_tokens) == (675_129_632, 674_834_720, 256)
        assert info.paper == "Scalable Diffusion Models with Transformers, arXiv:2212.09748"
        assert (info.ours, info.tags) == (False, ("in256", "in512"))
        assert (info.source, info.licence, info.data) == (None, None, None)
        assert info.config == on_meta("dit_xl_2").config

    def test_a_tag(self):
        info = ditzoo.model_info("dit_xl_2.in512")
        assert (info.config["input_size"], info.num_tokens) == (64, 1024)
        assert info.source == "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt"
        assert (info.licence, info.data) == ("CC-BY-NC-4.0", "ImageNet-1k at 512x512")

    @pytest.mark.parametrize("name", TAGGED)
    def test_every_tag_says_where_its_weights_are_and_under_which_licence(self, name):
        info = ditzoo.model_info(name)
        assert info.licence
        assert info.packaged == info.ours == name.endswith(".digits")
        assert info.source.startswith("packaged with ditzoo" if info.packaged else "https://")
        assert re.search("digits" if info.packaged else "ImageNet|CIFAR|CelebA", info.data)

    def test_what_the_caller_does_with_the_configuration_is_forgotten(self):
        ditzoo.model_info("dit_s_2").config["depth"] = 99
        assert ditzoo.model_info("dit_s_2").config["depth"] == 12

    def test_an_unknown_name(self):
        with pytest.raises(ValueError, match=r"Unknown model 'dit_xxl_2'\. Did you mean dit_xl_2"):
            ditzoo.model_info("dit_xxl_2")


class TestTags:
    """A tag carries its own configuration: (side, channels, classes, null label)."""

    @pytest.mark.parametrize(
        ("name", "side", "channels", "classes", "null"),
        [
            ("dit_xl_2.in256", 32, 4, 1000, 1000),
            ("dit_xl_2.in512", 64, 4, 1000, 1000),
            ("uvit_s_2.cifar10", 32, 3, 0, None),
            ("uvit_s_4.celeba64", 64, 3, 0, None),
            ("uvit_m_4.in64", 64, 3, 1000, None),
            ("uvit_l_4.in64", 64, 3, 1000, None),
            ("uvit_l_2.in256", 32, 4, 1000, 1000),
            ("uvit_h_2.in256", 32, 4, 1000, 1000),
            ("uvit_l_4.in512", 64, 4, 1000, 1000),
            ("uvit_h_4.in512", 64, 4, 1000, 1000),
            ("mdt_xl_2.in256", 32, 4, 1000, 1000),
            ("mdtv2_xl_2.in256", 32, 4, 1000, 1000),
            ("diffit_xl_2.in256", 32, 4, 1000, 1000),
            ("diffit_xl_2.in512", 64, 4, 1000, 1000),
        ],
    )
    def test_its_configuration(self, name, side, channels, classes, null):
        model = on_meta(name)
        assert (model.input_size, model.in_channels) == (side, channels)
        assert (model.num_classes, model.null_label) == (classes, null)

    @pytest.mark.parametrize("name", ditzoo.list_models(family="uvit", pretrained=True))
    def test_only_the_huge_u_vits_end_without_a_convolution(self, name):
        assert on_meta(name).config["conv"] == (not name.startswith(("uvit_h", "uvit_ti")))

    def test_options_override_a_tag(self):
        assert on_meta("dit_xl_2.in512", num_classes=7).config["num_classes"] == 7
        assert on_meta("dit_xl_2.in512", input_size=16).input_size == 16

    def test_a_bare_name_is_not_its_tag(self):
        assert on_meta("dit_xl_2").input_size == 32
        assert on_meta("uvit_l_4").in_channels == 4

    def test_an_unknown_tag_is_named_with_the_known_ones(self):
        message = r"Unknown tag 'in1024' of dit_xl_2; its tags are: dit_xl_2\.in256, dit_xl_2\.in512\."
        with pytest.raises(ValueError, match=message):
            ditzoo.create("dit_xl_2.in1024")
        with pytest.raises(ValueError, match=r"Unknown tag 'in256' of dit_s_2; .* no published weights"):
            ditzoo.create("dit_s_2.in256")


class TestCreate:
    def test_the_model_is_trainable_and_on_the_default_device(self):
        model = ditzoo.create("dit_ti_2", num_classes=3)
        assert model.training
        assert model.config["num_classes"] == 3
        with torch.device("meta"):
            assert ditzoo.create("dit_ti_2").device.type == "meta"

    def test_options_do_not_change_the_registry(self):
        before = ditzoo.create("dit_ti_2").config
        ditzoo.create("dit_ti_2", depth=1).config["num_heads"] = 99
        assert ditzoo.create("dit_ti_2").config == before

    @pytest.mark.parametrize(
        ("name", "suggested"),
        [
            ("dit_xl2", "dit_xl_2"),
            ("DiT_XL_2", "dit_xl_2"),
            ("DiT-XL/2", "dit_xl_2"),
            ("uvit_hh_2", "uvit_h_2"),
            ("mdt2_xl_2", "mdt_xl_2"),
            ("dit_xl_3.in256", "dit_xl_2"),
        ],
    )
    def test_an_unknown_name_suggests_the_nearest(self, name, suggested):
        bare = re.escape(name.partition(".")[0])
        with pytest.raises(
            ValueError, match=rf"Unknown model '{bare}'\. Did you mean .*{suggested}.*ditzoo\.list_models\(\)"
        ):
            ditzoo.create(name)

    def test_a_name_like_no_other_suggests_nothing(self):
        with pytest.raises(
            ValueError, match=r"^Unknown model 'q'\. ditzoo\.list_models\(\) or `ditzoo list` gives all names\.$"
        ):
            ditzoo.create("q")

    @pytest.mark.parametrize(
        ("name", "option", "suggested"),
        [
            ("dit_ti_2", "num_clases", "num_classes"),
            ("uvit_ti_2", "mlp_time_embedding", "mlp_time_embed"),
            ("mdt_ti_2", "maskratio", "mask_ratio"),
            ("diffit_ti_2", "patchsize", "patch_size"),
        ],
    )
    def test_a_misspelt_option_is_refused_with_the_nearest(self, name, option, suggested):
        message = rf"{name} has no option '{option}'\. Did you mean .*{suggested}.*Its options: input_size, "
        with pytest.raises(TypeError, match=message):
            ditzoo.create(name, **{option: 1})

    @pytest.mark.parametrize(
        ("name", "option"), [("dit_ti_2", "mask_ratio"), ("diffit_ti_2", "decode_layer"), ("mdt_ti_2", "conv")]
    )
    def test_an_option_of_another_family_is_refused(self, name, option):
        with pytest.raises(TypeError, match=f"{name} has no option '{option}'"):
            ditzoo.create(name, **{option: 1})

    @pytest.mark.parametrize("name", TINY)
    def test_the_class_itself_refuses_an_unknown_option_too(self, name):
        with pytest.raises(TypeError, match="hidden_dim"):
            type(ditzoo.create(name))(hidden_dim=3)

    @pytest.mark.parametrize("name", [name for name in TAGGED if not ditzoo.model_info(name).packaged])
    def test_pretrained_names_where_the_weights_are(self, name):
        info = ditzoo.model_info(name)
        message = (
            f"does not fetch weights. Those of {name} are at {info.source} (licence: {info.licence}); load the file "
            f"with ditzoo.Pipeline.from_pretrained({name!r}, checkpoint=path), or the official state dict with "
            f"ditzoo.create({name!r}).load_state_dict(state)."
        )
        with pytest.raises(RuntimeError, match=re.escape(message)):
            ditzoo.create(name, pretrained=True)

    def test_pretrained_without_a_tag_names_the_tags(self):
        with pytest.raises(RuntimeError, match=r"dit_xl_2 names no weights; give one of its tags: dit_xl_2\.in256, "):
            ditzoo.create("dit_xl_2", pretrained=True)

    def test_pretrained_where_nothing_is_published_names_what_is(self):
        with pytest.raises(RuntimeError, match=r"No weights are published for dit_s_2\..*mdt_xl_2\.in256"):
            ditzoo.create("dit_s_2", pretrained=True)


class OtherDiT(DiT):
    """A model of one's own."""


class Unfinished(DiffusionTransformer):
    """A model that keeps no contract."""

    def __init__(self) -> None:
        super().__init__({})


class NotEvenBegun(DiffusionTransformer):
    """A model that leaves the base class's constructor out."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


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


class WithOption(DiT):
    """DiT's options and one more, which the subclasses mistreat."""

    def __init__(
        self,
        *,
        input_size=8,
        patch_size=2,
        in_channels=1,
        hidden_size=32,
        depth=2,
        num_heads=4,
        mlp_ratio=4.0,
        num_classes=5,
        class_dropout_prob=0.1,
        learn_sigma=False,
        conditioning="adaln_zero",
        extra=None,
    ) -> None:
        super().__init__(
            input_size=input_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            class_dropout_prob=class_dropout_prob,
            learn_sigma=learn_sigma,
            conditioning=conditioning,
        )
        self.config["extra"] = extra
        self.keep(extra)

    def keep(self, extra) -> None:
        pass


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


@pytest.mark.usefixtures("registry_sandbox")
class TestRegisterModel:
    def test_a_registered_model_is_one_like_any_other(self):
        ditzoo.register_model("mine_s_2", DiT, {"depth": 2, "hidden_size": 32, "num_heads": 4}, family="dit")
        model = ditzoo.create("mine_s_2", num_classes=5)
        assert (type(model), model.depth, model.num_classes) == (DiT, 2, 5)
        assert "mine_s_2" in ditzoo.list_models(family="dit")
        info = ditzoo.model_info("mine_s_2")
        assert (info.ours, info.tags, info.paper, info.model_cls) == (True, (), "", "DiT")

    def test_a_class_of_ones_own_in_a_family_of_ones_own(self):
        ditzoo.register_model("other_s_2", OtherDiT, SMALL, family="other", paper="A Paper, arXiv:0000.00000")
        assert ditzoo.list_families() == [*BUILT_IN, "other"]
        assert ditzoo.list_models(family="other") == ["other_s_2"]
        assert ditzoo.model_info("other_s_2").paper == "A Paper, arXiv:0000.00000"
        with pytest.raises(TypeError, match=r"other_s_2 has no option 'dept'\. Did you mean depth\?"):
            ditzoo.create("other_s_2", dept=3)

    def test_the_given_configuration_may_change_afterwards(self):
        config = {"depth": 2}
        ditzoo.register_model("mine_s_2", DiT, config, family="dit")
        config["depth"] = 3
        assert on_meta("mine_s_2").depth == 2

    def test_lists_in_the_configuration_are_nobody_elses(self):
        config = {"extra": [1, [2]]}
        ditzoo.register_model("mine_s_2", WithOption, config, family="mine")
        for kept in (config, ditzoo.create("mine_s_2").config, ditzoo.model_info("mine_s_2").config):
            kept["extra"][1].append(3)
        assert ditzoo.create("mine_s_2").config["extra"] == [1, [2]]
        assert ditzoo.model_info("mine_s_2").config["extra"] == [1, [2]]

    def test_a_size_of_a_paper_can_be_told_from_ones_own(self):
        paper = "A Paper, arXiv:0000.00000"
        ditzoo.register_model("mine_s_2", DiT, {"depth": 1}, family="mine", paper=paper, ours=False)
        ditzoo.register_model("mine_b_2", DiT, {"depth": 1}, family="mine", paper=paper)
        assert [ditzoo.model_info(name).ours for name in ("mine_s_2", "mine_b_2")] == [False, True]
        lines = CliRunner().invoke(cli, ["list", "mine*"]).output.splitlines()[1:]
        assert [line.split()[-1] for line in lines] == ["ours", "paper"]  # mine_b_2 comes first

    def test_a_taken_name(self):
        with pytest.raises(ValueError, match=r"'dit_xl_2' is already registered, as DiT; choose another name\."):
            ditzoo.register_model("dit_xl_2", DiT, family="dit")

    @pytest.mark.parametrize("name", ["My-Model", "dit_xl_2.mine", "", "dit xl", "dít"])
    def test_a_malformed_name(self, name):
        with pytest.raises(ValueError, match=f"{name!r} is no model name: use lower-case letters"):
            ditzoo.register_model(name, DiT, family="dit")

    @pytest.mark.parametrize("model_cls", [nn.Linear, "DiT", OtherDiT.__init__, None])
    def test_something_that_is_no_model(self, model_cls):
        with pytest.raises(TypeError, match=re.escape(f"{model_cls!r} is no subclass of")):
            ditzoo.register_model("mine_s_2", model_cls, family="dit")

    def test_a_recipe_of_ones_own(self):
        recipe = ditzoo.model_info("sit_ti_2").recipe
        ditzoo.register_model("mine_s_2", DiT, {"depth": 1}, family="dit", recipe=recipe)
        ditzoo.register_model("mine_b_2", DiT, {"depth": 1}, family="dit")
        assert ditzoo.model_info("mine_s_2").recipe == recipe
        assert ditzoo.model_info("mine_b_2").recipe is None

    @pytest.mark.parametrize(
        ("model_cls", "config", "cause"),
        [
            (DiT, {"hidden_size": 30}, "ValueError: DiT: hidden_size 30 is not divisible by num_heads 16"),
            (Unfinished, {}, "KeyError: 'input_size'"),
            (NotEvenBegun, {}, "AttributeError: 'NotEvenBegun' object has no attribute 'config'"),
        ],
    )
    def test_a_model_that_cannot_be_built(self, model_cls, config, cause):
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
    def test_a_class_whose_config_does_not_build_the_same_network(self, model_cls, config, fault):
        start = f"'mine_s_2' cannot be registered: the config of {model_cls.__name__}(**{config}) {fault}"
        with pytest.raises(TypeError) as caught:
            ditzoo.register_model("mine_s_2", model_cls, config, family="mine")
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith(
            "begins with super().__init__(locals()) of DiffusionTransformer, has the right one."
        )
        assert ditzoo.list_models("mine*") == []

    def test_a_class_that_cannot_list_its_unused_weights(self):
        message = "unused_weights() of Tangled(**{}) on the meta device raised RuntimeError: no list"
        with pytest.raises(TypeError, match=re.escape(message)):
            ditzoo.register_model("mine_s_2", Tangled, family="mine")

    def test_a_class_that_its_own_config_does_not_build(self):
        message = (
            "'mine_s_2' cannot be registered: Choosy(**{}) builds, but Choosy(**model.config) on the meta device "
            "raised ValueError: done before"
        )
        with pytest.raises(TypeError, match=re.escape(message)):
            ditzoo.register_model("mine_s_2", Choosy, family="mine")

    @pytest.mark.parametrize("value", [1, 2.5, -0.0, "a", True, False, None, [], [1, [2.5, "b", None]], {"a": [1]}])
    def test_options_that_json_keeps(self, value):
        ditzoo.register_model("mine_s_2", WithOption, {"extra": value}, family="mine")
        assert ditzoo.model_info("mine_s_2").config["extra"] == value

    @pytest.mark.parametrize(
        "value",
        [(8, 8), [(8, 8)], {1: 2}, {1}, torch.float32, torch.ones(2), nn.GELU, math.nan, [math.inf], 1j, b"a"],
        ids=repr,
    )
    def test_options_that_json_does_not_keep(self, value):
        message = (
            f"has extra={value!r}, which JSON does not keep: options are numbers, strings, True, False, None and lists"
        )
        with pytest.raises(TypeError, match=re.escape(message)):
            ditzoo.register_model("mine_s_2", WithOption, {"extra": value}, family="mine")
        assert ditzoo.list_models("mine*") == []

    @pytest.mark.parametrize("family", ["", "My Family", "my-family", "a.b", "dít", "dit\n"])
    def test_a_malformed_family(self, family):
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
    def test_an_argument_of_another_type(self, argument, value, message):
        arguments = {"name": "mine_s_2", "model_cls": DiT, "config": {"depth": 1}, "family": "mine", argument: value}
        with pytest.raises(TypeError, match=re.escape(message)):
            ditzoo.register_model(**arguments)
        assert ditzoo.list_models("mine*") == []

    def test_an_option_the_class_does_not_have(self):
        with pytest.raises(TypeError, match=r"mine_s_2 has no option 'windw'\."):
            ditzoo.register_model("mine_s_2", DiT, {"windw": 8}, family="dit")
        assert "mine_s_2" not in ditzoo.list_models()


def test_registered_models_are_gone_after_the_test():
    assert ditzoo.list_families() == BUILT_IN
    assert ditzoo.list_models("mine*") == ditzoo.list_models("other*") == ditzoo.list_models("zz*") == []


#: of a plain transformer and of a U shape
DIVISOR = "(patch_size|the total downsampling)"
WRONG_OPTIONS = [
    ({"input_size": 9}, ValueError, rf"input_size 9 is not divisible by {DIVISOR} 2"),
    ({"patch_size": 3}, ValueError, r"input_size 8 is not divisible by patch_size 3"),
    ({"hidden_size": 36, "num_heads": 8}, ValueError, r"hidden_size 36 is not divisible by num_heads 8"),
    ({"hidden_size": 18, "num_heads": 3}, ValueError, r"hidden_size 18 is not divisible by 4, as position"),
    ({"depth": 0}, ValueError, r"depth must be at least 1, got 0"),
    ({"in_channels": -1}, ValueError, r"in_channels must be at least 1, got -1"),
    ({"num_classes": -1}, ValueError, r"num_classes must be at least 0, got -1"),
    ({"mlp_ratio": 0}, ValueError, r"mlp_ratio must be above 0, got 0"),
    ({"class_dropout_prob": 1.0}, ValueError, r"class_dropout_prob must be in \[0, 1\), got 1\.0"),
    ({"class_dropout_prob": -0.1}, ValueError, r"class_dropout_prob must be in \[0, 1\), got -0\.1"),
    ({"depth": 2.0}, TypeError, r"depth must be an integer, got 2\.0"),
    ({"depth": True}, TypeError, r"depth must be an integer, got True"),
    ({"input_size": (8, 8)}, TypeError, r"input_size must be an integer, got \(8, 8\)"),
    ({"num_classes": None}, TypeError, r"num_classes must be an integer, got None"),
    ({"num_heads": "4"}, TypeError, r"num_heads must be an integer, got '4'"),
]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [(name, *case) for name in TINY for case in WRONG_OPTIONS if set(case[0]) <= set(ditzoo.model_info(name).config)],
)
def test_a_wrong_option_is_named_with_its_value(name, options, error, message):
    cls = type(ditzoo.create(name)).__name__
    with pytest.raises(error, match=f"^{cls}: {message}"):
        ditzoo.create(name, **options)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decode_layer": 0}, ValueError, r"decode_layer must be from 1 to depth \(4\), got 0"),
        ({"decode_layer": 5}, ValueError, r"decode_layer must be from 1 to depth \(4\), got 5"),
        ({"decode_layer": 2.0}, TypeError, r"decode_layer must be an integer, got 2\.0"),
        ({"decode_layer": None}, TypeError, r"decode_layer must be an integer, got None"),
        ({"decode_layer": True}, TypeError, r"decode_layer must be an integer, got True"),
        ({"mask_ratio": 1.0}, ValueError, r"mask_ratio must be None or in \[0, 1\), got 1\.0"),
        ({"mask_ratio": -0.1}, ValueError, r"mask_ratio must be None or in \[0, 1\), got -0\.1"),
    ],
)
def test_a_wrong_option_of_mdt(name, options, error, message):
    with pytest.raises(error, match=message):
        ditzoo.create(name, depth=4, **options)


def test_u_vit_predicts_no_variance():
    with pytest.raises(ValueError, match=r"learn_sigma must be False, got True"):
        ditzoo.create("uvit_ti_2", learn_sigma=True)


def wrong_inputs(x, t, y):
    """What may be wrong with the inputs of a tiny model: 8x8x1, ten classes and the null label."""
    return {
        "height": ((x[:, :, :7], t, y), ValueError, rf"7x8 is not divisible by {DIVISOR} 2; .*8x8"),
        "width": ((x[..., :5], t, y), ValueError, rf"8x5 is not divisible by {DIVISOR} 2; .*8x4"),
        "channels": ((x.repeat(1, 3, 1, 1), t, y), ValueError, r"\(B, 1, H, W\), got \(2, 3, 8, 8\).*in_channels="),
        "no batch": ((x[0], t, y), ValueError, r"\(B, 1, H, W\), got \(1, 8, 8\)"),
        "scalar t": ((x, t[0], y), ValueError, r"t has shape \(\); give one time a sample: \(2,\)"),
        "one t": ((x, t[:1], y), ValueError, r"t has shape \(1,\); give one time a sample: \(2,\)"),
        "column of t": ((x, t[:, None], y), ValueError, r"t has shape \(2, 1\); give one time a sample"),
        "large label": ((x, t, y.clone().fill_(11)), ValueError, r"label 11 is out of range: .* 0 to 10 \(10 is"),
        "negative label": ((x, t, y - 11), ValueError, r"label -\d+ is out of range: .* labels from 0 to 10"),
        "float label": ((x, t, y.float()), TypeError, r"y must be int64, got torch\.float32; use y\.long\(\)"),
        "int32 label": ((x, t, y.int()), TypeError, r"y must be int64, got torch\.int32; use y\.long\(\)"),
        "one label": ((x, t, y[:1]), ValueError, r"y has shape \(1,\); give one label a sample: \(2,\)"),
        "one-hot": ((x, t, torch.eye(10, dtype=torch.int64)[:2]), ValueError, r"y has shape \(2, 10\); give one"),
        "no label": ((x, t, None), ValueError, r"y is missing: .* conditioned on 10 classes; .*num_classes=0"),
    }


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("what", wrong_inputs(*(torch.ones(2, 1, 8, 8), torch.ones(2), torch.ones(2).long())))
def test_a_wrong_input_is_named(name, what):
    model = lively(name)
    given, error, message = wrong_inputs(*inputs(model))[what]
    with pytest.raises(error, match=message):
        model(*given)


@pytest.mark.parametrize("name", TINY)
def test_an_unconditional_model_takes_no_labels(name):
    model = lively(name, num_classes=0)
    x, t, _ = inputs(model)
    with pytest.raises(ValueError, match=r"is unconditional \(num_classes=0\) and takes no y"):
        model(x, t, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", sorted(set(TINY) - set(MASKED)))
def test_a_mask_for_a_family_without_masks(name):
    model = lively(name)
    with pytest.raises(ValueError, match=r"does not take a mask; only MDT and MDTv2 do\. Call it without mask="):
        model(*inputs(model), mask=random_token_mask(2, 16, 0.3))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            random_token_mask(2, 64, 0.3),
            ValueError,
            r"covers \(2, 64\) tokens, but x has \(2, 16\); .*\(2, 16, ratio\)",
        ),
        (random_token_mask(3, 16, 0.3), ValueError, r"covers \(3, 16\) tokens, but x has \(2, 16\)"),
        (torch.zeros(2, 16), TypeError, r"mask is a Tensor; make a TokenMask with ditzoo\.random_token_mask"),
        (0.3, TypeError, r"mask is a float; make a TokenMask"),
    ],
)
def test_a_wrong_mask(name, mask, error, message):
    model = lively(name)
    with pytest.raises(error, match=message):
        model(*inputs(model), mask=mask)


@pytest.mark.parametrize("version", [MDT, MDTv2])
def test_a_mask_for_a_model_built_without(version):
    model = version(input_size=8, hidden_size=32, depth=2, num_heads=4, decode_layer=1, mask_ratio=None)
    with pytest.raises(ValueError, match=r"built with mask_ratio=None, .* build it with a mask_ratio"):
        model(*inputs(model), mask=random_token_mask(2, 16, 0.3))


@pytest.mark.parametrize("name", EVERY_NAME)
def test_every_name_can_be_created(name):
    model = on_meta(name)
    assert model.config == ditzoo.model_info(name).config


def modules_after(code):
    """Top-level packages and ditzoo's own modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("code", ["import ditzoo", "import ditzoo; dir(ditzoo); ditzoo.__version__; ditzoo.__all__"])
def test_importing_ditzoo_loads_nothing_heavy(code):
    loaded = modules_after(code)
    assert "ditzoo" in loaded
    assert not loaded & {"torch", "numpy", "einops", "safetensors", "huggingface_hub", "click", "rich"}
    assert not {name for name in loaded if name.startswith("ditzoo.")}


def test_listing_models_loads_no_optional_dependency():
    loaded = modules_after("import ditzoo; assert ditzoo.list_models()")
    assert "torch" in loaded
    assert not loaded & {"timm", "torchvision", "diffusers", "accelerate", "torch_fidelity", "sklearn", "datasets"}


def test_every_public_name_can_be_had():
    for name in ditzoo.__all__:
        assert getattr(ditzoo, name).__doc__ if name != "__version__" else ditzoo.__version__
        assert name in dir(ditzoo)
    assert set(ditzoo.__all__) - {"__version__"} == set(ditzoo._PUBLIC)
    with pytest.raises(AttributeError, match="module 'ditzoo' has no attribute 'creat'"):
        _ = ditzoo.creat
