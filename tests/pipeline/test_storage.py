"""Pipelines on disk: what was saved comes back as it was, and what cannot be read says why."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import ditzoo
from ditzoo.models import DiT
from ditzoo.pipeline import Pipeline
from ditzoo.recipe import Guidance
from tests.own_models import WithOption
from tests.pipeline.pipes import QUICK, tiny
from tests.zoo import enliven, lively

AUTOGUIDANCE = Guidance(scale=2.0, kind="autoguidance")


@pytest.fixture
def saved(tmp_path):
    tiny().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change(folder, entry, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, entry: value}))


def assert_same(again, pipeline, **options):
    """Weights bit for bit, and samples up to rounding, which depends on where in memory the weights lie."""
    for name, value in pipeline.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    samples = [one([3], seed=2, **options).latents for one in (again, pipeline)]
    torch.testing.assert_close(*samples, rtol=1e-5, atol=1e-5)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["dit_ti_2", "sit_ti_2", "mdtv2_ti_2"])
def test_a_saved_pipeline_is_the_same(tmp_path, name):
    tiny(name).save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    assert (again.name, again.recipe) == (name, tiny(name).recipe)
    assert again.model.config == tiny(name).model.config
    assert again.get_label_ids("seven") == [7]
    assert_same(again, tiny(name))
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_the_precision_is_the_one_asked_for(saved):
    half = Pipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert half([3]).latents.dtype == torch.float32
    half.save_pretrained(saved)
    assert load_file(saved / "model.safetensors")["pos_embed"].dtype == torch.bfloat16
    again, single = Pipeline.from_pretrained(saved, dtype=torch.bfloat16), Pipeline.from_pretrained(saved)
    assert single.model.dtype == torch.float32
    for name, value in half.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
        assert torch.equal(single.model.state_dict()[name], value.float())


@pytest.mark.parametrize("dtype", [torch.int8, "float16"])
def test_a_precision_that_is_none_is_named(saved, dtype):
    (saved / "model.safetensors").unlink()  # it is refused before weights are read
    message = rf"dtype must be one of torch\.float16, torch\.bfloat16, torch\.float32, torch\.float64, got {dtype!r}\."
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(saved, dtype=dtype)


def test_the_weak_model_is_kept(tmp_path):
    strong, weak = tiny().model, lively("dit_ti_2", depth=1)
    pipeline = Pipeline(strong, QUICK, weak_model=weak)
    pipeline.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors", "weak_model.safetensors"]
    assert again.weak_model.config == weak.config
    assert_same(again, pipeline, guidance=AUTOGUIDANCE)
    guided, plain = again([3], guidance=AUTOGUIDANCE), again([3], guidance_scale=1.0)
    assert (guided.latents - plain.latents).abs().max() > 0.01
    tiny().save_pretrained(tmp_path)
    assert Pipeline.from_pretrained(tmp_path).weak_model is None
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match=r"taken cannot be written: File exists"):
        tiny().save_pretrained(tmp_path / "taken")


# Models of other packages.


class Shifted(WithOption):
    """Its constructor computes a tensor that no state dict has, and ties two layers."""

    def keep(self, extra):
        self.shift = torch.full((1,), 0.5)
        self.blocks[1].mlp = self.blocks[0].mlp

    def forward(self, x, t, y=None, *, mask=None):
        return super().forward(x, t, y, mask=mask) + self.shift.to(x)


@pytest.mark.usefixtures("registry_sandbox")
def test_a_registered_class_comes_back_with_all_that_its_constructor_makes(tmp_path):
    ditzoo.register_model("shifted_ti_2", Shifted, {"extra": [1, "a"]}, family="shifted")
    pipeline = Pipeline(lively("shifted_ti_2", num_heads=2), QUICK)
    pipeline.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    assert type(again.model) is Shifted
    assert again.model.config == pipeline.model.config
    assert (again.model.config["extra"], again.model.num_heads) == ([1, "a"], 2)
    assert again.model.blocks[1].mlp is again.model.blocks[0].mlp
    assert_same(again, pipeline)


def of_package(package):
    """A class `Mine` as it would be in a module of this name."""
    return type("Mine", (DiT,), {"__module__": package})


def save_model_of(package, folder):
    """A folder with a tiny model of a class that nobody has registered."""
    model = enliven(of_package(package)(**tiny().model.config))
    Pipeline(model, QUICK).save_pretrained(folder)


@pytest.mark.usefixtures("registry_sandbox")
def test_classes_of_one_name_are_told_apart_by_their_packages(tmp_path):
    classes = {package: of_package(package) for package in ("alpha", "beta.models")}
    for package, model_cls in classes.items():
        ditzoo.register_model(f"{package[:4]}_s_2", model_cls, {"depth": 1}, family="mine")
    for package, model_cls in classes.items():
        save_model_of(package, tmp_path)
        assert type(Pipeline.from_pretrained(tmp_path).model) is model_cls


@pytest.mark.usefixtures("registry_sandbox")
def test_a_missing_package_is_named_and_no_namesake_takes_its_place(tmp_path):
    ditzoo.register_model("beta_s_2", of_package("beta.models"), {"depth": 1}, family="mine")
    save_model_of("alpha", tmp_path)
    message = (
        r"config\.json names the model class 'Mine' of the package 'alpha' \(alpha\.Mine\), which no registered model "
        r"has\. Install that package, which registers its models, or register the class with ditzoo\.register_model"
        r".* Registered is beta\.models\.Mine; if the class has moved there, write that into config\.json\."
    )
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("evil.Mine", "Install that package"),
        ("torch.nn.Linear", "Install that package"),
        ("ditzoo.models.SDXL", "This version of ditzoo does not have it: update ditzoo"),
        ("ditzoo.models.DiffusionTransformer", "This version of ditzoo does not have it"),
        ("__main__.Mine", r"It is of a script: run its definition and ditzoo\.register_model"),
        ("DiT", r"Registered is ditzoo\.models\.DiT; if the class has moved there, write that"),
    ],
)
def test_nothing_is_imported_because_a_file_names_it(saved, monkeypatch, path, remedy):
    (saved / "evil.py").write_text("class Mine: ...")
    monkeypatch.syspath_prepend(saved)
    change(saved, "model_cls", path)
    with pytest.raises(ValueError, match=rf"config\.json names the model class .*{remedy}"):
        Pipeline.from_pretrained(saved)
    assert "evil" not in sys.modules


# Damaged folders.


def without(*gone):
    return lambda state: {name: value for name, value in state.items() if name not in gone}


@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        (without("pos_embed", "final_layer.linear.bias"), r"missing pos_embed, final_layer\.linear\.bias"),
        (lambda state: {**state, "extra\n": torch.ones(1)}, r"unexpected 'extra\\n'\."),
        (lambda state: {**state, "pos_embed": torch.ones(1, 4, 64)}, r"pos_embed is 1x4x64 and should be 1x16x64\."),
        (
            lambda state: {**state, "final_layer.linear.bias": torch.ones(4).long()},
            r"final_layer\.linear\.bias is in int64; give weights in floats",
        ),
    ],
    ids=["missing", "unexpected", "shape", "integers"],
)
def test_weights_that_do_not_fit(saved, edit, difference):
    save_file(edit(load_file(saved / "model.safetensors")), saved / "model.safetensors")
    message = rf"saved/model\.safetensors does not fit the DiT that config\.json beside it describes: .*{difference}"
    with pytest.raises(ValueError, match=message + r".* fetch the whole folder, or save the model again\."):
        Pipeline.from_pretrained(saved)


def test_weights_that_are_missing_or_damaged(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"saved/model\.safetensors is damaged or cut off .* fetch it again"):
        Pipeline.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"saved/model\.safetensors is missing; fetch the whole folder, or save"
    ):
        Pipeline.from_pretrained(saved)


def test_a_damaged_weak_model_is_named(tmp_path):
    Pipeline(tiny().model, QUICK, weak_model=lively("dit_ti_2", depth=1)).save_pretrained(tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "weak_model.safetensors")
    with pytest.raises(ValueError, match=r"weak_model\.safetensors does not fit the DiT .* unexpected blocks\.1"):
        Pipeline.from_pretrained(tmp_path)
    change(tmp_path, "weak_model", {"model_cls": "ditzoo.models.DiT"})
    with pytest.raises(ValueError, match=r"weak_model in .*config\.json lacks model: it is not what"):
        Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dept": 4}, r"has no option 'dept'\. Did you mean depth\? Its options: input_size"),
        ({"depth": 0}, r"DiT: depth must be at least 1, got 0"),
        ({"depth": "4"}, r"DiT: depth must be an integer, got '4'"),
    ],
)
def test_options_that_the_class_does_not_take(saved, options, reason):
    change(saved, "model", {**tiny().model.config, **options})
    message = rf"saved/config\.json: its entry 'model' does not build ditzoo\.models\.DiT: .*{reason}"
    with pytest.raises(
        ValueError, match=message + r".*Mend the entry, or install the version of ditzoo that wrote it\."
    ):
        Pipeline.from_pretrained(saved)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("model", [], r"has model=\[\], which must be a dict; save the model again"),
        ("name", 5, r": name must be a string, got 5\. Mend the entry"),
        ("recipe", {**QUICK.to_dict(), "sampler": "plms"}, r": recipe: unknown sampler 'plms'; .* Mend the entry"),
        ("recipe", {**QUICK.to_dict(), "gidance": {}}, r": recipe: unknown recipe entries: 'gidance'\. Mend the entry"),
        ("label_names", ["zero", ""], r": label_names: class 1 lacks a name: ''\. Mend the entry"),
        ("label_names", [0], r": label_names must be a list of strings, got \[0\]\. Mend the entry"),
    ],
)
def test_entries_of_the_wrong_kind(saved, entry, value, message):
    change(saved, entry, value)
    with pytest.raises(ValueError, match=rf"saved/config\.json ?{message}"):
        Pipeline.from_pretrained(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is no JSON .*; save or fetch it again"),
        ('{"name": "x", "model": {}}', r"config\.json lacks model_cls: it is not what .* Pipeline\.from_diff"),
        ("[1]", r"config\.json holds a list where an object was expected"),
    ],
)
def test_a_config_that_is_no_pipelines(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(tmp_path)


def test_a_folder_without_a_config_or_with_a_checkpoint_beside_it(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in (".", "empty"):
        with pytest.raises(ValueError, match=rf"there is no config\.json in {folder}: give a folder that"):
            Pipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"there is no config\.json in .*/nothing: give a folder that"):
        Pipeline.from_pretrained(saved / "nothing")
    with pytest.raises(ValueError, match=r"is a folder with weights of its own, so that checkpoint x\.pt has no place"):
        Pipeline.from_pretrained(saved, checkpoint="x.pt")
