"""Changing images and finding their noise."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ditzoo.data import load_digits_split
from ditzoo.diffusion import make_process, sample_noise, sampler_times
from ditzoo.pipeline import Pipeline
from ditzoo.pipeline.denoising import Batch, denoise
from ditzoo.pipeline.editing import encode_images, noised, slerp
from tests.pipeline.pipes import QUICK, QUICK_EDM, QUICK_FLOW, tiny

FAMILIES = ["dit_ti_2", "sit_ti_2", "uvit_ti_2", "mdt_ti_2", "mdtv2_ti_2", "diffit_ti_2", "diffit_unet_ti"]


def with_samplers(*samplers):
    """Each family with those of the samplers that its recipe takes."""
    return [(name, sampler) for name in FAMILIES for sampler in samplers if sampler in tiny(name).recipe.samplers]


@pytest.fixture(scope="module")
def digits():
    return load_digits_split("test").images[:3]


@pytest.mark.parametrize(
    ("name", "sampler"), with_samplers("ddim", "ddpm", "dpmpp_2m", "edm_heun", "heun", "euler_maruyama")
)
def test_weak_changes_stay_near_the_image_and_full_ones_ignore_it(digits, name, sampler):
    pipeline = tiny(name)
    options = {"sampler": sampler, "num_inference_steps": 10, "seed": 4}
    full = pipeline.image_to_image(digits, [1, 2, 3], strength=1.0, **options)
    fresh = pipeline([1, 2, 3], **options)
    torch.testing.assert_close(full.latents, fresh.latents, rtol=1e-4, atol=2e-5)
    weak = pipeline.image_to_image(digits, [1, 2, 3], strength=0.1, **options)
    assert (weak.latents - digits).square().mean() < 0.5 * (full.latents - digits).square().mean()
    assert weak.evaluations < full.evaluations


@torch.no_grad()
def test_image_to_image_is_the_sampler_from_the_middle(digits):
    pipeline = tiny()
    times = sampler_times(QUICK)
    assert times == [999, 666, 333, 0, -1]
    edited = pipeline.image_to_image(digits, [1, 2, 3], strength=0.5, seed=4)
    start = noised(make_process(QUICK), digits, sample_noise(4, range(3), (1, 8, 8)), 333)
    batch = Batch(slice(3), [0, 1, 2], torch.tensor([1, 2, 3]))
    expected = denoise(pipeline, QUICK, batch, torch.zeros(3), seed=4, times=times[2:], start=start)
    assert torch.equal(edited.latents, expected.latents)
    assert edited.evaluations == 2


@pytest.mark.parametrize(
    ("name", "sampler"), with_samplers("ddim", "dpmpp_2m", "dpmpp_3s", "unipc", "edm_heun", "heun")
)
def test_inpainting_keeps_what_is_not_painted(digits, name, sampler):
    pipeline = tiny(name)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    painted = pipeline.inpaint(digits, mask, [1, 2, 3], sampler=sampler, num_inference_steps=6)
    torch.testing.assert_close(painted.latents[..., :4], digits[..., :4], rtol=0, atol=1e-6)
    assert (painted.latents[..., 4:] - digits[..., 4:]).abs().mean() > 0.05
    other = pipeline.inpaint(digits, mask, [1, 2, 3], sampler=sampler, num_inference_steps=6, seed=9)
    assert (other.latents[..., 4:] - painted.latents[..., 4:]).abs().mean() > 0.01


def test_masks_and_images_in_every_form(digits):
    pipeline = tiny()
    picture = Image.fromarray(np.uint8((digits[0, 0].numpy() + 1) * 127.5))
    assert (encode_images(pipeline, picture) - digits[:1]).abs().max() < 0.01
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    by_picture = pipeline.inpaint([picture], Image.fromarray(mask), [1])
    by_array = pipeline.inpaint([picture], mask > 0, [1])
    assert torch.equal(by_picture.latents, by_array.latents)
    each = torch.stack([torch.ones(8, 8), torch.zeros(8, 8), torch.ones(8, 8)])
    kept = pipeline.inpaint(digits, each, [1, 2, 3]).latents
    torch.testing.assert_close(kept[1], digits[1], rtol=0, atol=1e-6)
    assert (kept[0] - digits[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_inversion_finds_noise_that_gives_the_image_back(digits, name):
    pipeline = tiny(name)
    coarse = pipeline.invert(digits, [1, 2, 3], num_inference_steps=10)
    fine = pipeline.invert(digits, [1, 2, 3], num_inference_steps=80)
    assert fine.error.max() < 0.03
    assert fine.error.mean() <= coarse.error.mean() + 1e-6
    again = pipeline([1, 2, 3], latents=fine.latents, **fine.options)
    error = (again.latents - digits).square().flatten(1).mean(dim=1).sqrt()
    torch.testing.assert_close(error, fine.error, rtol=1e-3, atol=1e-5)


def test_inversion_by_ddim_and_without_labels(digits):
    pipeline = tiny()
    inversion = pipeline.invert(digits, sampler="ddim", num_inference_steps=100)
    assert inversion.error.max() < 0.1
    assert inversion.options == {
        "sampler": "ddim",
        "num_inference_steps": 100,
        "guidance_scale": 1.0,
        "sampler_options": {},
    }
    with pytest.raises(ValueError, match=r"'dpmpp_2m' cannot be run backwards; choose one of ddim, edm_heun"):
        pipeline.invert(digits, sampler="dpmpp_2m")
    with pytest.raises(ValueError, match=r"no null label to invert with; give class_labels"):
        tiny(class_dropout_prob=0.0).invert(digits)
    with pytest.raises(ValueError, match=r"'edm_heun' cannot be run backwards; choose one of ddim, euler, heun"):
        tiny("sit_ti_2").invert(digits, sampler="edm_heun")


@pytest.mark.parametrize("name", FAMILIES)
def test_interpolation_meets_both_ends(name):
    pipeline = tiny(name)
    between = pipeline.interpolate((1, "seven"), num_images=5, seeds=(3, 8))
    ends = [pipeline([1], seed=3), pipeline([7], seed=8)]
    for place, end in zip((0, -1), ends, strict=True):
        torch.testing.assert_close(between.latents[place], end.latents[0], rtol=1e-4, atol=2e-5)
    steps = (between.latents[1:] - between.latents[:-1]).flatten(1).norm(dim=1)
    whole = (between.latents[-1] - between.latents[0]).norm()
    assert (steps < whole).all()
    fixed = pipeline.interpolate((1, 1), num_images=3, seeds=(3, 3))
    torch.testing.assert_close(fixed.latents[0], fixed.latents[2])


@pytest.mark.parametrize(
    ("recipe", "sampler_options", "kept"),
    [
        (QUICK, {"eta": 1.0, "spacing": "log_snr"}, {"spacing": "log_snr"}),
        (QUICK_EDM, {"s_churn": 20.0}, {}),
    ],
)
def test_inversion_adds_no_noise_where_the_recipe_does(digits, recipe, sampler_options, kept):
    recipe = dataclasses.replace(recipe, sampler_options=sampler_options)
    pipeline = Pipeline(tiny("diffit_unet_ti" if recipe.schedule == "edm" else "dit_ti_2").model, recipe)
    inversion = pipeline.invert(digits, [1, 2, 3], sampler=recipe.sampler, num_inference_steps=100)
    assert inversion.options["sampler_options"] == kept
    assert inversion.error.max() < 0.1
    again = pipeline([1, 2, 3], latents=inversion.latents, **inversion.options)
    error = (again.latents - digits).square().flatten(1).mean(dim=1).sqrt()
    torch.testing.assert_close(error, inversion.error, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_unconditional_models_are_edited_without_labels(digits, name):
    pipeline = tiny(name, num_classes=0)
    edited = pipeline.image_to_image(digits, strength=0.1)
    assert (edited.latents - digits).square().mean() < 0.5
    assert pipeline.inpaint(digits, torch.ones(8, 8)).labels is None
    assert pipeline.invert(digits, num_inference_steps=50).error.max() < 0.05
    between = pipeline.interpolate(num_images=3, seeds=(3, 8))
    for place, seed in ((0, 3), (-1, 8)):
        end = pipeline(num_images=1, seed=seed).latents[0]
        torch.testing.assert_close(between.latents[place], end, rtol=1e-4, atol=2e-5)
    assert between.labels is None


def test_numbers_and_labels_of_other_kinds(digits):
    for labels in (torch.tensor([1, 7]), np.array([1, 7])):
        assert tiny().interpolate(labels, num_images=3).labels.tolist() == [1, 7, 7]
    half = tiny().image_to_image(digits, [1], strength=np.float32(0.5))
    assert torch.equal(half.latents, tiny().image_to_image(digits, [1], strength=0.5).latents)


def test_interpolation_without_labels_keeps_one_class():
    between = tiny().interpolate(num_images=4, seeds=(3, 8))
    drawn = tiny()(num_images=1, seed=3)
    assert between.labels.tolist() == drawn.labels.tolist() * 4
    torch.testing.assert_close(between.latents[0], drawn.latents[0], rtol=1e-4, atol=2e-5)


def test_great_circles_keep_the_norm():
    first, last = sample_noise(0, [0], (4, 32, 32)), sample_noise(1, [0], (4, 32, 32))
    norms = [float(slerp(first, last, weight).norm()) for weight in (0, 0.25, 0.5, 1)]
    assert norms == pytest.approx([float(first.norm())] * 4, rel=0.05)
    assert torch.equal(slerp(first, first, 0.3), first)


@pytest.mark.parametrize("name", ["sit_ti_2", "diffit_unet_ti"])
def test_inpainting_by_a_solver_that_chooses_its_steps(digits, name):
    pytest.importorskip("torchdiffeq", reason="dopri5 needs it")
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    painted = tiny(name).inpaint(digits, mask, [1, 2, 3], sampler="dopri5", num_inference_steps=20)
    assert torch.equal(painted.latents[..., :4], digits[..., :4])
    by_heun = tiny(name).inpaint(digits, mask, [1, 2, 3], sampler="heun", num_inference_steps=20)
    assert (painted.latents - by_heun.latents).square().mean() < 0.1 * (by_heun.latents - digits).square().mean()


EDITS = {
    "image_to_image": lambda pipeline, digits, **options: pipeline.image_to_image(digits, [1, 2, 3], **options),
    "inpaint": lambda pipeline, digits, **options: pipeline.inpaint(digits, torch.ones(8, 8), [1, 2, 3], **options),
    "interpolate": lambda pipeline, digits, **options: pipeline.interpolate((1, 7), num_images=3, **options),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_editing_runs_in_batches_as_a_call_does(digits, edit, sampler):
    whole = edit(tiny(), digits, sampler=sampler)
    told = []
    parts = edit(
        tiny(),
        digits,
        sampler=sampler,
        batch_size=2,
        frames="sample",
        callback=lambda step, indices: told.append((step.number, list(indices))),
    )
    torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-4, atol=2e-5)
    assert parts.indices == [0, 1, 2]
    assert np.abs(parts.frames[-1].astype(int) - parts.pixels).max() <= 1
    assert len(parts.frames) == parts.evaluations / (2 if edit is EDITS["interpolate"] else 1)
    assert told == [(n, rows) for rows in ([0, 1], [2]) for n in range(1, len(parts.frames) + 1)]
    latents = edit(tiny(), digits, sampler=sampler, output="latents")
    assert latents.pixels is None
    assert torch.equal(latents.latents, whole.latents)


def test_inversion_runs_in_batches(digits):
    whole = tiny().invert(digits, [1, 2, 3], num_inference_steps=5)
    parts = tiny().invert(digits, [1, 2, 3], num_inference_steps=5, batch_size=1)
    torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(parts.error, whole.error, rtol=1e-3, atol=1e-5)


def test_what_a_callback_returns_takes_the_samples_place(digits):
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    black = tiny().inpaint(digits, mask, [1, 2, 3], callback=lambda step, indices: torch.full_like(step.sample, -1.0))
    assert (black.latents[..., 4:] == -1).all()
    torch.testing.assert_close(black.latents[..., :4], digits[..., :4], rtol=0, atol=0)


def test_bad_input_is_named(digits):
    pipeline = tiny()
    with pytest.raises(ValueError, match=r"images hold values that are no finite numbers"):
        pipeline.image_to_image(torch.full((1, 1, 8, 8), torch.nan), [1])
    with pytest.raises(ValueError, match=r"images have shape \(0, 1, 8, 8\); give .*, N of 1 or more"):
        pipeline.image_to_image(digits[:0], [1])
    with pytest.raises(ValueError, match=r"there are 4 class_labels for 3 images; give one an image, or fewer"):
        pipeline.image_to_image(digits, [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"there are 4 class_labels for 3 images"):
        pipeline.invert(digits, [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"seed must be 0 or more, got -1"):
        pipeline.image_to_image(digits, [1], seed=-1)
    with pytest.raises(ValueError, match=r"seeds must be 0 or more, got -1"):
        pipeline.interpolate((1, 2), seeds=(0, -1))
    with pytest.raises(TypeError, match=r"num_images must be a whole number, got 2.5"):
        pipeline.interpolate((1, 2), num_images=2.5)
    for strength in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"strength must be above 0 and at most 1, got {strength}"):
            pipeline.image_to_image(digits, [1], strength=strength)
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got values up to 255"):
        pipeline.image_to_image(255 * digits.abs(), [1])
    with pytest.raises(TypeError, match=r"images must be a tensor .* or PIL images, got str"):
        pipeline.image_to_image("cat.png", [1])
    with pytest.raises(ValueError, match=r"give \(N, C, H, W\)"):
        pipeline.image_to_image(digits[0], [1])
    with pytest.raises(ValueError, match=r"the mask paints nothing"):
        pipeline.inpaint(digits, torch.zeros(8, 8), [1, 2, 3])
    with pytest.raises(ValueError, match=r"the mask has shape \(1, 4, 4\); give \(8, 8\)"):
        pipeline.inpaint(digits, torch.ones(4, 4), [1, 2, 3])
    with pytest.raises(ValueError, match=r"num_images must be 2 or more"):
        pipeline.interpolate((1, 2), num_images=1)
    with pytest.raises(ValueError, match=r"class_labels must be two, of the first and the last image, got \(1, 2, 3\)"):
        pipeline.interpolate((1, 2, 3))
    for seeds in (3, None):
        with pytest.raises(ValueError, match=rf"seeds must be two, .* got {seeds}"):
            pipeline.interpolate((1, 2), seeds=seeds)
    with pytest.raises(TypeError, match=r"strength must be a number, got '0.5'"):
        pipeline.image_to_image(digits, [1], strength="0.5")
    pictures = [Image.new("L", (8, 8)), Image.new("L", (16, 8))]
    with pytest.raises(ValueError, match=r"images must be one or more of one size, got 16x8 and 8x8"):
        pipeline.image_to_image(pictures, [1])
    for value in (-1, 255, torch.nan):
        with pytest.raises(ValueError, match=r"a mask holds 0 and 1, or false and true, alone; give mask > 0"):
            pipeline.inpaint(digits, torch.full((8, 8), value), [1, 2, 3])
    with pytest.raises(ValueError, match=r"num_inference_steps must be 2 or more to invert by edm_heun, got 1"):
        pipeline.invert(digits, num_inference_steps=1)
    with pytest.raises(TypeError, match=r"unknown option 'steps'; editing takes sampler, .*batch_size"):
        pipeline.image_to_image(digits, [1], steps=3)


def test_edm_and_flows_start_where_their_noise_does(digits):
    for recipe in (QUICK_FLOW, dataclasses.replace(QUICK, schedule="edm", prediction="edm", sampler="edm_heun")):
        pipeline = Pipeline(tiny().model, recipe)
        process, times = make_process(recipe), sampler_times(recipe)
        assert (times[0], times[-1]) == (process.start, process.data)
        edited = pipeline.image_to_image(digits, [1, 2, 3], strength=0.5)
        assert torch.isfinite(edited.latents).all()
