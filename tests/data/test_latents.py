"""A cache gives what encoding would have given, in an order and with noise that only seed and number decide."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch

from ditzoo.data import LatentCache, LatentManifest, TensorSource, encode, flip_draws
from ditzoo.diffusion.draws import data_generator
from ditzoo.media import LatentCodec, PixelCodec
from ditzoo.recipe import Recipe
from tests.data.latents import Squares, ToyCodec, made
from tests.media.test_codec import needs_diffusers, small_kl, small_tiny

RECIPE = Recipe(prediction="epsilon", schedule="linear", latent_codec="toys/toy", latent_scale=0.5, latent_shift=0.25)


def flips_and_noises(numbers, seed, shape):
    """What a cache draws, by hand: first the flip, then the noise."""
    generators = [data_generator(seed, number) for number in numbers]
    flips = [bool(torch.rand((), generator=generator) < 0.5) for generator in generators]
    assert flips == flip_draws(numbers, seed).tolist()
    return flips, torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def test_what_a_cache_is(tmp_path):
    cache = made(tmp_path)
    assert len(cache) == 10
    assert cache.name == "latents of squares"
    assert (cache.shape, cache.num_classes, cache.label_names) == ((2, 4, 4), 3, ("a", "b", "c"))
    assert cache.unreadable == ()


def test_samples_are_draws_from_the_posterior(tmp_path):
    cache = made(tmp_path)
    indices, numbers = [9, 0, 4, 9], [3, 100, 7, 8]
    x, y, unreadable = cache.load(indices, numbers, seed=5)
    _, noises = flips_and_noises(numbers, 5, cache.shape)
    assert torch.equal(x, ToyCodec().posterior(Squares().x[indices]).mean + noises)
    assert (x.dtype, y.tolist(), unreadable) == (torch.float32, [0, 0, 1, 0], ())
    assert not torch.equal(x[0], x[3])  # the same image, seen a second time


def test_a_sample_does_not_depend_on_its_batch(tmp_path):
    cache = made(tmp_path, flip=True)
    together = cache.load([1, 8], [20, 21], seed=0).x
    assert torch.equal(cache.load([8], [21], seed=0).x[0], together[1])
    assert not torch.equal(cache.load([8], [21], seed=1).x[0], together[1])


def test_mirrored_samples_are_of_mirrored_images(tmp_path):
    cache = made(tmp_path, flip=True)
    cache.sample_posterior = False
    flips, _ = flips_and_noises(range(40), 0, cache.shape)
    assert 10 < sum(flips) < 30
    x = cache.load([6] * 40, range(40), seed=0).x
    image = Squares().x[6:7]
    for flipped, latents in zip(flips, x, strict=True):
        assert torch.equal(latents, ToyCodec().posterior(image.flip(-1) if flipped else image).mean[0])
    unflipped = LatentCache(tmp_path, sample_posterior=False).load([6] * 40, range(40), seed=0).x
    assert torch.equal(unflipped, x[flips.index(False)].expand(40, -1, -1, -1))


def test_the_mean_alone(tmp_path):
    made(tmp_path)
    cache = LatentCache(tmp_path, sample_posterior=False)
    assert torch.equal(cache.load([2, 7], [0, 1], 0).x, ToyCodec().posterior(Squares().x[[2, 7]]).mean)
    assert cache.fingerprint != LatentCache(tmp_path).fingerprint


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_a_cache_gives_what_the_codec_gives(tmp_path, kind):
    needs_diffusers()
    autoencoder = small_kl(scaling_factor=0.5) if kind == "kl" else small_tiny(2, scaling_factor=0.5)
    codec = LatentCodec(autoencoder, scale=0.5, name="small")
    images = torch.rand(5, 3, 16, 24) * 2 - 1
    encode(TensorSource(images, None, fingerprint="random"), codec, tmp_path, shard_size=2)
    cache = LatentCache(tmp_path, flip=True)
    assert cache.manifest.has_variance == (kind == "kl")
    x, y, _ = cache.load(range(5), range(5), seed=3)
    flips, noises = flips_and_noises(range(5), 3, cache.shape)
    assert set(flips) == {True, False}
    seen = torch.where(torch.tensor(flips)[:, None, None, None], images.flip(-1), images)
    torch.testing.assert_close(x, codec.encode(seen, noise=noises), atol=1e-5, rtol=1e-5)
    assert y is None
    assert cache.num_classes == 0


def test_pixels(tmp_path):
    squares = Squares()
    encode(squares, PixelCodec(1), tmp_path, flip=False, dtype="float16")
    cache = LatentCache(tmp_path)
    assert torch.equal(cache.load([3, 1], [0, 1], 0).x, squares.x[[3, 1]].half().float())
    cache.check_fits(Recipe(prediction="epsilon", schedule="linear"))
    with pytest.raises(ValueError, match=r"latent_codec is None, the recipe has 'toys/toy'"):
        cache.check_fits(RECIPE)


def test_the_order_is_a_shuffle_that_any_place_can_be_asked_for(tmp_path):
    order = made(tmp_path).order(seed=1, batch_size=4)
    epochs = [[order.index(number) for number in range(start, start + 10)] for start in (0, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert LatentCache(tmp_path).order(seed=1, batch_size=8).index(13) == epochs[1][3]


def test_values_are_mapped_not_read(tmp_path):
    """A file that changes on disk changes the samples; what was read would not."""
    cache = made(tmp_path, shard_size=10)
    path = tmp_path / "shard-000000.safetensors"
    before = cache.load([9], [0], 0).x
    with path.open("r+b") as file:
        file.seek(8 + int.from_bytes(path.read_bytes()[:8], "little"))
        file.write(bytes(path.stat().st_size - file.tell()))
    assert not torch.equal(cache.load([9], [0], 0).x, before)


def test_a_copy_for_a_worker_opens_the_files_anew(tmp_path):
    cache = made(tmp_path, flip=True)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 3000
    copy = pickle.loads(pickled)
    assert torch.equal(copy.load([7], [3], 0).x, cache.load([7], [3], 0).x)


def test_fingerprints(tmp_path):
    """They change with the values, and not with the size of files or with names."""
    first = made(tmp_path / "a").fingerprint
    assert made(tmp_path / "b", shard_size=3, codec_name="other").fingerprint == first
    assert made(tmp_path / "c", dtype="float16").fingerprint != first
    assert made(tmp_path / "d", flip=True).fingerprint != first
    encode(Squares(fingerprint="others"), ToyCodec(), tmp_path / "e", flip=False)
    assert LatentCache(tmp_path / "e").fingerprint != first


# Which recipes a cache fits.


def test_the_recipe_of_the_cache_fits(tmp_path):
    made(tmp_path).check_fits(RECIPE)
    made(tmp_path).check_fits(RECIPE, codec=ToyCodec())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"latent_codec": "a/b"}, r"do not fit the recipe: latent_codec is 'toys/toy', the recipe has 'a/b'\. Encode"),
        (
            {"latent_codec": "a/b"},
            r"Only where the two are the same autoencoder, name it as codec, .* in manifest\.json",
        ),
        ({"latent_codec": None}, "latent_codec is 'toys/toy', the recipe has None"),
        ({"latent_scale": 0.18215}, r"recipe: latent_scale is 0\.5, the recipe has 0\.18215\. Encode the images again"),
        (
            {"latent_shift": 0.0},
            r"latent_shift is 0\.25, the recipe has 0\. .* or train with a recipe of .*, latent_shift=0\.25\.$",
        ),
        (
            {"latent_codec": "a/b", "latent_scale": 1.0},
            "latent_codec is 'toys/toy', the recipe has 'a/b'; latent_scale is 0.5, the recipe has 1",
        ),
    ],
)
def test_other_recipes_do_not_fit(tmp_path, change, text):
    with pytest.raises(ValueError, match=text):
        made(tmp_path).check_fits(replace(RECIPE, **change))


def test_weights_count_more_than_names(tmp_path):
    cache = made(tmp_path)
    same, other = ToyCodec(), ToyCodec()
    same.name, other.encoder_hash = "/copy", "cd" * 32
    cache.check_fits(replace(RECIPE, latent_codec="/copy"), codec=same)
    text = r"of encoder toys/toy \(hash abababababab\), the recipe's is toys/toy \(hash cdcdcdcdcdcd\)"
    with pytest.raises(ValueError, match=text):
        cache.check_fits(RECIPE, codec=other)
    with pytest.raises(ValueError, match=r"the recipe's is pixels \(no weights\)"):
        cache.check_fits(RECIPE, codec=PixelCodec(2))


def test_a_corrected_name_leaves_the_cache_whole(tmp_path):
    made(tmp_path, codec_name="/home/copy")
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("/home/copy", "toys/toy"))
    LatentCache(tmp_path).check_fits(RECIPE)
    made(tmp_path, codec_name="/home/copy").check_fits(RECIPE)


# Folders that are no caches, or broken ones.


def test_no_latents(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no manifest\.json, so no latents; `ditzoo encode DATA .*` makes"
    ):
        LatentCache(tmp_path / "nowhere")


def test_no_mirrored_images(tmp_path):
    made(tmp_path)
    with pytest.raises(ValueError, match=r"holds no mirrored images, so flip=True .* encode with --flip"):
        LatentCache(tmp_path, flip=True)


def test_missing_files(tmp_path):
    made(tmp_path, shard_size=1)
    for number in (2, 5, 6, 9):
        (tmp_path / f"shard-00000{number}.safetensors").unlink()
    text = (
        r"lacks 4 of 10 files \(shard-000002\.safetensors, .*5\.safetensors, .*6\.safetensors, \.\.\.\)\. Run `ditzoo"
    )
    with pytest.raises(ValueError, match=text):
        LatentCache(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_truncated_files(tmp_path, part):
    made(tmp_path)
    path = tmp_path / "shard-000001.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ValueError, match=r"shard-000001\.safetensors is damaged \(.*\)\. Run `ditzoo encode` again"):
        LatentCache(tmp_path)


def test_files_of_other_caches_and_places(tmp_path):
    made(tmp_path / "a")
    encode(Squares(fingerprint="others"), ToyCodec(), tmp_path / "b", flip=False, shard_size=4)
    own, other = (folder / "shard-000001.safetensors" for folder in (tmp_path / "a", tmp_path / "b"))
    for wrong in (other, own.with_name("shard-000000.safetensors")):
        own.write_bytes(wrong.read_bytes())
        with pytest.raises(ValueError, match="holds other latents than file 1 of this cache"):
            LatentCache(tmp_path / "a")


@pytest.mark.parametrize(
    ("entry", "value", "text"),
    [
        ("format", 2, "its format is 2, this ditzoo reads 1"),
        ("num_samples", 0, "num_samples must be a number of 1 or more, got 0"),
        ("num_samples", "10", "num_samples must be of the type int, got '10'"),
        ("num_samples", True, "num_samples must be of the type int, got True"),
        ("flip", 1, "flip must be of the type bool, got 1"),
        ("latent_scale", None, "latent_scale must be of the type float, got None"),
        ("latent_shape", [4, 8], r"latent_shape must be three whole numbers above 0, got \(4, 8\)"),
        ("image_shape", 3, "image_shape must be a list, got 3"),
        ("label_names", ["a", 1, "c"], "label_names must be texts"),
        ("label_names", ["a", "b"], "3 classes have 2 label_names"),
        ("codec", 5, "codec must be of the type str, got 5"),
        ("dtype", "float8", "unknown dtype 'float8'; choose one of float32, bfloat16, float16"),
        ("colour", "red", "entries missing or unknown: 'colour'"),
    ],
)
def test_manifests_that_are_none(tmp_path, entry, value, text):
    made(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    with pytest.raises(ValueError, match=rf"manifest\.json is no manifest of latents: {text}"):
        LatentManifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_manifests(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        LatentManifest.read(tmp_path)
