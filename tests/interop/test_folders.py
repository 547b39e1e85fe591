"""Folders of diffusers' pipeline: written, loaded by diffusers, loaded back, and refused."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ditzoo
from ditzoo.diffusion import get_sampler, make_process
from ditzoo.interop import load_diffusers, make_scheduler, patch_diffusers, save_diffusers, to_diffusers
from ditzoo.interop.schedulers import recipe_of_pipeline
from ditzoo.layers import sincos_position_table
from ditzoo.media import load_codec
from ditzoo.models import ModelDetails
from ditzoo.recipe import Guidance, Recipe
from tests.golden_cases import relative_error
from tests.hub import cached_repository
from tests.zoo import inputs, lively, on_meta

RECIPE = replace(ditzoo.model_info("dit_xl_2.in256").recipe, licence="none", source="a test")

pytestmark = pytest.mark.filterwarnings("ignore:.*deviates from this model:UserWarning")


def latent_model(**options):
    return lively("dit_ti_2", **{"in_channels": 4, "learn_sigma": True, "depth": 2, **options})


def assert_same_weights(one, other):
    state, again = one.state_dict(), other.state_dict()
    assert set(state) == set(again)
    for name, tensor in state.items():
        assert torch.equal(again[name], tensor), name


def test_pipeline_loads_what_was_saved(diffusers, vae, tmp_path):
    model, folder = latent_model(num_classes=1000), tmp_path / "deep" / "dit"
    save_diffusers(model, folder, RECIPE, vae=vae)
    assert [path.name for path in folder.parent.iterdir()] == ["dit"]
    names = ["ditzoo.json", "model_index.json", "scheduler", "transformer", "vae"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(class_labels=[1], num_inference_steps=2).images[0].size == (8, 8)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert pipe.scheduler.config.clip_sample is False
    for name, tensor in vae.state_dict().items():
        assert torch.equal(pipe.vae.state_dict()[name], tensor)

    x, t, y = inputs(model)
    with torch.no_grad():
        expected = model(x, t, y)
        assert relative_error(pipe.transformer(x, t, y).sample, expected) > 1e-3
        assert relative_error(patch_diffusers(pipe.transformer)(x, t, y).sample, expected) < 2e-5

    again, recipe = load_diffusers(folder)
    assert recipe == RECIPE
    assert again.config == model.config
    assert not again.training
    assert_same_weights(model, again)


def test_index_is_that_of_diffusers_with_names_of_classes(diffusers, vae, tmp_path):
    model, token = latent_model(), "hf_" + "a1B2" * 9
    names = ("tench, Tinca tinca", *"bcdefghij")
    model.details = ModelDetails(label_names=names, training_command=f"HF_TOKEN={token} ditzoo train")
    save_diffusers(model, tmp_path / "ours", RECIPE, vae=vae)
    diffusers.DiTPipeline(to_diffusers(model), vae, make_scheduler(RECIPE)).save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / side / "model_index.json").read_text()) for side in ("ours", "theirs"))
    assert ours.pop("id2label") == {str(label): name for label, name in enumerate(names)}
    assert ours == theirs
    assert "HF_TOKEN=" in (tmp_path / "ours" / "ditzoo.json").read_text()
    assert not any(token.encode() in path.read_bytes() for path in tmp_path.rglob("*.json"))
    config = Path("transformer", "config.json")
    assert json.loads((tmp_path / "ours" / config).read_text()) == json.loads(
        (tmp_path / "theirs" / config).read_text()
    )


def test_without_vae_and_with_a_scheduler(diffusers, vae, tmp_path):
    model = latent_model(class_dropout_prob=0.25).to(torch.bfloat16)
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(make_scheduler(RECIPE).config)
    save_diffusers(model, str(tmp_path), RECIPE, scheduler=scheduler)  # an empty folder is as good as none
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {
        "_class_name": "DiTPipeline",
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "vae": [None, None],
    }
    pipe = diffusers.DiTPipeline.from_pretrained(tmp_path, vae=vae)
    assert type(pipe.scheduler) is diffusers.DPMSolverMultistepScheduler
    assert pipe.vae is vae
    again, recipe = load_diffusers(str(tmp_path))
    assert recipe == RECIPE
    assert again.config == model.config
    assert again.dtype == torch.float32  # as diffusers loads; the position table is computed anew, without rounding
    model.float().pos_embed.data.copy_(sincos_position_table(64, (4, 4)))
    assert_same_weights(model, again)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_recipe_of_a_folder_by_diffusers_alone(diffusers, vae, tmp_path, schedule, prediction):
    model = latent_model()
    stated = Recipe(prediction=prediction, schedule=schedule, num_train_timesteps=500)
    vae.register_to_config(scaling_factor=0.5)
    pipe = diffusers.DiTPipeline(to_diffusers(model), vae, make_scheduler(stated))
    pipe.save_pretrained(tmp_path)
    again, recipe = load_diffusers(tmp_path)
    assert_same_weights(model, again)
    assert again.config["class_dropout_prob"] == 0.1
    assert recipe == replace(
        stated,
        variance="learned_range",
        loss="hybrid",
        guidance=Guidance(scale=4.0),
        sampler="ddim",
        num_inference_steps=50,
        latent_codec=f"{tmp_path}/vae",
        latent_scale=0.5,
        source=str(tmp_path),
    )


def recipe_of(scheduler, folder, **options):
    """What is read from a folder that has this scheduler."""
    save_diffusers(latent_model(**options), folder, RECIPE, scheduler=scheduler)
    (folder / "ditzoo.json").unlink()
    return load_diffusers(folder)[1]


#: of a scheduler without options of its own: what the recipe has besides schedule, prediction and guidance
PLAIN = {"sampler_options": {}, "variance": "fixed_large", "loss": "mse"}


@pytest.mark.parametrize(
    ("scheduler", "options", "expected"),
    [
        ("DDIMScheduler", {"clip_sample": False}, {"sampler": "ddim"}),
        ("DPMSolverMultistepScheduler", {}, {"sampler": "dpmpp_2m"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, {"sampler": "dpmpp_3m"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, {"sampler": "ddim"}),
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True},
            {"sampler": "dpmpp_2m", "sampler_options": {"spacing": "karras"}},
        ),
        (
            "DPMSolverMultistepScheduler",
            {"use_lu_lambdas": True},
            {"sampler": "dpmpp_2m", "sampler_options": {"spacing": "log_snr"}},
        ),
        ("UniPCMultistepScheduler", {}, {"sampler": "unipc"}),
        (
            "UniPCMultistepScheduler",
            {"solver_order": 3, "use_exponential_sigmas": True},
            {"sampler": "unipc", "sampler_options": {"spacing": "log_snr", "order": 3}},
        ),
        (
            "DDPMScheduler",
            {},
            {"sampler": "ddpm", "sampler_options": {"clip_sample": True}, "variance": "fixed_small"},
        ),
        (
            "DDPMScheduler",
            {"variance_type": "fixed_large", "clip_sample": False, "clip_sample_range": 2.0},
            {"sampler": "ddpm"},
        ),
        (
            "DDPMScheduler",
            {"variance_type": "fixed_small_log", "clip_sample": False},
            {"sampler": "ddpm", "variance": "fixed_small"},
        ),
    ],
)
def test_sampler_of_a_folder_by_diffusers_alone(diffusers, tmp_path, scheduler, options, expected):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sampler .* of the recipe")
        recipe = recipe_of(getattr(diffusers, scheduler)(**options), tmp_path, learn_sigma=False)
    assert (recipe.schedule, recipe.prediction) == ("linear", "epsilon")
    assert (recipe.latent_codec, recipe.latent_scale) == (None, 1.0)
    assert {key: getattr(recipe, key) for key in ("sampler", *PLAIN)} == {**PLAIN, **expected}
    get_sampler(recipe)  # which refuses options that the sampler does not have


@pytest.mark.parametrize(
    ("variance_type", "variance", "loss"),
    [("learned_range", "learned_range", "hybrid"), ("fixed_small", "fixed_small", "mse")],
)
def test_a_learned_variance_is_used_where_the_scheduler_uses_it(diffusers, tmp_path, variance_type, variance, loss):
    recipe = recipe_of(diffusers.DDPMScheduler(variance_type=variance_type, clip_sample=False), tmp_path)
    assert (recipe.sampler, recipe.variance, recipe.loss) == ("ddpm", variance, loss)


@pytest.mark.parametrize(
    ("scheduler", "options", "sampler", "without"),
    [
        ("PNDMScheduler", {}, "ddim", "PNDMScheduler"),
        ("DDIMScheduler", {}, "ddim", "DDIMScheduler(clip_sample=True)"),
        (
            "DDPMScheduler",
            {"clip_sample_range": 2.0, "thresholding": True},
            "ddpm",
            "DDPMScheduler(thresholding=True, clip_sample_range=2.0)",
        ),
        (
            "DDPMScheduler",
            {"variance_type": "fixed_large_log"},
            "ddpm",
            "DDPMScheduler(variance_type='fixed_large_log')",
        ),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "ddpm", "DDPMScheduler(variance_type='learned_range')"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            "dpmpp_2m",
            "DPMSolverMultistepScheduler(algorithm_type='dpmsolver', final_sigmas_type='sigma_min')",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"lambda_min_clipped": -5.1},
            "dpmpp_2m",
            "DPMSolverMultistepScheduler(lambda_min_clipped=-5.1)",
        ),
        (
            "DDIMScheduler",
            {"clip_sample": False, "set_alpha_to_one": False},
            "ddim",
            "DDIMScheduler(set_alpha_to_one=False)",
        ),
        (
            "UniPCMultistepScheduler",
            {"lower_order_final": False, "solver_order": 4},
            "unipc",
            "UniPCMultistepScheduler(lower_order_final=False, solver_order=4)",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"},
            "dpmpp_3m",
            "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++', solver_type='heun')",
        ),
        (
            "UniPCMultistepScheduler",
            {"predict_x0": False, "solver_type": "bh1", "disable_corrector": [0]},
            "unipc",
            "UniPCMultistepScheduler(predict_x0=False, solver_type='bh1', disable_corrector=[0])",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*algorithm_type dpmsolver is deprecated:FutureWarning")
def test_what_no_sampler_does_is_named(diffusers, tmp_path, scheduler, options, sampler, without):
    text = (
        f"sampler '{sampler}' of the recipe is not exactly what the pipeline does with {without}: images differ. "
        "Another sampler: dataclasses.replace(recipe, sampler=...)."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        recipe = recipe_of(getattr(diffusers, scheduler)(**options), tmp_path, learn_sigma=False)
    assert recipe.sampler == sampler
    assert [w.filename for w in caught if str(w.message) == text] == [__file__]


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_of_the_recipe_is_that_of_diffusers(diffusers, tmp_path, monkeypatch, variance_type, clip_sample):
    scheduler = diffusers.DDPMScheduler(variance_type=variance_type, clip_sample=clip_sample)
    recipe = recipe_of(scheduler, tmp_path, learn_sigma=False)
    model, labels = latent_model(learn_sigma=False), torch.tensor([3])
    scheduler.set_timesteps(4)
    start, *noises = torch.randn(5, 1, 4, 8, 8)
    draws = iter(noises)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws))
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t[None], labels), t, x).prev_sample
        times = [*map(float, scheduler.timesteps.tolist()), -1.0]
        process, sample = make_process(recipe), get_sampler(recipe)
        ours = sample(model, process, start, labels, times=times, step_noise=noises.__getitem__)
    assert relative_error(x, ours) < 1e-5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize(
    ("option", "scheduler"),
    [
        ("use_karras_sigmas", "DPMSolverMultistepScheduler"),
        ("use_lu_lambdas", "DPMSolverMultistepScheduler"),
        ("use_exponential_sigmas", "UniPCMultistepScheduler"),
    ],
)
def test_noise_levels_of_the_recipe_are_those_of_diffusers(diffusers, tmp_path, option, scheduler):
    scheduler = getattr(diffusers, scheduler)(**{option: True})
    recipe = recipe_of(scheduler, tmp_path)
    scheduler.set_timesteps(6)
    process = make_process(recipe)
    alphas, sigmas = zip(*map(process.level, process.times(6, recipe.sampler_options["spacing"])), strict=True)
    ours = [sigma / alpha for alpha, sigma in zip(alphas, sigmas, strict=True)]
    assert ours == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4, abs=1e-6)


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"beta_end": 0.03}, "have no name in ditzoo: _class_name='DDIMScheduler', beta_schedule='linear', "),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"trained_betas": [0.1] * 10}, r"trained_betas=\[0.1"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True.* squaredcos_cap_v2. from_diffusers"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name='FlowMatchEulerDiscreteScheduler'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' has no counterpart; epsilon, v_"),
    ],
)
def test_schedulers_that_no_recipe_has(tmp_path, entries, message):
    save_diffusers(latent_model(), tmp_path, RECIPE)
    (tmp_path / "ditzoo.json").unlink()
    edit(tmp_path / "scheduler" / "scheduler_config.json", **entries)
    with pytest.raises(ValueError, match=message):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        {"_class_name": 3},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": 0},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": "2"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": -1},
    ],
    ids=str,
)
def test_entries_of_a_scheduler_of_wrong_types(entries):
    with pytest.raises(ValueError, match="the scheduler or the autoencoder has an entry of a wrong type or size"):
        recipe_of_pipeline(entries, learned_variance=False, vae=None, vae_name="", source="here")


def test_a_scheduler_of_more_timesteps_than_memory():
    entries = {"num_train_timesteps": 10**12, "beta_start": 1e-13, "beta_end": 2e-11}
    with pytest.raises(ValueError, match="num_train_timesteps must be from 1 to 1,000,000, got 1000"):
        recipe_of_pipeline(entries, learned_variance=False, vae=None, vae_name="", source="here")


def test_saving_warns_by_how_much_and_what_to_do(tmp_path):
    with pytest.warns(UserWarning, match="deviates from this model") as caught:
        save_diffusers(latent_model(), tmp_path / "dit", RECIPE)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"What diffusers loads from {tmp_path}/dit deviates from this model: diffusers computes")
    assert "10 % at t = 417 and 18 % at t = 999" in message
    assert message.endswith("in memory: ditzoo.interop.patch_diffusers(pipe.transformer) after loading.")
    assert caught[0].filename == __file__


# A repository of the Hub.


def saved_by_others(model, folder, vae=None):
    """A folder without what ditzoo adds to it."""
    save_diffusers(model, folder, RECIPE, vae=vae)
    (folder / "ditzoo.json").unlink()


def test_repository_of_the_hub(vae, tmp_path, monkeypatch):
    model = latent_model()
    save_diffusers(model, tmp_path / "dit", RECIPE, vae=vae)
    repository = cached_repository(monkeypatch, tmp_path / "cache", "owner/name", tmp_path / "dit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, recipe = load_diffusers("owner/name")
    assert_same_weights(model, again)
    assert recipe == RECIPE
    (repository / "ditzoo.json").unlink()
    _, recipe = load_diffusers("owner/name")
    assert (recipe.source, recipe.latent_codec, recipe.latent_scale) == ("owner/name", "owner/name/vae", 0.18215)
    edit(repository / "vae" / "config.json", _name_or_path="/some/other/machine/vae")
    assert load_diffusers("owner/name")[1].latent_codec == "owner/name/vae"
    edit(repository / "vae" / "config.json", _name_or_path="stabilityai/sd-vae-ft-ema")
    assert load_diffusers("owner/name")[1].latent_codec == "stabilityai/sd-vae-ft-ema"


def test_the_recorded_autoencoder_of_a_folder_can_be_opened_from_elsewhere(vae, tmp_path, monkeypatch):
    saved_by_others(latent_model(), tmp_path / "dit", vae)
    monkeypatch.chdir(tmp_path)
    _, recipe = load_diffusers("dit")
    monkeypatch.chdir("/")
    assert recipe.latent_codec == f"{tmp_path}/dit/vae"
    assert load_codec(recipe.latent_codec, scale=recipe.latent_scale).latent_channels == 4


def test_shift_of_the_autoencoder(vae, tmp_path):
    vae.register_to_config(shift_factor=0.1)
    saved_by_others(latent_model(), tmp_path, vae)
    _, recipe = load_diffusers(tmp_path)
    assert (recipe.latent_scale, recipe.latent_shift) == (0.18215, 0.1)


def test_a_repository_whose_scheduler_is_not_here_is_not_guessed(tmp_path, monkeypatch):
    saved_by_others(latent_model(), tmp_path / "dit")
    repository = cached_repository(monkeypatch, tmp_path / "cache", "owner/name", tmp_path / "dit")
    (repository / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(OSError, match=r"the scheduler of owner/name is neither there nor on this machine; fetch the"):
        load_diffusers("owner/name")


# Refused.


@pytest.mark.parametrize("place", ["nowhere", "/no/where", "a/b/c", "./a/b"])
def test_no_folder_and_no_repository(place):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {place}, and no repository of the Hub has such"):
        load_diffusers(place)


def test_folder_without_transformer(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no folder `transformer`: give one that DiTPipeline"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ditzoo.json", "{", "{}/ditzoo.json is no JSON"),
        ("ditzoo.json", "{}", "ditzoo.json of {} is not what ditzoo writes: it has no recipe"),
        ("scheduler/scheduler_config.json", "", "{}/scheduler/scheduler_config.json is no JSON"),
    ],
)
def test_damaged_json_is_named(tmp_path, name, content, message):
    save_diffusers(latent_model(), tmp_path, RECIPE)
    if name != "ditzoo.json":
        (tmp_path / "ditzoo.json").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message.format(tmp_path)):
        load_diffusers(tmp_path)


def test_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(FileExistsError, match=f"{folder} exists and is no empty folder; choose another name"):
            save_diffusers(latent_model(), folder, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_failure_leaves_nothing_behind(tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_diffusers(latent_model(), tmp_path / "dit", RECIPE, scheduler=Broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_scale": 2.0}, "DiTPipeline has no place for time_scale=2.0 of the recipe; it works with 1.0"),
        ({"time_offset": 1.0}, "DiTPipeline has no place for time_offset=1.0 of the recipe; it works with 0.0"),
        ({"latent_shift": 0.1}, "DiTPipeline has no place for latent_shift=0.1 of the recipe; it works with 0.0"),
        (
            {"schedule": "flow_linear", "prediction": "velocity", "sampler": "euler", "variance": "fixed_large"},
            "DiTPipeline counts whole timesteps, and the recipe's schedule 'flow_linear' has none; it takes linear, ",
        ),
    ],
)
def test_recipes_without_a_place(tmp_path, changes, message):
    if changes.get("variance"):
        changes = {**changes, "loss": "mse"}
    with pytest.raises(ValueError, match=message):
        save_diffusers(latent_model(), tmp_path, replace(RECIPE, **changes))


def test_no_recipe(tmp_path):
    with pytest.raises(TypeError, match=r"recipe must be a ditzoo.Recipe, got None"):
        save_diffusers(latent_model(), tmp_path, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": 0.5}, "the vae's scaling_factor is 0.5, but the model's latents have 0.18215"),
        ({"latent_channels": 16}, "the vae's latent_channels is 16, but the model's latents have 4"),
    ],
)
def test_autoencoder_of_other_latents(tmp_path, vae, changes, message):
    vae.register_to_config(**changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        save_diffusers(latent_model(), tmp_path, RECIPE, vae=vae)


def test_other_networks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="diffusers has a class for DiT alone; a SiT cannot be converted"):
        save_diffusers(on_meta("sit_ti_2"), tmp_path / "sit", RECIPE)
    with pytest.raises(ValueError, match="conditioning='adaln'; it needs 'adaln_zero'"):
        save_diffusers(on_meta("dit_ti_2_adaln"), tmp_path / "dit", RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_without_diffusers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'save_diffusers needs diffusers: pip install "ditzoo\[diffusers\]"'):
        save_diffusers(on_meta("dit_ti_2"), tmp_path / "dit", RECIPE)
    with pytest.raises(ImportError, match=r'load_diffusers needs diffusers: pip install "ditzoo\[diffusers\]"'):
        load_diffusers(tmp_path)
