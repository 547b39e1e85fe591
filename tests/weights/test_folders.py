"""Models on disk: nothing is lost, nothing is half written, and no folder is trusted."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ditzoo
from ditzoo import Pipeline
from ditzoo.diffusion import count_evaluations
from ditzoo.models import DiffusionTransformer, DiT, EvaluationResult, UViT
from ditzoo.pipeline.card import CardSubject, model_card
from ditzoo.weights import folders
from tests.own_models import WithOption
from tests.pipeline.pipes import QUICK
from tests.zoo import TINY, enliven, inputs, lively

#: One folder of each version of the format, with outputs of its model.
FOLDERS = Path(__file__).parent / "folders"
#: The sha256 of each file: users have such folders, so that theirs change no more.
FROZEN = {
    "version-1/config.json": "15d55258beee66740609d41b6b6d6c3ecaa63acc50d4bde80eb52527e5632357",
    "version-1/model.safetensors": "bb72204a74ab2c79a47b571df36bf92bc65cea97ff1391f371fee37e48d6a287",
    "version-1/outputs.safetensors": "7fb58d91c40de60f71dfe8b59fc14bb05552f983bc701d2fe776b4da25a84f01",
    "version-1/weak_model.safetensors": "e3f2a3ef673dc61ddead0a5bf2a2d72fcef61ec5bb9bb1ccb76079a4a132009b",
}
RESULT = EvaluationResult(metric="Frechet distance (pixels)", value=1.25, dataset="digits", settings="8 samples")
#: What the constructors of the families have besides the options that all share.
UNUSUAL = {"mlp_ratio": 2.0, "class_dropout_prob": 0.25, "num_classes": 3, "input_size": 16}


def recipe_with(**entries):
    return {**QUICK.to_dict(), **entries}


def detailed(model):
    recipe = replace(QUICK, licence="CC0-1.0", source="a drawer", num_inference_steps=3)
    model.details = replace(
        model.details,
        name="mine",
        recipe=recipe,
        label_names=("one", "two, zwei", "three"),
        data="drawings",
        results=(RESULT,),
        training_command="python train.py --steps 3",
    )
    return model


@pytest.fixture
def saved(tmp_path):
    detailed(lively("dit_ti_2", num_classes=3)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def change_options(folder, **options):
    config = json.loads((folder / "config.json").read_text())
    change(folder, model={**config["model"], **options})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(again, model):
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.details == model.details
    assert again.dtype == model.dtype
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in again.named_parameters() if not parameter.requires_grad} == frozen
    with torch.no_grad():
        outputs = [one(*inputs(model)) for one in (again, model)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_nothing_is_lost(tmp_path, name):
    model = detailed(lively(name, **UNUSUAL))
    model.save_pretrained(tmp_path / "whole")
    assert names(tmp_path / "whole") == ["config.json", "model.safetensors"]
    assert_same(DiffusionTransformer.from_pretrained(tmp_path / "whole"), model)
    model.save_pretrained(tmp_path / "shards", max_shard_size=300_000)
    assert "model.safetensors.index.json" in names(tmp_path / "shards")
    assert len(names(tmp_path / "shards")) > 3
    assert_same(type(model).from_pretrained(str(tmp_path / "shards")), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_copy_of_half_precision_stays_so_unless_asked(tmp_path, dtype):
    model = lively("uvit_ti_2")
    model.save_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == torch.float32
    again = UViT.from_pretrained(tmp_path)
    assert again.dtype == dtype
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(dtype))
    assert UViT.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_shards_and_a_single_file_replace_each_other(tmp_path):
    small, large = lively("dit_ti_2", depth=1), lively("dit_ti_2")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model-of-a-friend.safetensors").write_text("mine too")
    for model, size in [(small, "5GB"), (large, 300_000), (small, 100_000), (large, "5GB")]:
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert_same(DiT.from_pretrained(tmp_path), model)
    assert names(tmp_path) == ["config.json", "model-of-a-friend.safetensors", "model.safetensors", "notes.txt"]


@pytest.mark.parametrize("place", ["weights", "config"])
def test_a_full_disk_leaves_the_old_model(saved, monkeypatch, place):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((folders, "save_weights") if place == "weights" else (Path, "write_text")), full)
        with pytest.raises(OSError, match=r"saved cannot be written: No space left on device\. Free some space"):
            lively("uvit_ti_2").save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_job_killed_between_two_files_leaves_no_mixture(saved, monkeypatch):
    moved = []

    def stop_at_the_second(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        Path(source).rename(target)

    monkeypatch.setattr("ditzoo.media.files.os.replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        lively("dit_ti_2", num_classes=3).save_pretrained(saved)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.json: give a folder that save_pretrained"):
        DiT.from_pretrained(saved)


def test_a_folder_that_others_write_too_is_not_removed(saved, tmp_path, monkeypatch):
    new = tmp_path / "new"

    def others_come_first(*arguments, **options):
        shutil.copytree(saved, new, dirs_exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_weights", others_come_first)
    with pytest.raises(OSError, match="No space left"):
        lively("uvit_ti_2").save_pretrained(new)
    assert names(new) == names(saved)


def test_what_killed_jobs_left_goes_after_a_day(saved):
    now = time.time()
    for name, hours in [(".new.partial-old", 25), (".new.partial-young", 1), (".mine.partial-old", 25)]:
        (saved / name).mkdir()
        (saved / name / "model.safetensors").write_bytes(b"half")
        os.utime(saved / name, (now, now - hours * 3600))
    model = DiT.from_pretrained(saved)  # it does not look into them
    model.save_pretrained(saved)
    assert names(saved) == [".mine.partial-old", ".new.partial-young", "config.json", "model.safetensors"]


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o077, 0o700, 0o600), (0o002, 0o775, 0o664)])
def test_who_may_read_is_what_the_umask_says(tmp_path, umask, folder, file):
    before = os.umask(umask)
    try:
        lively("dit_ti_2").save_pretrained(tmp_path / "saved", max_shard_size=500_000)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert ((tmp_path / "saved").stat().st_mode & 0o777, modes) == (folder, {file})


def test_a_model_without_values_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = ditzoo.create("dit_ti_2")
    with pytest.raises(ValueError, match="is on the meta device, where weights have no values; load weights first"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_tokens_are_blotted_out(tmp_path):
    token = "hf_" + "aBcD" * 9
    model = lively("dit_ti_2")
    model.details = replace(model.details, training_command=f"python train.py --token {token}")
    model.save_pretrained(tmp_path)
    assert token not in (tmp_path / "config.json").read_text()
    assert DiT.from_pretrained(tmp_path).details.training_command.startswith("python train.py --token ")


def test_a_class_is_loaded_as_what_it_is(saved):
    with pytest.raises(TypeError, match=r"saved holds a DiT, not a UViT: call DiT\.from_pretrained, or that of Diff"):
        UViT.from_pretrained(saved)


def test_options_can_be_changed_on_loading(saved, caplog):
    model = DiT.from_pretrained(saved)
    wider = DiT.from_pretrained(saved, num_classes=5)
    assert wider.num_classes == 5
    assert wider.details == replace(model.details, label_names=None)
    old, new = (one.state_dict()["y_embedder.embedding_table.weight"] for one in (model, wider))
    assert torch.equal(new[:3], old[:3])
    assert torch.equal(new[5], old[3])  # the null label
    assert set(wider.load_result.resized) == {"y_embedder.embedding_table.weight"}
    assert "y_embedder.embedding_table.weight" in caplog.text
    with pytest.raises(TypeError, match=r"has no option 'classes'\. Did you mean num_classes"):
        DiT.from_pretrained(saved, classes=5)
    with pytest.raises(ValueError, match="depth"):
        DiT.from_pretrained(saved, depth=1)


# Versions of the format.


@pytest.mark.parametrize("folder", sorted(FOLDERS.iterdir()), ids=lambda folder: folder.name)
def test_folders_of_every_version_load_for_ever(folder):
    model = DiffusionTransformer.from_pretrained(folder)
    assert model.config == {
        **ditzoo.model_info("dit_ti_2").config,
        **{"hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3, "class_dropout_prob": 0.25},
    }
    details = model.details
    assert (details.name, details.data, details.training_command) == ("mine", "drawings", "python train.py --steps 3")
    assert details.label_names == ("one", "two, zwei", "three")
    assert details.results == (RESULT,)
    assert (details.licence, details.source) == ("CC0-1.0", "a drawer")
    assert details.recipe == replace(QUICK, licence="CC0-1.0", source="a drawer", num_inference_steps=3)
    expected = load_file(folder / "outputs.safetensors")
    with torch.no_grad():
        output = model(expected["x"], expected["t"], expected["y"])
    torch.testing.assert_close(output, expected["output"], rtol=1e-4, atol=1e-5)
    pipe = ditzoo.Pipeline.from_pretrained(folder)
    assert pipe.weak_model is not None
    torch.testing.assert_close(pipe(["two", 0], seed=3).latents, expected["samples"], rtol=1e-3, atol=1e-4)


def test_folders_of_every_version_are_as_they_were_written():
    found = {
        path.relative_to(FOLDERS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDERS.rglob("*")
        if path.is_file()
    }
    assert found == FROZEN


def test_there_is_a_folder_of_the_version_that_is_written():
    assert (FOLDERS / f"version-{folders.SCHEMA_VERSION}").is_dir()


def test_a_folder_from_before_versions_were_counted_loads(saved):
    config = json.loads((saved / "config.json").read_text())
    for entry in ("schema_version", "data", "results", "training_command"):
        del config[entry]
    (saved / "config.json").write_text(json.dumps(config))
    details = DiT.from_pretrained(saved).details
    assert (details.name, details.data, details.results, details.training_command) == ("mine", None, (), None)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, "has schema version 2, and this ditzoo .* reads up to 1: update ditzoo."),
        (0, "has schema_version=0, which must be a whole number from 1."),
        (True, "has schema_version=True, which must be a whole number from 1."),
        ("1", "has schema_version='1', which must be a whole number from 1."),
        (None, "has schema_version=None, which must be"),
    ],
)
def test_other_versions(saved, version, message):
    change(saved, schema_version=version)
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        DiT.from_pretrained(saved)


# Folders that are not what they should be.


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.py"}}, r"has 'auto_map', which no model's config has: remove it, or update"),
        ({"a\n": 1}, r"has \"'a\\\\n'\", which|has 'a\\n', which"),
        ({"results": [{"metric": "FID"}]}, "config.json: results: a result lacks dataset, value. Mend the entry"),
        ({"label_names": ["one", "two"]}, "label_names has 2 names, and the model 3 classes"),
        ({"label_names": {"one": 1}}, "label_names must be a list of strings"),
        ({"recipe": [1]}, "recipe: it must be a mapping"),
        ({"weak_model": {"model_cls": "ditzoo.models.DiT"}}, "weak_model in .*config.json lacks model"),
        ({"recipe": recipe_with(num_train_timesteps=10**12)}, "num_train_timesteps must be from 1 to 1,000,000, got"),
        ({"recipe": recipe_with(time_scale=10**400)}, "recipe: time_scale must be a finite number, got 10{59}\\. Mend"),
        ({"recipe": recipe_with(sampler_options={"gamma": 1})}, "sampler 'ddim' has no option 'gamma'"),
        ({"recipe": recipe_with(sampler_options={"eta": "x"})}, "option 'eta' of sampler 'ddim' must be a finite"),
        ({"recipe": recipe_with(**{"\x1b[2J": 1})}, r"unknown recipe entries: '\\x1b\[2J'\. Mend"),
        ({"recipe": recipe_with(sampler="x" * 10**6)}, "unknown sampler 'x{59}; choose one of ddpm"),
        ({"name": "\x1b[2J"}, r"name must be a text without .*, got '\\x1b\[2J'"),
        ({"schema_version": 10**4000}, r"has schema version 10{59}, and"),
        ({"model_cls": ["ditzoo.models.DiT"]}, "has model_cls=.*, which must be a str"),
    ],
)
def test_entries_that_are_refused(saved, entries, message):
    change(saved, **entries)
    with pytest.raises(ValueError, match=message) as raised:
        DiT.from_pretrained(saved)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": NaN}', "is no JSON (NaN is no number of JSON); save or fetch it again."),
        ('{"model": {}, "model": {}}', "is no JSON ('model' stands there twice); save or fetch it again."),
        ("[" * 100_000, "is no JSON (it is nested too deep); save or fetch it again."),
        ('{"a": ' + "9" * 5000 + "}", "is no JSON (Exceeds the limit"),
        ("\x00", "is no JSON (Expecting value"),
        ("[]", "holds a list where an object was expected"),
    ],
)
def test_json_that_is_refused(saved, text, message):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"config.json {message}")):
        DiT.from_pretrained(saved)


def test_a_config_larger_than_any_is_not_read(saved, monkeypatch):
    monkeypatch.setattr("ditzoo.weights.json_files.MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"config\.json has [\d,]+ bytes; JSON of at most 100 is read"):
        DiT.from_pretrained(saved)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 10**12},
        {"depth": 5_000},
        {"hidden_size": 4 * 10**12},
        {"hidden_size": 2 * 10**5},
        {"input_size": 10**8},
        {"num_classes": 10**15},
        {"in_channels": 10**12},
        {"num_classes": 10**30},
        {"mlp_ratio": 1e15},
    ],
    ids=str,
)
def test_sizes_beyond_the_file_are_refused_before_memory_is_asked_for(saved, options):
    change_options(saved, **options)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(ValueError, match=r"config\.json"):
        DiT.from_pretrained(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    assert time.perf_counter() - start < 30


def test_a_size_that_no_weights_tell_is_bounded(tmp_path):
    lively("diffit_unet_ti").save_pretrained(tmp_path)
    change_options(tmp_path, input_size=10**12)
    with pytest.raises(ValueError, match="input_size must be at most 65,536, got 1000000000000"):
        DiffusionTransformer.from_pretrained(tmp_path)


@pytest.mark.usefixtures("registry_sandbox")
def test_a_class_of_another_package_is_not_built_larger_than_its_file(tmp_path):
    ditzoo.register_model("own_ti_2", WithOption, {}, family="own")
    enliven(ditzoo.create("own_ti_2")).save_pretrained(tmp_path)
    assert type(DiffusionTransformer.from_pretrained(tmp_path)) is WithOption
    change_options(tmp_path, hidden_size=10**6)
    with pytest.raises(ValueError, match=r"does not fit the WithOption .* and should be"):
        DiffusionTransformer.from_pretrained(tmp_path)


def test_weights_of_another_family(saved, tmp_path):
    lively("uvit_ti_2", num_classes=3).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    message = (
        r"saved/model\.safetensors does not fit the DiT that config\.json beside it describes: .* missing .* They look "
        r"like those of UViT\. The two are written together: fetch the whole folder"
    )
    with pytest.raises(ValueError, match=message):
        DiT.from_pretrained(saved)


def test_weights_of_another_depth(saved):
    change_options(saved, depth=3)
    with pytest.raises(ValueError, match=r"does not fit the DiT .* unexpected blocks\.3\.\S+, blocks\.3"):
        DiT.from_pretrained(saved)


def test_weights_that_are_no_numbers_load_with_a_warning(saved):
    state = load_file(saved / "model.safetensors")
    state["blocks.0.mlp.fc1.weight"][3, 3] = torch.nan
    save_file(state, saved / "model.safetensors")
    with pytest.warns(UserWarning, match=r"model\.safetensors has NaN or .* 1 of 52 tensors \(blocks\.0\.mlp"):
        DiT.from_pretrained(saved)


hostile = st.sampled_from([10**12, 10**400, -(10**400), 1e308, 5e-324, "\x1b[2J", "\ud800", "x" * 10**5, "---\n|`<b>"])
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | hostile
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    detailed(lively("dit_ti_2", depth=1, num_classes=3)).save_pretrained(folder)
    return folder, json.loads((folder / "config.json").read_text())


def objects_in(value):
    """The value and what is in it, where they are objects of JSON."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects_in(inner)


def error_of_use(folder):
    """How a folder is refused; None where it loads and serves for a card and a pipeline."""
    try:
        model = DiT.from_pretrained(folder)
        assert model_card(CardSubject(model=model, details=model.details), "me/mine").encode()
        if model.details.recipe is not None:
            Pipeline(model, model.details.recipe, label_names=model.details.label_names)
            count_evaluations(model.details.recipe)
    except (ValueError, OSError) as error:
        return error
    return None


@settings(max_examples=150, deadline=5_000, derandomize=True, database=None)
@given(data=st.data())
def test_no_config_does_worse_than_an_error_of_ours(template, data):
    """When it is read, nor when what was read is used."""
    folder, config = template
    changed = json.loads(json.dumps(config))
    for _ in range(data.draw(st.integers(1, 3))):
        objects = list(objects_in(changed))
        entries = objects[data.draw(st.integers(0, len(objects) - 1))]
        key = data.draw(st.sampled_from(sorted(entries)) if entries else st.text(max_size=5))
        if data.draw(st.booleans()):
            entries[key] = data.draw(values)
        else:
            entries.pop(key, None)
    (folder / "config.json").write_text(json.dumps(changed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = error_of_use(folder)
    assert not isinstance(error, UnicodeError)
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
