"""Pipelines to and from diffusers."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

import ditzoo
from ditzoo.diffusion import ddim_sample, make_process
from ditzoo.interop import save_diffusers
from ditzoo.media import LatentCodec
from ditzoo.pipeline import Pipeline
from ditzoo.pipeline.denoising import Batch, denoise
from ditzoo.recipe import Guidance
from tests.hub import cached_repository
from tests.pipeline.pipes import QUICK, tiny
from tests.zoo import lively

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra")
RECIPE = dataclasses.replace(
    QUICK, prediction="epsilon", schedule="linear", latent_codec="small", latent_scale=0.5, num_inference_steps=3
)
MODEL = lively("dit_ti_2", in_channels=4, num_classes=1000)


def small_codec(scale=0.5, shift=0.0, **config):
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5, **config)
    return LatentCodec(autoencoder, scale=scale, shift=shift, name="small")


@pytest.fixture(scope="module")
def codec():
    return small_codec()


def images_of_both(pipeline, label=7, guidance_scale=1.0):
    """(1, H, W, 3) of diffusers' own pipeline and of ours, of the same noise at the same three noise levels."""
    theirs = pipeline.to_diffusers()
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        class_labels=[label],
        guidance_scale=guidance_scale,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(4),
        output_type="np",
    ).images
    process = make_process(pipeline.recipe)
    timesteps = theirs.scheduler.timesteps.tolist()
    alphas_cumprod = theirs.scheduler.alphas_cumprod.double()[timesteps]
    times = [*map(float, timesteps), -1.0]
    if not pipeline.recipe.is_discrete:
        times = [*map(process.time_at, (alphas_cumprod / (1 - alphas_cumprod)).sqrt().log().tolist()), 0.0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    settings = pipeline.settings({"sampler": "ddim", "guidance": Guidance(scale=guidance_scale)})
    run = denoise(pipeline, settings, Batch(slice(1), [0], torch.tensor([label])), noise, times=times)
    ours = (pipeline.codec.decode(run.latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return images, ours


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "DiTTransformer2DModel"),
        ({"schedule": "cosine", "prediction": "v_prediction"}, "DiTTransformer2DModel"),
        ({"time_offset": 1.0}, "DiffusersTransformer"),
        ({"time_scale": 0.5}, "DiffusersTransformer"),
        ({"schedule": "continuous_vp", "time_scale": 999.0}, "DiffusersTransformer"),
    ],
)
def test_diffusers_draws_the_images_of_every_recipe(codec, changes, kind, learn_sigma, guidance_scale):
    model = lively("dit_ti_2", in_channels=4, num_classes=1000, learn_sigma=learn_sigma)
    pipeline = Pipeline(model, dataclasses.replace(RECIPE, **changes), codec)
    theirs, ours = images_of_both(pipeline, guidance_scale=guidance_scale)
    assert type(pipeline.to_diffusers().transformer).__name__ == kind
    assert np.abs(theirs - ours).max() < 1e-4
    assert ours.std() > 0.01


def test_a_learned_variance_of_the_recipe_changes_nothing(codec):
    model = lively("dit_ti_2", in_channels=4, num_classes=1000, learn_sigma=True)
    recipe = dataclasses.replace(RECIPE, variance="learned_range", loss="hybrid", time_offset=1.0)
    theirs, ours = images_of_both(Pipeline(model, recipe, codec))
    assert np.abs(theirs - ours).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mdt_ti_2", {}),
        ("dit_ti_2", {"num_classes": 10}),  # its null label is not the pipeline's
        ("dit_ti_2", {"mlp_ratio": 2.0}),
        ("dit_ti_2_adaln", {}),
    ],
)
def test_diffusers_draws_the_images_of_models_that_it_has_no_class_for(codec, name, options):
    model = lively(name, **{"in_channels": 4, "num_classes": 1000, **options})
    theirs, ours = images_of_both(Pipeline(model, RECIPE, codec), guidance_scale=2.0)
    assert np.abs(theirs - ours).max() < 1e-4


def test_diffusers_draws_the_images_of_an_unconditional_model(codec):
    pipeline = Pipeline(lively("dit_ti_2", in_channels=4, num_classes=0), RECIPE, codec)
    theirs = pipeline.to_diffusers()
    theirs.set_progress_bar_config(disable=True)
    images = theirs([3], num_inference_steps=3, generator=torch.Generator().manual_seed(4), output_type="np").images
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    times = [*map(float, theirs.scheduler.timesteps.tolist()), -1.0]
    with torch.no_grad():
        latents = ddim_sample(pipeline.model, make_process(RECIPE), noise, times=times)
    ours = (codec.decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(images - ours).max() < 1e-4


def test_names_of_labels_go_to_diffusers(codec):
    assert Pipeline(MODEL, RECIPE, codec).to_diffusers().get_label_ids(["golden retriever"]) == [207]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sit_ti_2", {"schedule": "flow_linear", "prediction": "velocity", "sampler": "euler"}),
        ("sit_ti_2", {"schedule": "flow_gvp", "prediction": "velocity", "sampler": "euler"}),
        ("dit_ti_2", {"schedule": "edm", "prediction": "edm", "sampler": "edm_heun"}),
    ],
)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_schedules_that_the_pipeline_cannot_drive_are_refused(codec, name, changes, learn_sigma):
    model = lively(name, in_channels=4, num_classes=1000, learn_sigma=learn_sigma)
    pipeline = Pipeline(model, dataclasses.replace(RECIPE, **changes), codec)
    text = f"DiTPipeline cannot sample schedule '{changes['schedule']}', only .* Sample with ditzoo's own pipeline"
    with pytest.raises(ValueError, match=text):
        pipeline.to_diffusers()


def test_more_classes_than_the_pipeline_knows_are_refused(codec):
    model = lively("dit_ti_2", in_channels=4, num_classes=1001)
    with pytest.raises(ValueError, match=r"takes label 1000 for no class, and that is one of the model's 1001 classes"):
        Pipeline(model, RECIPE, codec).to_diffusers()


@pytest.mark.filterwarnings("ignore:the recipe's latent scale:UserWarning")
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_latents_of_another_scale_are_refused_until_the_configuration_says_so(learn_sigma):
    model = lively("dit_ti_2", in_channels=4, num_classes=1000, learn_sigma=learn_sigma)
    codec = small_codec(scale=0.2301)
    pipeline = Pipeline(model, RECIPE, codec)
    with pytest.raises(
        ValueError,
        match=r"divide latents by 0\.5, the scaling_factor .* of small, and these are scaled by 0\.2301\. Where that "
        r"is right, .*: codec\.autoencoder\.register_to_config\(scaling_factor=0\.2301\)\.",
    ):
        pipeline.to_diffusers()
    codec.autoencoder.register_to_config(scaling_factor=0.2301)
    theirs, ours = images_of_both(pipeline)
    assert np.abs(theirs - ours).max() < 1e-4


@pytest.mark.filterwarnings("ignore:the recipe's latent scale:UserWarning")
@pytest.mark.parametrize("config", [{}, {"shift_factor": 0.25}])
def test_shifted_latents_are_refused(config):
    pipeline = Pipeline(MODEL, RECIPE, small_codec(shift=0.25, **config))
    with pytest.raises(ValueError, match=r"no place for the shift 0\.25 of the latents of small\. Sample with"):
        pipeline.to_diffusers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, codec):
    """Of a DiT and its autoencoder, as diffusers loads it."""
    folder = tmp_path_factory.mktemp("diffusers") / "dit"
    with pytest.warns(UserWarning, match="deviates"):
        save_diffusers(MODEL, folder, RECIPE, vae=codec.autoencoder)
    return folder


def test_a_saved_folder_comes_back_with_its_autoencoder(folder, codec):
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "DiTPipeline"
    again, first = Pipeline.from_diffusers(folder), Pipeline(MODEL, RECIPE, codec)
    assert (again.recipe, again.model.dtype) == (RECIPE, torch.float32)
    assert np.array_equal(again([207], seed=3).pixels, first([207], seed=3).pixels)


def test_a_repository_of_the_hub_comes_with_its_autoencoder(folder, codec, tmp_path, monkeypatch):
    repository = cached_repository(monkeypatch, tmp_path / "cache", "owner/name", folder)
    first = Pipeline(MODEL, RECIPE, codec)([207], seed=3).pixels
    again = Pipeline.from_diffusers("owner/name")
    assert again.recipe == RECIPE
    assert np.array_equal(again([207], seed=3).pixels, first)
    (repository / "ditzoo.json").unlink()
    by_others = Pipeline.from_diffusers("owner/name")
    assert by_others.recipe.latent_codec == "owner/name/vae"
    options = {"sampler": "ddim", "num_inference_steps": 3, "guidance": RECIPE.guidance, "seed": 3}
    assert np.array_equal(by_others([207], **options).pixels, first)
    by_others.save_pretrained(tmp_path / "saved")
    assert np.array_equal(Pipeline.from_pretrained(tmp_path / "saved")([207], **options).pixels, first)


def test_a_repository_without_autoencoder_has_that_of_the_recipe(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="deviates"):
        save_diffusers(MODEL, tmp_path / "dit", dataclasses.replace(RECIPE, latent_codec="owner/vae"))
    cached_repository(monkeypatch, tmp_path / "cache", "owner/name", tmp_path / "dit")
    with pytest.raises(OSError, match="autoencoder owner/vae is not on this machine"):
        _ = Pipeline.from_diffusers("owner/name").codec


def test_a_folder_goes_to_the_device_and_precision_asked_for(folder, codec):
    half = Pipeline.from_diffusers(folder, device="meta", dtype=torch.bfloat16)
    assert (half.model.device.type, half.model.dtype) == ("meta", torch.bfloat16)
    assert (half.codec.device.type, half.codec.dtype) == ("meta", torch.float32)
    own = LatentCodec(copy.deepcopy(codec.autoencoder), scale=0.5)
    again = Pipeline.from_diffusers(folder, own, dtype=torch.bfloat16)
    assert again.codec is own
    wide = Pipeline(copy.deepcopy(MODEL).to(torch.bfloat16), RECIPE, codec)
    torch.testing.assert_close(again([207], seed=3).latents, wide([207], seed=3).latents, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, r"device 'gpu' cannot be used here .* cpu always can"),
        ({"dtype": torch.int8}, r"dtype must be one of .*torch\.float32, torch\.float64, got torch\.int8"),
    ],
)
def test_a_wrong_device_or_precision_is_named_before_anything_is_fetched(options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline.from_diffusers("nobody/has-this", **options)


def test_a_u_vit_says_which_autoencoder_its_latents_are_of():
    pipeline = Pipeline(lively("uvit_ti_2", in_channels=4), ditzoo.model_info("uvit_h_2.in256").recipe)
    with pytest.raises(
        FileNotFoundError,
        match=r"autoencoder autoencoder_kl_ema is the file stable-diffusion/autoencoder_kl_ema\.pth.*--codec",
    ):
        pipeline([3], num_inference_steps=1)


def test_models_of_pixels_are_refused():
    with pytest.raises(ValueError, match="DiTPipeline decodes latents with an autoencoder, and dit_ti_2 sees pixels"):
        tiny().to_diffusers()
