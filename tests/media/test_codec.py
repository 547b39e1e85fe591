"""Latents are scaled exactly once, whatever the autoencoder; compared with calls of diffusers by hand."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from logging import Handler
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import ditzoo.data
import ditzoo.data.digits
from ditzoo.media import LatentCodec, PixelCodec, load_codec, load_codec_for_recipe, to_uint8
from ditzoo.models.families import SD_VAE
from tests.hub import cached_repository
from tests.zoo import EVERY_NAME

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCALE = 0.18215


def needs_diffusers() -> None:
    pytest.importorskip("diffusers", reason="compares with diffusers; pip install 'ditzoo[diffusers]'")


def small_kl(**options):
    """Random weights: 4 latent channels, sides halved once, tiles of 16 pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **{
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "sample_size": 16,
            **options,
        }
    ).eval()


def small_tiny(stages: int = 4, **options):
    from diffusers import AutoencoderTiny

    widths, blocks = (8,) * stages, (1,) * stages
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        **options,
    ).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folders `kl` and `tiny` as diffusers saves them, and a pipeline with the first as its `vae`."""
    needs_diffusers()
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("autoencoders")
    small_kl().save_pretrained(folder / "kl")
    small_tiny().save_pretrained(folder / "tiny")
    shutil.copytree(folder / "kl", folder / "pipeline" / "vae")
    return folder


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    """A copy of `kl` to spoil."""
    return Path(shutil.copytree(saved / "kl", tmp_path / "damaged"))


def pictures(batch: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def by_hand(folder: Path, name: str):
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder).eval()


# Scale and shift.


class AutoencoderKL(torch.nn.Module):
    """The part of diffusers' interface that a codec uses: codes are the images, doubled; the posterior's std is 3."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **config) -> None:
        super().__init__()
        defaults = {"scaling_factor": 1.0, "in_channels": 4, "latent_channels": 4, "block_out_channels": (8,)}
        self.config = Config(defaults | config)
        self.decoded: Tensor | None = None

    def encode(self, images):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=2 * images, std=torch.full_like(images, 3.0)))

    def decode(self, codes):
        self.decoded = codes
        return SimpleNamespace(sample=codes / 2)

    def disable_slicing(self) -> None: ...
    def disable_tiling(self) -> None: ...


class Config(dict):
    __getattr__ = dict.__getitem__


def test_the_formula():
    autoencoder = AutoencoderKL(scaling_factor=0.5, shift_factor=0.25)
    codec = LatentCodec(autoencoder, scale=0.5, shift=0.25)
    images = torch.tensor([-1.0, -0.5, 0.0, 1.0]).reshape(1, 4, 1, 1)
    latents = codec.encode(images)
    assert latents.flatten().tolist() == [-1.125, -0.625, -0.125, 0.875]  # (2x - 0.25) * 0.5
    assert torch.equal(codec.decode(latents), images)
    assert autoencoder.decoded.flatten().tolist() == [-2, -1, 0, 2]
    noise = torch.tensor([0.0, 1.0, -1.0, 2.0]).reshape(1, 4, 1, 1)
    assert codec.encode(images, noise=noise).flatten().tolist() == [-1.125, 0.875, -1.625, 3.875]


@pytest.mark.parametrize(("scale", "shift"), [(SCALE, 0.0), (0.3611, 0.1159), (1.0, -2.0)])
def test_encode_and_decode_are_those_of_diffusers_scaled_once(saved, scale, shift):
    vae = by_hand(saved / "kl", "AutoencoderKL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codec = load_codec(saved / "kl", scale=scale, shift=shift)
    images = pictures(2, 16, 24)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        latents = (posterior.mean - shift) * scale
        decoded = vae.decode(latents / scale + shift).sample
    assert torch.equal(codec.encode(images), latents)
    assert torch.equal(codec.decode(latents), decoded)
    assert latents.shape == (2, 4, 8, 12)
    noise = torch.randn(latents.shape)
    expected = (posterior.mean + posterior.std * noise - shift) * scale
    assert torch.equal(codec.encode(images, noise=noise), expected)


@pytest.mark.parametrize(("scale", "shift"), [(SCALE, 0.0), (0.3611, 0.1159)])
def test_the_posterior_is_that_of_diffusers_scaled_once(saved, scale, shift):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codec = load_codec(saved / "kl", scale=scale, shift=shift)
    images = pictures(2, 16, 24)
    posterior = codec.posterior(images)
    with torch.no_grad():
        std = by_hand(saved / "kl", "AutoencoderKL").encode(images).latent_dist.std
    assert torch.equal(posterior.mean, codec.encode(images))
    torch.testing.assert_close((0.5 * posterior.log_variance).exp(), scale * std)
    noise = torch.randn(posterior.mean.shape)
    torch.testing.assert_close(posterior.sample(noise), codec.encode(images, noise=noise))


def test_points_have_no_variance(saved):
    images = pictures(2, 32, 32)
    for codec in (load_codec(saved / "tiny", scale=None), PixelCodec()):
        posterior = codec.posterior(images)
        assert not codec.has_posterior
        assert posterior.log_variance is None
        assert torch.equal(posterior.mean, codec.encode(images))
        assert posterior.sample(torch.ones(1)) is posterior.mean
        with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
            codec.posterior(images[:, :2])
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), with H and W divisible by 2"):
        load_codec(saved / "kl", scale=SCALE).posterior(pictures(1, 16, 15))


def test_loading_logs_nothing(saved):
    """diffusers keeps its log to itself, so that pytest's caplog does not see it."""
    from diffusers.utils import logging

    records = []
    handler = Handler()
    handler.emit = records.append
    logging.add_handler(handler)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            load_codec(saved / "kl", scale=SCALE, dtype=dtype)
            load_codec_for_recipe(saved / "kl", latent_scale=SCALE, dtype=dtype)
    finally:
        logging.remove_handler(handler)
    assert [record.getMessage() for record in records] == []


def test_the_hash_is_of_the_encoder_in_every_precision(saved):
    first = load_codec(saved / "kl", scale=SCALE)
    assert len(first.encoder_hash) == 64
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert load_codec(saved / "kl", scale=SCALE, dtype=dtype).encoder_hash == first.encoder_hash
        recipes = load_codec_for_recipe(saved / "kl", latent_scale=SCALE, dtype=dtype)
        assert (recipes.encoder_hash, recipes.dtype) == (first.encoder_hash, dtype)
    tuned = by_hand(saved / "kl", "AutoencoderKL")
    with torch.no_grad():
        tuned.decoder.conv_in.bias += 1
        tuned.post_quant_conv.bias += 1
    assert LatentCodec(tuned, scale=SCALE).encoder_hash == first.encoder_hash
    with torch.no_grad():
        tuned.quant_conv.bias += 1
    assert LatentCodec(tuned, scale=SCALE).encoder_hash != first.encoder_hash
    assert load_codec(saved / "tiny", scale=None).encoder_hash != first.encoder_hash


def test_what_a_round_trip_gives_does_not_depend_on_the_scale(saved):
    images = pictures()
    codecs = [LatentCodec(by_hand(saved / "kl", "AutoencoderKL"), scale=None) for _ in range(2)]
    codecs[1].scale, codecs[1].shift = 7.0, 0.5
    trips = [codec.decode(codec.encode(images)) for codec in codecs]
    torch.testing.assert_close(trips[0], trips[1], rtol=0, atol=1e-5)
    assert trips[0].std() > 0.01


def test_a_sample_depends_on_its_own_noise_alone(saved):
    codec = load_codec(saved / "kl", scale=SCALE)
    images, noise = pictures(3), torch.randn(3, 4, 8, 8)
    together = codec.encode(images, noise=noise)
    torch.testing.assert_close(together[1:2], codec.encode(images[1:2], noise=noise[1:2]))
    assert not torch.allclose(together, codec.encode(images))
    assert torch.equal(codec.encode(images), codec.encode(images))


def test_tiny_autoencoder(saved):
    vae, codec = by_hand(saved / "tiny", "AutoencoderTiny"), load_codec(saved / "tiny", scale=None)
    assert (codec.scale, codec.shift, codec.downsampling, codec.latent_channels) == (1.0, 0.0, 8, 4)
    images = pictures(2, 16, 24)
    with torch.no_grad():
        latents = vae.encode(images).latents
        decoded = vae.decode(latents).sample
    assert torch.equal(codec.encode(images), latents)
    assert torch.equal(codec.encode(images, noise=torch.randn(2, 4, 2, 3)), latents)
    assert torch.equal(codec.decode(latents), decoded)
    with pytest.warns(UserWarning, match="scale 0.18215 .* names scale 1 and shift 0 .*: scale=None"):
        recipe_wins = load_codec(saved / "tiny", scale=SCALE)
    torch.testing.assert_close(recipe_wins.encode(images), latents * SCALE)
    torch.testing.assert_close(recipe_wins.decode(latents * SCALE), decoded, rtol=0, atol=1e-5)


def test_a_tiny_autoencoder_in_place_of_a_recipes_keeps_its_own_scale(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny = load_codec_for_recipe(saved / "tiny", latent_scale=SCALE, latent_shift=0.25)
        kl = load_codec_for_recipe(saved / "kl", latent_scale=SCALE)
    assert (tiny.scale, tiny.shift, kl.scale, kl.shift) == (1.0, 0.0, SCALE, 0.0)
    latents, vae = torch.randn(1, 4, 2, 2), by_hand(saved / "tiny", "AutoencoderTiny")
    with torch.no_grad():
        assert torch.equal(tiny.decode(latents), vae.decode(latents).sample)


def test_another_autoencoder_in_place_of_a_recipes_takes_its_scale(saved):
    with pytest.warns(UserWarning, match="the recipe's latent scale 0.2301 and shift 0.5 are used, although"):
        codec = load_codec_for_recipe(
            saved / "kl", latent_scale=0.2301, latent_shift=0.5, dtype=torch.float64, tiling=True, slicing=True
        )
    assert (codec.scale, codec.shift, codec.dtype, codec.tiling, codec.slicing) == (
        0.2301,
        0.5,
        torch.float64,
        True,
        True,
    )


def test_a_recipe_that_disagrees_wins_and_is_named(saved):
    text = (
        rf"^the recipe's latent scale 0.2301 and shift 0 are used, although {saved / 'kl'} names scale 0.18215 and "
        r"shift 0 in its configuration\.$"
    )
    with pytest.warns(UserWarning, match=text):
        codec = load_codec(saved / "kl", scale=0.2301)
    assert codec.scale == 0.2301
    with pytest.warns(UserWarning, match="shift 0.5 are used"):
        load_codec(saved / "kl", scale=SCALE, shift=0.5)


def test_no_warning_where_recipe_and_configuration_agree(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_codec(saved / "kl", scale=0.18215)
        own = LatentCodec(AutoencoderKL(scaling_factor=0.3611, shift_factor=0.1159), scale=None)
    assert (own.scale, own.shift) == (0.3611, 0.1159)


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_scale_and_shift_are_numbers(values):
    with pytest.raises(ValueError, match=f"scale must be a number above 0 .*, got {values[0]} and {values[1]}"):
        LatentCodec(AutoencoderKL(), scale=values[0], shift=values[1])


def test_a_shift_needs_a_scale():
    with pytest.raises(ValueError, match=r"shift 0\.5 needs a scale; scale=None takes both from the autoencoder"):
        LatentCodec(AutoencoderKL(), scale=None, shift=0.5)


# Memory and precision.


def test_tiling_leaves_small_images_and_encoding_alone(saved):
    plain, tiled = (load_codec(saved / "kl", scale=SCALE, tiling=tiling) for tiling in (False, True))
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(plain.decode(latents), tiled.decode(latents))
    images = pictures(1, 64, 64)
    assert torch.equal(plain.encode(images), tiled.encode(images))


def test_tiling_is_that_of_diffusers(saved):
    codec, vae = load_codec(saved / "kl", scale=SCALE, tiling=True), by_hand(saved / "kl", "AutoencoderKL")
    latents = torch.randn(1, 4, 20, 24)
    vae.enable_tiling()
    with torch.no_grad():
        expected = vae.decode(latents / SCALE).sample
    assert torch.equal(codec.decode(latents), expected)
    assert not torch.equal(load_codec(saved / "kl", scale=SCALE).decode(latents), expected)


def test_tiles_agree_with_the_whole_where_no_seam_is_near(saved):
    """A tiny autoencoder has no norms, so that a pixel depends on its surroundings alone."""
    plain, tiled = (load_codec(saved / "tiny", scale=None, tiling=tiling) for tiling in (False, True))
    latents = torch.randn(1, 4, 66, 66)  # tiles of 64 start at 0 and 56, and are blended in 56 to 64
    inside = (slice(None), slice(None), slice(0, 40 * 8), slice(0, 40 * 8))
    difference = (plain.decode(latents) - tiled.decode(latents)).abs()
    assert difference[inside].max() < 1e-5
    assert difference.max() > 1e-4


def test_diffusers_tiles_tiny_autoencoders_that_halve_three_times_only():
    needs_diffusers()
    with pytest.raises(ValueError, match="cannot tile my taesd: only tiny autoencoders that reduce each side 8 times"):
        LatentCodec(small_tiny(stages=3), scale=None, tiling=True, name="my taesd")


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_slicing_changes_nothing(saved, kind):
    plain, sliced = (load_codec(saved / kind, scale=None, slicing=slicing) for slicing in (False, True))
    images = pictures(3)
    latents = plain.encode(images)
    torch.testing.assert_close(sliced.encode(images), latents)
    torch.testing.assert_close(sliced.decode(latents), plain.decode(latents), rtol=0, atol=1e-6)


def test_precision_is_that_of_the_autoencoder(saved):
    images = pictures()
    exact = load_codec(saved / "kl", scale=SCALE, dtype=torch.float64)
    latents = exact.encode(images)
    assert latents.dtype == exact.decode(latents).dtype == torch.float64
    half = load_codec(saved / "kl", scale=SCALE, dtype=torch.bfloat16)
    assert (half.dtype, half.device) == (torch.bfloat16, torch.device("cpu"))
    rough = half.encode(images)
    assert rough.dtype == half.decode(rough).dtype == torch.float32
    single = load_codec(saved / "kl", scale=SCALE).encode(images).double()
    assert (single - latents).abs().max() < 1e-5
    assert 1e-5 < (rough - latents).abs().max() < 0.05


def test_nothing_is_trained(saved):
    vae = by_hand(saved / "kl", "AutoencoderKL").train()
    codec = LatentCodec(vae, scale=None)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    images = pictures().requires_grad_()
    latents = codec.encode(images)
    assert not latents.requires_grad
    latents.requires_grad_()  # which an inference tensor would refuse
    assert not codec.decode(latents).requires_grad


# What does not fit.


def test_number_of_channels(saved):
    codec = load_codec(saved / "kl", scale=SCALE)
    codec.check_fits(4)
    text = rf"^autoencoder {saved / 'kl'} has 4 latent channels, the model takes 16; use the autoencoder that"
    with pytest.raises(ValueError, match=text):
        codec.check_fits(16)
    PixelCodec(1).check_fits(1)
    with pytest.raises(ValueError, match=r"images have 3 channels, the model takes 4; a model of latents needs"):
        PixelCodec().check_fits(4)


def test_pixels_pass_unchanged():
    codec = PixelCodec(1)
    images = torch.rand(2, 1, 8, 6)
    assert codec.encode(images) is images
    assert codec.encode(images, noise=torch.randn(2, 1, 8, 6)) is images
    assert codec.decode(images) is images
    assert (codec.downsampling, codec.latent_channels, codec.name) == (1, 1, "pixels")
    with pytest.raises(ValueError, match="images have 1 or more channels, got 0"):
        PixelCodec(0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: c.encode(torch.zeros(1, 1, 16, 16)), ValueError, r"\(B, 3, H, W\), .* by 2; got \(1, 1, 16, 16\)"),
        (lambda c: c.encode(torch.zeros(1, 3, 16, 15)), ValueError, r"H and W divisible by 2; got \(1, 3, 16, 15\)"),
        (lambda c: c.encode(torch.zeros(3, 16, 16)), ValueError, r"got \(3, 16, 16\)"),
        (lambda c: c.encode(torch.zeros(1, 3, 16, 16).byte()), TypeError, r"got torch.uint8; for bytes: images / 127"),
        (lambda c: c.encode(pictures(2), noise=torch.zeros(1, 4, 8, 8)), ValueError, r"\(2, 4, 8, 8\); got \(1, 4, 8"),
        (
            lambda c: c.decode(torch.zeros(1, 8, 8, 8)),
            ValueError,
            r"\(B, 4, h, w\), got \(1, 8, 8, 8\); of a learned v",
        ),
        (lambda c: c.decode(torch.zeros(4, 8, 8)), ValueError, r"got \(4, 8, 8\)"),
        (lambda c: c.decode(torch.zeros(1, 4, 8, 8).long()), TypeError, "latents must be floats, got torch.int64"),
    ],
)
def test_tensors_that_do_not_fit(saved, call, error, text):
    with pytest.raises(error, match=text):
        call(load_codec(saved / "kl", scale=SCALE))


def test_pixels_are_checked_too():
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\); got \(1, 1, 8, 8\)"):
        PixelCodec().encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"pixels decodes \(B, 1, h, w\), got \(1, 2, 8, 8\)"):
        PixelCodec(1).decode(torch.zeros(1, 2, 8, 8))


def test_other_autoencoders_are_refused(damaged):
    with pytest.raises(TypeError, match="an AutoencoderKL or AutoencoderTiny of diffusers, got Linear"):
        LatentCodec(torch.nn.Linear(1, 1), scale=1.0)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderDC"}))
    with pytest.raises(ValueError, match="damaged holds 'AutoencoderDC'; ditzoo decodes with AutoencoderKL or Auto"):
        load_codec(damaged, scale=1.0)


# Loading.


def test_part_of_a_pipeline(saved):
    codec = load_codec(saved / "pipeline", scale=SCALE, subfolder="vae")
    images = pictures()
    assert torch.equal(codec.encode(images), load_codec(saved / "kl", scale=SCALE).encode(images))
    with pytest.raises(FileNotFoundError, match=r"pipeline holds no config.json.* It has vae: name one as subfolder"):
        load_codec(saved / "pipeline", scale=SCALE)


def test_weights_under_the_names_of_early_diffusers(saved, damaged):
    """Those of sd-vae-ft-ema."""
    from safetensors.torch import load_file, save_file

    state = load_file(damaged / WEIGHTS)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, damaged / WEIGHTS, metadata={"format": "pt"})
    images = pictures()
    expected = load_codec(saved / "kl", scale=SCALE).encode(images)
    assert torch.equal(load_codec(damaged, scale=SCALE).encode(images), expected)


@pytest.mark.parametrize("name", ["sd-vae", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_names_that_are_neither_folder_nor_hub_id(name):
    needs_diffusers()
    text = f"^there is no folder {name}, and it is no model of the Hub, whose ids read owner/name; .*sd-vae-ft-ema"
    with pytest.raises(FileNotFoundError, match=text):
        load_codec(name, scale=1.0)


@pytest.mark.parametrize(
    "name",
    sorted({ditzoo.model_info(name).recipe.latent_codec for name in EVERY_NAME} - {None, SD_VAE["latent_codec"]}),
)
def test_autoencoders_of_recipes_that_are_no_models_of_the_hub(name):
    needs_diffusers()
    text = (
        rf"^autoencoder {name} is the file stable-diffusion/{name}\.pth.*, which U-ViT's authors "
        r"publish in https://drive\.google\.com/.* Name a folder or a model of the Hub that holds the same "
        r"autoencoder in diffusers' format: `--codec PLACE`, or codec=ditzoo\.media\.load_codec\(PLACE, scale="
    )
    with pytest.raises(FileNotFoundError, match=text):
        load_codec(name, scale=1.0)


def test_a_file_is_no_folder(saved):
    with pytest.raises(NotADirectoryError, match=r"config.json is a file; name the folder"):
        load_codec(saved / "kl" / "config.json", scale=1.0)


def test_damaged_files(damaged):
    whole = (damaged / WEIGHTS).read_bytes()
    (damaged / WEIGHTS).write_bytes(whole[:5000])
    with pytest.raises(OSError, match=r"the autoencoder in .*damaged cannot be read \(.*\)\. Fetch or save it again"):
        load_codec(damaged, scale=SCALE)
    (damaged / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"cannot be read \(.*no file named"):
        load_codec(damaged, scale=SCALE)
    (damaged / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"cannot be read \(.*not a valid JSON file"):
        load_codec(damaged, scale=SCALE)


def test_a_missing_weight_is_not_replaced_by_random_numbers(damaged):
    from safetensors.torch import load_file, save_file

    state = load_file(damaged / WEIGHTS)
    del state["decoder.conv_out.bias"]
    save_file(state, damaged / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"damaged is incomplete: decoder.conv_out.bias"):
        load_codec(damaged, scale=SCALE)


@pytest.mark.parametrize(
    ("name", "options"), [("kl", {}), ("pipeline", {"subfolder": "vae"}), ("pipeline/vae", {})], ids=str
)
def test_models_of_the_hub(saved, tmp_path, monkeypatch, name, options):
    folder = name.partition("/")[0]
    cached_repository(monkeypatch, tmp_path, f"owner/{folder}", saved / folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec = load_codec(f"owner/{name}", scale=SCALE, **options)
    images = pictures()
    assert torch.equal(codec.encode(images), load_codec(saved / "kl", scale=SCALE).encode(images))
    assert codec.name == f"owner/{name}"


def test_a_folder_named_like_the_part_of_a_repository_comes_first(saved, tmp_path, monkeypatch):
    shutil.copytree(saved / "pipeline", tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    codec = load_codec("owner/name/vae", scale=SCALE)
    images = pictures()
    assert torch.equal(codec.encode(images), load_codec(saved / "kl", scale=SCALE).encode(images))


@pytest.mark.parametrize(("name", "options"), [("some/dit/vae", {}), ("some/dit", {"subfolder": "vae"})])
def test_a_part_of_a_repository_that_is_not_here(saved, tmp_path, monkeypatch, name, options):
    cached_repository(monkeypatch, tmp_path, "some/dit", saved / "kl")  # has no part vae
    text = (
        r"^autoencoder some/dit/vae is not on this machine\. HF_HUB_OFFLINE is set.*: unset it, or give a local folder "
        r"in its place; .* `hf download some/dit --include 'vae/\*' --local-dir FOLDER` fills FOLDER/vae\.$"
    )
    with pytest.raises(OSError, match=text):
        load_codec(name, scale=SCALE, **options)


def test_offline(tmp_path, monkeypatch):
    needs_diffusers()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from the environment when the package is imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="is not on this machine") as error:
        load_codec("someone/some-vae", scale=1.0)
    assert str(error.value) == (
        "autoencoder someone/some-vae is not on this machine. HF_HUB_OFFLINE is set, so that nothing is "
        "fetched: unset it, or give a local folder in its place; on a machine with a network `hf download "
        "someone/some-vae --local-dir FOLDER` fills one."
    )


def test_no_network(monkeypatch):
    needs_diffusers()
    import diffusers
    from huggingface_hub import constants

    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(diffusers.AutoencoderKL, "load_config", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    text = r"is not on this machine. It could not be fetched \(no route to host\): check its name and the network, or"
    with pytest.raises(OSError, match=text):
        load_codec("someone/some-vae", scale=1.0)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'Autoencoders need diffusers: pip install "ditzoo\[diffusers\]"'):
        load_codec("stabilityai/sd-vae-ft-ema", scale=SCALE)


# Bytes.


def test_there_is_one_to_uint8():
    assert ditzoo.data.to_uint8 is ditzoo.data.digits.to_uint8 is to_uint8


@pytest.mark.parametrize(
    ("rule", "expected"), [("dit", [0, 0, 0, 128, 128, 191, 255, 255]), ("adm", [0, 0, 0, 127, 127, 191, 255, 255])]
)
def test_rules(rule, expected):
    values = torch.tensor([-2.0, -1.0, -0.998, 0.0, 0.002, 0.5, 1.0, 2.0])
    assert to_uint8(values, rule).tolist() == expected


def test_rules_in_closed_form():
    """Steps of 2^-7: exact in float32, so that floor of the formula is what truncation must give."""
    steps = torch.arange(-160, 161)
    dit = [min(max((255 * n + 2 * 128 * 128) // (2 * 128), 0), 255) for n in steps.tolist()]
    adm = [min(max((255 * (n + 128)) // (2 * 128), 0), 255) for n in steps.tolist()]
    assert to_uint8(steps / 128).tolist() == dit
    assert to_uint8(steps / 128, "adm").tolist() == adm


def test_the_adm_rule_darkens_what_the_dit_rule_rounds():
    grey = torch.arange(256)
    assert torch.equal(to_uint8(grey / 127.5 - 1), grey.byte())
    off_by_less_than_half = grey.double() / 127.5 - 1 - 0.003
    assert torch.equal(to_uint8(off_by_less_than_half), grey.byte())
    assert torch.equal(to_uint8(off_by_less_than_half, "adm"), (grey - 1).clamp(0).byte())


def test_half_precision_is_computed_in_single():
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.linspace(-1, 1, 999).to(dtype)
        assert torch.equal(to_uint8(values), to_uint8(values.float()))


def test_to_uint8_refuses():
    with pytest.raises(ValueError, match="unknown rule 'round' for uint8; choose one of dit, adm"):
        to_uint8(torch.zeros(1), "round")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"floats in \[-1, 1\], got torch.uint8; such images need no conversion"):
        to_uint8(torch.zeros(1, dtype=torch.uint8))
