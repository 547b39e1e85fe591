"""Pipelines to and from diffusers."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ditzoo.media import LatentCodec
from ditzoo.pipeline import Pipeline
from ditzoo.pipeline.denoising import Batch, denoise
from tests.pipeline.pipes import QUICK, tiny
from tests.zoo import lively

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra")
RECIPE = dataclasses.replace(
    QUICK, prediction="epsilon", schedule="linear", latent_codec="small", latent_scale=0.5, num_inference_steps=3
)


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


def test_a_saved_folder_comes_back_with_its_autoencoder(tmp_path, codec):
    from ditzoo.interop import save_diffusers

    model = lively("dit_ti_2", in_channels=4, num_classes=1000)
    with pytest.warns(UserWarning, match="deviates"):
        save_diffusers(model, tmp_path / "dit", RECIPE, vae=codec.autoencoder)
    assert json.loads((tmp_path / "dit" / "model_index.json").read_text())["_class_name"] == "DiTPipeline"
    again = Pipeline.from_diffusers(tmp_path / "dit")
    first = Pipeline(model, RECIPE, codec)
    assert again.recipe == RECIPE
    assert np.array_equal(again([207], seed=3).pixels, first([207], seed=3).pixels)


def test_models_of_pixels_are_refused():
    with pytest.raises(ValueError, match="DiTPipeline decodes latents with an autoencoder, and dit_ti_2 sees pixels"):
        tiny().to_diffusers()
