"""Models of the zoo inside diffusers' own loops, against ditzoo's samplers on the same times."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import ditzoo
from ditzoo.diffusion import (
    GaussianDiffusion,
    ddim_sample,
    dpmpp_2m_sample,
    euler_sample,
    guide,
    make_process,
    sample_noise,
)
from ditzoo.interop import DiffusersTransformer, make_scheduler
from ditzoo.recipe import Guidance, Recipe
from tests.golden_cases import relative_error
from tests.zoo import TINY, inputs, lively, on_meta

DISCRETE = [name for name in TINY if ditzoo.model_info(name).recipe.is_discrete]
FLOWS = [name for name in TINY if ditzoo.model_info(name).recipe.schedule == "flow_linear"]
IMAGENET = {"in_channels": 4, "num_classes": 1000}
EPSILON = Recipe(prediction="epsilon", schedule="linear")
#: Both sides compute in float32; diffusers' tables are float32 too, ditzoo's float64.
TOLERANCE = 5e-6


def learns_sigma(name: str) -> bool:
    try:
        return on_meta(name, learn_sigma=True).out_channels == 2
    except ValueError:
        return False


def make_pipe(diffusers, transformer, vae, scheduler):
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(pipe, labels, monkeypatch, **options) -> torch.Tensor:
    """What an unmodified pipeline hands to its autoencoder, unscaled."""
    decoded = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, *rest, **more: decoded.append(z) or decode(z, *rest, **more))
    images = pipe(class_labels=labels, generator=torch.manual_seed(3), output_type="np", **options).images
    assert images.shape == (len(labels), 8, 8, 3)
    assert np.isfinite(images).all()
    return decoded[0] * pipe.vae.config.scaling_factor


def start(labels) -> torch.Tensor:
    return torch.randn(len(labels), 4, 8, 8, generator=torch.manual_seed(3))


# In DiTPipeline.


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_ddim_of_the_pipeline_is_that_of_ditzoo(diffusers, vae, monkeypatch, name, scale):
    model, recipe, labels = lively(name, **IMAGENET), ditzoo.model_info(name).recipe, [1, 999]
    pipe = make_pipe(diffusers, DiffusersTransformer(model, recipe), vae, make_scheduler(recipe)).to("cpu")
    found = latents_of(pipe, labels, monkeypatch, guidance_scale=scale, num_inference_steps=4)
    assert pipe.scheduler.timesteps.tolist() == [750, 500, 250, 0]
    denoiser = guide(model, Guidance(scale=scale), model.null_label)
    with torch.no_grad():
        expected = ddim_sample(
            denoiser, GaussianDiffusion(recipe), start(labels), torch.tensor(labels), times=[750, 500, 250, 0, -1]
        )
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in DISCRETE if learns_sigma(name)])
def test_a_learned_variance_is_taken_off(diffusers, vae, monkeypatch, name):
    model, labels = lively(name, learn_sigma=True, **IMAGENET), [7]
    transformer = DiffusersTransformer(model, EPSILON)
    assert transformer.config.out_channels == 8
    pipe = make_pipe(diffusers, transformer, vae, make_scheduler(EPSILON))
    found = latents_of(pipe, labels, monkeypatch, guidance_scale=2.0, num_inference_steps=2)
    with torch.no_grad():
        denoiser = guide(model, Guidance(scale=2.0), 1000)
        expected = ddim_sample(
            denoiser, GaussianDiffusion(EPSILON), start(labels), torch.tensor(labels), times=[500, 0, -1]
        )
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("name", DISCRETE)
def test_dpm_solver_of_the_pipeline_is_that_of_ditzoo(diffusers, vae, monkeypatch, name):
    model, recipe, labels = lively(name, **IMAGENET), ditzoo.model_info(name).recipe, [5]
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(make_scheduler(recipe).config)
    pipe = make_pipe(diffusers, DiffusersTransformer(model, recipe), vae, scheduler)
    found = latents_of(pipe, labels, monkeypatch, guidance_scale=1.0, num_inference_steps=5)
    times = [*scheduler.timesteps.tolist(), -1]
    assert times[0] == 999
    with torch.no_grad():
        expected = dpmpp_2m_sample(model, GaussianDiffusion(recipe), start(labels), torch.tensor(labels), times=times)
    assert relative_error(found, expected) < TOLERANCE


def test_continuous_time_is_where_the_noise_level_is_the_timesteps(diffusers, vae, monkeypatch):
    recipe = replace(
        EPSILON, schedule="continuous_vp", time_scale=999.0, sampler="dpm_3s", guidance=Guidance(convention="uvit")
    )
    model, labels, process = lively("uvit_ti_2", **IMAGENET), [5, 6], make_process(recipe)
    transformer = DiffusersTransformer(model, recipe)
    timesteps = torch.tensor([750, 500, 250, 0])
    times = transformer.network_time(timesteps).double() / 999
    linear = make_scheduler(EPSILON).alphas_cumprod[timesteps].double()
    assert torch.allclose(process.levels(times)[0] ** 2, linear, rtol=1e-4)
    assert times.tolist() == pytest.approx([0.751, 0.501, 0.251, 0.001], abs=3e-3)  # (timestep + 1) / 1000, nearly
    halfway = transformer.network_time(torch.tensor([500.5, 999.0]))
    assert torch.allclose(halfway, transformer.network_time(torch.tensor([[500, 501], [999, 999]])).mean(1))

    pipe = make_pipe(diffusers, transformer, vae, make_scheduler(recipe))
    found = latents_of(pipe, labels, monkeypatch, guidance_scale=1.0, num_inference_steps=4)
    with torch.no_grad():
        expected = ddim_sample(model, process, start(labels), torch.tensor(labels), times=[*times.tolist(), 0.0])
    assert relative_error(found, expected) < TOLERANCE


def test_the_comparison_sees_times_that_are_off_by_one(diffusers, vae, monkeypatch):
    model, recipe, labels = lively("uvit_ti_2", **IMAGENET), ditzoo.model_info("uvit_ti_2").recipe, [1, 999]
    pipe = make_pipe(diffusers, DiffusersTransformer(model), vae, make_scheduler(recipe))  # without the recipe
    found = latents_of(pipe, labels, monkeypatch, guidance_scale=1.0, num_inference_steps=4)
    with torch.no_grad():
        expected = ddim_sample(
            model, GaussianDiffusion(recipe), start(labels), torch.tensor(labels), times=[750, 500, 250, 0, -1]
        )
    assert relative_error(found, expected) > 100 * TOLERANCE


@pytest.mark.parametrize("num_classes", [10, 999])
def test_null_label_of_the_pipeline_becomes_that_of_the_model(diffusers, vae, monkeypatch, num_classes):
    model = lively("dit_ti_2", in_channels=4, num_classes=num_classes)
    pipe = make_pipe(diffusers, DiffusersTransformer(model), vae, make_scheduler(EPSILON))
    found = latents_of(pipe, [3], monkeypatch, guidance_scale=2.0, num_inference_steps=2)
    denoiser = guide(model, Guidance(scale=2.0), num_classes)
    with torch.no_grad():
        expected = ddim_sample(denoiser, GaussianDiffusion(EPSILON), start([3]), torch.tensor([3]), times=[500, 0, -1])
    assert relative_error(found, expected) < TOLERANCE


def test_a_thousandth_class_is_no_null_label():
    model = lively("dit_ti_2", num_classes=1001)
    x, t, y = inputs(model)[0], torch.tensor([3, 4]), torch.tensor([1000, 1001])
    assert torch.equal(DiffusersTransformer(model)(x, t, y).sample, model(x, t, y))


def test_model_without_null_label_keeps_the_pipelines():
    model = lively("dit_ti_2", class_dropout_prob=0.0)
    with pytest.raises(ValueError, match="label 1000 is out of range: this DiT takes labels from 0 to 9"):
        DiffusersTransformer(model)(inputs(model)[0], 3, torch.tensor([1, 1000]))


def test_unconditional_model_in_the_pipeline(diffusers, vae, monkeypatch):
    model = lively("mdt_ti_2", in_channels=4, num_classes=0)
    pipe = make_pipe(diffusers, DiffusersTransformer(model), vae, make_scheduler(EPSILON))
    found = latents_of(pipe, [3], monkeypatch, guidance_scale=2.0, num_inference_steps=2)
    with torch.no_grad():
        expected = ddim_sample(model, GaussianDiffusion(EPSILON), start([3]), times=[500, 0, -1])
    assert relative_error(found, expected) < TOLERANCE


def test_pipeline_registers_moves_and_saves(diffusers, vae, tmp_path):
    transformer = DiffusersTransformer(lively("dit_ti_2", **IMAGENET))
    pipe = make_pipe(diffusers, transformer, vae, make_scheduler(EPSILON))
    assert pipe.config["transformer"] == ("ditzoo.interop.transformer", "DiffusersTransformer")
    assert pipe.components["transformer"] is transformer
    images = pipe(class_labels=[1], num_inference_steps=2).images
    assert images[0].size == (8, 8)

    assert pipe.to("cpu") is pipe
    pipe.to(torch.bfloat16)
    assert transformer.dtype == transformer.model.dtype == torch.bfloat16
    assert pipe(class_labels=[1], num_inference_steps=2, output_type="pt").images.dtype == torch.bfloat16
    pipe.to(torch.float32)

    pipe.save_pretrained(tmp_path)  # without the transformer, which diffusers cannot save
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_index.json", "scheduler", "vae"]
    again = diffusers.DiTPipeline.from_pretrained(tmp_path, transformer=transformer)
    assert again.transformer is transformer
    assert again.vae.config.latent_channels == 4


def test_takes_the_place_of_a_pipelines_own_transformer(diffusers, vae):
    own = diffusers.DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=8)
    pipe = make_pipe(diffusers, own, vae, make_scheduler(EPSILON))
    pipe.transformer = DiffusersTransformer(lively("uvit_ti_2", **IMAGENET), ditzoo.model_info("uvit_ti_2").recipe)
    assert pipe(class_labels=[1], num_inference_steps=1).images[0].size == (8, 8)


# Flows.


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("prediction_time", [(1.0, 0.0), (1000.0, 0.5)])
def test_flow_under_diffusers_euler_is_that_of_ditzoo(diffusers, name, prediction_time):
    scale, offset = prediction_time
    recipe = replace(ditzoo.model_info(name).recipe, time_scale=scale, time_offset=offset)
    model = lively(name)
    transformer, scheduler = DiffusersTransformer(model, recipe), make_scheduler(recipe)
    assert isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    noise, labels, steps = sample_noise(0, range(3), (1, 8, 8)), torch.tensor([1, 2, 3]), 5
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(transformer(x, t, labels).sample, t, x).prev_sample
        expected = euler_sample(model, make_process(recipe), noise, labels, num_inference_steps=steps)
    assert relative_error(x, expected) < TOLERANCE


def test_flow_has_its_sign_and_time_turned():
    model = lively("sit_ti_2")
    recipe = ditzoo.model_info("sit_ti_2").recipe
    x, _, y = inputs(model)
    sigma = torch.tensor([1.0, 0.25])
    with torch.no_grad():
        turned = DiffusersTransformer(model, recipe)(x, 1000 * sigma, y).sample
        plain = DiffusersTransformer(model)(x, 1 - sigma, y).sample
        assert torch.equal(plain, model(x, torch.tensor([0.0, 0.75]), y))
    assert torch.equal(turned, -plain)


# The module by itself.


def test_configuration_reads_like_diffusers_own(diffusers):
    model = on_meta("dit_xl_2")
    transformer = DiffusersTransformer(model)
    expected = {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_embeds_ada_norm": 1000,
    }
    own = diffusers.DiTTransformer2DModel(
        num_layers=1, num_attention_heads=1, attention_head_dim=8, sample_size=4
    ).config
    assert dict(transformer.config) == expected
    assert set(expected) <= set(own)
    assert type(transformer.config) is type(own)
    assert transformer.config.sample_size == transformer.config["sample_size"] == transformer.config.get("sample_size")
    assert transformer.config.get("norm_eps") is None
    assert DiffusersTransformer(on_meta("sit_xl_2")).config.out_channels == 4
    assert (transformer.dtype, transformer.device) == (torch.float32, torch.device("meta"))


@pytest.mark.parametrize("timestep", [500, torch.tensor(500), torch.tensor([500]), torch.tensor([500, 500])])
@pytest.mark.parametrize(("name", "network_time"), [("dit_ti_2", 500), ("uvit_ti_2", 501)])
def test_timesteps_of_every_form(timestep, name, network_time):
    model = lively(name)
    x, _, y = inputs(model)
    with torch.no_grad():
        expected = model(x, torch.tensor([network_time] * 2), y)
        transformer = DiffusersTransformer(model, ditzoo.model_info(name).recipe)
        output = transformer(x, timestep=timestep, class_labels=y)
        (sample,) = transformer(x, timestep=timestep, class_labels=y, return_dict=False)
    assert torch.equal(output.sample, expected)
    assert torch.equal(output[0], expected)
    assert torch.equal(sample, expected)


def test_weights_are_the_models_own():
    model = lively("dit_ti_2")
    transformer = DiffusersTransformer(model)
    assert transformer.model is model
    assert {name for name, _ in transformer.named_parameters()} == {f"model.{n}" for n, _ in model.named_parameters()}
    assert list(transformer.buffers()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "timestep is missing: give one of the scheduler's timesteps"),
        ({"timestep": torch.tensor([1, 2, 3])}, r"timestep has shape \(3,\); give one for all 2 samples, or each one"),
        (
            {"timestep": 1, "cross_attention_kwargs": {"scale": 0.5}},
            "ditzoo's models take no cross_attention_kwargs, got scale; leave them out",
        ),
        ({"timestep": 1, "class_labels": None}, "y is missing: this DiT is conditioned on 10 classes"),
    ],
)
def test_wrong_calls(arguments, message):
    model = lively("dit_ti_2")
    x, _, y = inputs(model)
    with pytest.raises(ValueError, match=message):
        DiffusersTransformer(model)(x, **{"class_labels": y, **arguments})


def test_no_model_or_recipe():
    with pytest.raises(TypeError, match=r"takes a model, such as ditzoo.create\('dit_s_2'\), not 'dit_ti_2'"):
        DiffusersTransformer("dit_ti_2")
    with pytest.raises(TypeError, match=r"recipe must be a ditzoo.Recipe or None, got {'schedule': 'linear'}"):
        DiffusersTransformer(on_meta("dit_ti_2"), {"schedule": "linear"})


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(prediction="edm", schedule="edm", sampler="edm_heun"),
        Recipe(prediction="velocity", schedule="flow_gvp", sampler="euler"),
        Recipe(prediction="epsilon", schedule="flow_linear", sampler="euler"),
    ],
)
@pytest.mark.parametrize("make", [make_scheduler, lambda recipe: DiffusersTransformer(on_meta("sit_ti_2"), recipe)])
def test_recipes_that_diffusers_cannot_drive(recipe, make):
    message = f"schedule '{recipe.schedule}' and prediction '{recipe.prediction}'. What works: linear, scaled_linear"
    with pytest.raises(ValueError, match=message):
        make(recipe)


def test_works_in_a_process_that_has_not_used_diffusers_yet():
    """diffusers loads its modules when they are first used; what other tests have loaded may not be relied on."""
    code = (
        "import torch, ditzoo, sys\n"
        "from ditzoo.interop import DiffusersTransformer\n"
        "assert 'diffusers' not in sys.modules\n"
        "model = DiffusersTransformer(ditzoo.create('dit_ti_2'))\n"
        "print(model(torch.zeros(1, 1, 8, 8), 3, torch.tensor([1])).sample.shape, model.config.num_layers)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "torch.Size([1, 1, 8, 8]) 4\n"


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'DiffusersTransformer needs diffusers: pip install "ditzoo\[diffusers\]"'):
        DiffusersTransformer(on_meta("dit_ti_2"))
    with pytest.raises(ImportError, match=r'make_scheduler needs diffusers: pip install "ditzoo\[diffusers\]"'):
        make_scheduler(EPSILON)


# Schedulers.


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("steps", [1000, 250])
def test_noise_levels_of_a_scheduler_are_those_of_the_recipe(schedule, steps):
    recipe = Recipe(prediction="v_prediction", schedule=schedule, num_train_timesteps=steps)
    scheduler = make_scheduler(recipe)
    levels = GaussianDiffusion(recipe).alphas_cumprod
    assert torch.allclose(scheduler.alphas_cumprod.double(), levels, rtol=2e-4, atol=1e-7)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.clip_sample is False
