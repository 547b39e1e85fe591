"""Pipelines to and from diffusers."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

import ditzoo
from ditzoo.interop import save_diffusers
from ditzoo.media import LatentCodec
from ditzoo.pipeline import Pipeline
from ditzoo.pipeline.denoising import Batch, denoise
from tests.pipeline.pipes import QUICK, tiny
from tests.zoo import lively

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra")
RECIPE = dataclasses.replace(
    QUICK, prediction="epsilon", schedule="linear", latent_codec="small", latent_scale=0.5, num_inference_steps=3
)
MODEL = lively("dit_ti_2", in_channels=4, num_classes=1000)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5)
    return LatentCodec(autoencoder, scale=0.5)


@pytest.mark.parametrize("name", ["dit_ti_2", "mdt_ti_2"])
def test_diffusers_draws_the_same_images(codec, name):
    model = lively(name, in_channels=4, num_classes=1000)
    pipeline = Pipeline(model, RECIPE, codec)
    theirs = pipeline.to_diffusers()
    theirs.set_progress_bar_config(disable=True)
    assert theirs.get_label_ids(["golden retriever"]) == [207]
    theirs.scheduler.set_timesteps(3)
    times = [*map(float, theirs.scheduler.timesteps.tolist()), -1.0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    images = theirs(
        class_labels=[207],
        guidance_scale=1.0,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(4),
        output_type="np",
    ).images
    settings = pipeline.settings({"sampler": "ddim", "guidance_scale": 1.0})
    run = denoise(pipeline, settings, Batch(slice(1), [0], torch.tensor([207])), noise, times=times)
    ours = ((codec.decode(run.latents) / 2 + 0.5).clamp(0, 1)).permute(0, 2, 3, 1).numpy()
    assert np.abs(images - ours).max() < 1e-4


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
