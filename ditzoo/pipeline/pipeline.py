"""Model, recipe, sampler and codec together: labels in, images out."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ditzoo.diffusion import sample_labels, sample_noise
from ditzoo.media import Codec, LabelNames, LatentCodec, PixelCodec, channels_last, load_codec, to_uint8
from ditzoo.models import DiffusionTransformer
from ditzoo.pipeline.denoising import (
    Batch,
    Denoised,
    Frames,
    NonFiniteImageError,
    Output,
    RunOptions,
    StepCallback,
    denoise,
    sample_in_batches,
)
from ditzoo.pipeline.samples import Samples
from ditzoo.pipeline.settings import SETTINGS, check_whole, settings_of
from ditzoo.recipe import Guidance, Recipe, Sampler

if TYPE_CHECKING:
    from ditzoo.pipeline.editing import Inversion

ClassLabels = int | str | Sequence[int | str] | Tensor


class Pipeline:
    """Draws samples from a model as its recipe says.

    Args:
        model: any of the zoo; it is put into evaluation mode and stays where and in the precision that it is.
        recipe: of its weights.
        codec: of its latents; where None, pixels, or the recipe's autoencoder, loaded when an image is first decoded.
        label_names: of its classes; ImageNet's where None and the model has 1,000 classes.
        weak_model: for autoguidance, a smaller or less trained model of the same data, which predicts the same thing at
            the same times; a pipeline is checked to do so.
        name: of the weights, in messages.

    Raises:
        ValueError: where recipe and model contradict each other, as a SiT and timesteps do, or the codec does not fit
            the model's channels, or the weak model sees other images, classes or times.
    """

    def __init__(
        self,
        model: DiffusionTransformer,
        recipe: Recipe,
        codec: Codec | None = None,
        *,
        label_names: LabelNames | Sequence[str] | None = None,
        weak_model: DiffusionTransformer | Pipeline | None = None,
        name: str | None = None,
    ) -> None:
        self.model, self.recipe = model.eval(), recipe
        self.name = name or type(model).__name__
        if label_names is None and model.num_classes == 1000:
            label_names = LabelNames.imagenet()
        if label_names is not None and not isinstance(label_names, LabelNames):
            label_names = LabelNames(label_names)
        if label_names is not None and len(label_names) != model.num_classes:
            raise ValueError(f"there are names of {len(label_names)} classes, but the model has {model.num_classes}.")
        self.label_names = label_names
        model.check_recipe(recipe)
        self._check_variance()
        self.weak_model = weak_model
        if codec is None and recipe.latent_codec is None:
            codec = PixelCodec(model.in_channels)
        if codec is not None:
            codec.check_fits(model.in_channels)
        self._codec = codec

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        codec: Codec | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """The pipeline of published or saved weights.

        Args:
            name_or_path: a tagged name of the registry, such as `"dit_ti_2.digits"`; a folder that `save_pretrained`
                wrote; that of a training run, whose newest checkpoint is taken; or a repository of the Hub,
                `"hf-hub:user/repo@revision"`.
            checkpoint: for a name, weights in place of its own: a file, a folder or an address, as `ditzoo.create`
                takes them.
            codec: instead of the recipe's.
            device: where it computes.
            dtype: of the weights; noise and samples stay in float32.

        Raises:
            ValueError: for an unknown name, a folder without a model, or a device or precision that cannot be had.
            RuntimeError: for weights that no program can fetch; the message says where they are.
            OSError: for a file that cannot be read or fetched.
        """
        from ditzoo.pipeline.storage import load_pipeline

        return load_pipeline(cls, name_or_path, checkpoint=checkpoint, codec=codec, device=device, dtype=dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, `config.json` and, if there is a weak model, `weak_model.safetensors`: all that
        `from_pretrained` needs, the codec's weights excepted.

        Raises:
            OSError: where the folder cannot be written, which then is as it was.
        """
        from ditzoo.pipeline.storage import save_pipeline

        save_pipeline(self, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """As `DiffusionTransformer.push_to_hub`, with what the pipeline knows: recipe, names of classes, weak model.

        Returns:
            The address of the commit.
        """
        from ditzoo.pipeline.sharing import push_model
        from ditzoo.pipeline.storage import details_of

        return push_model(self.model, repo_id, details=details_of(self), weak_model=self.weak_model, **options)

    @classmethod
    def from_diffusers(
        cls,
        folder_or_id: str | Path,
        codec: Codec | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """The pipeline of a DiT that diffusers has saved.

        Args:
            folder_or_id: a folder, or the id of a repository of the Hub: see `ditzoo.interop.load_diffusers`.
            codec: instead of the autoencoder in the folder or repository, which is loaded at once, or, where that has
                none, the recipe's.
            device: where it computes.
            dtype: of the weights; noise, samples and the autoencoder stay in float32.

        Raises:
            ValueError: for a device or precision that cannot be had, before anything is fetched.
            ImportError, OSError, ValueError: as `load_diffusers`.
        """
        from ditzoo.interop.folders import has_vae, load_diffusers
        from ditzoo.pipeline.storage import check_place, placed

        check_place(device, dtype)
        model, recipe = load_diffusers(folder_or_id)
        if codec is None and has_vae(folder_or_id):
            codec = load_codec(folder_or_id, subfolder="vae", scale=recipe.latent_scale, shift=recipe.latent_shift)
        details = model.details
        pipeline = cls(model, recipe, codec, label_names=details.label_names, name=details.name or str(folder_or_id))
        return placed(pipeline, device, dtype)

    def to_diffusers(self) -> Any:
        """diffusers' `DiTPipeline` of this model, autoencoder and recipe, in memory: see `ditzoo.interop`.

        A DiT of 1,000 classes that is told whole timesteps becomes diffusers' own class, changed so that it computes
        what ours does; other models stand in as a `DiffusersTransformer`, which diffusers does not save. Guidance and
        steps are arguments of that pipeline's call.

        Raises:
            ImportError: where diffusers is missing.
            ValueError: for a model of pixels, which that pipeline cannot decode, a flow or EDM, whose schedulers it
                cannot drive, more than 1,000 classes, or a codec whose scale and shift are not those that it reads from
                the autoencoder's configuration.
        """
        from ditzoo.interop.pipelines import make_pipeline

        if not isinstance(self.codec, LatentCodec):
            raise ValueError(f"DiTPipeline decodes latents with an autoencoder, and {self.name} sees pixels.")
        return make_pipeline(self.model, self.recipe, self.codec, self.label_names)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Move the models, and the codec to the device but not to the precision; returns the pipeline."""
        for model in (self.model, self.weak_model):
            if model is not None:
                model.to(device=device, dtype=dtype)
        if device is not None and isinstance(self._codec, LatentCodec):
            self._codec.autoencoder.to(device)
        return self

    @property
    def codec(self) -> Codec:
        """Of the latents; loaded when first asked for.

        Raises:
            OSError: where the recipe's autoencoder cannot be loaded; the message says what to do offline.
            ValueError: where it does not fit the model's channels.
        """
        if self._codec is None:
            assert self.recipe.latent_codec is not None
            codec = load_codec(
                self.recipe.latent_codec,
                scale=self.recipe.latent_scale,
                shift=self.recipe.latent_shift,
                device=self.model.device,
            )
            codec.check_fits(self.model.in_channels)
            self._codec = codec
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        codec.check_fits(self.model.in_channels)
        self._codec = codec

    @property
    def weak_model(self) -> DiffusionTransformer | None:
        """For autoguidance. A model, or a pipeline of it, can be set.

        Raises:
            ValueError: where it sees other images, classes or times than the model, or its pipeline's recipe is of
                another prediction or schedule.
        """
        return self._weak_model

    @weak_model.setter
    def weak_model(self, weak_model: DiffusionTransformer | Pipeline | None) -> None:
        if isinstance(weak_model, Pipeline):
            _check_same_task(self.recipe, weak_model.recipe, weak_model.name)
            weak_model = weak_model.model
        if weak_model is not None:
            _check_same_data(self.model, weak_model)
            weak_model.check_recipe(self.recipe)
            weak_model.eval()
        self._weak_model = weak_model

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """Classes by name, as diffusers' DiTPipeline has it.

        Raises:
            ValueError: for an unknown name (the nearest are suggested) or one of several classes (they are listed).
        """
        if self.label_names is None:
            raise ValueError(f"the classes of {self.name} have no names; give numbers from 0 on, or label_names=.")
        return self.label_names.get_label_ids(names)

    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        *,
        num_images: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        output: Output = "images",
        latents: Tensor | None = None,
        size: tuple[int, int] | None = None,
        guidance: Guidance | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        frames: Frames | None = None,
        callback: StepCallback | None = None,
        progress: bool | None = None,
    ) -> Samples:
        """Draw samples.

        Args:
            class_labels: numbers or names; None draws classes at random, the same ones for the same seed. The model's
                null label gives unconditional samples.
            num_images: so many; sample i gets label i, and the first label again after the last. One image a label
                where None.
            guidance_scale: in the convention of the weights' recipe; its own where None.
            num_inference_steps: of the sampler; the recipe's where None.
            sampler: one of `recipe.samplers`.
            seed: sample i of a seed is the same in every batch and on every number of processes, up to rounding (by
                `dopri5`, up to its tolerances).
            first_index: number of the first sample: a job can be split into calls.
            batch_size: samples at a time.
            output: `"images"`, or `"latents"` alone, without the codec.
            latents: (N, C, H, W) standard normal noise to start from, instead of the seed's.
            size: height and width of the images in pixels; the trained one where None.
            guidance: all of it, instead of a scale.
            sampler_options: of the sampler, such as `{"eta": 1.0}`.
            frames: also keep images after each step: `"x0"`, the estimates of the clean image, or `"sample"`.
            callback: called after each step with a `SamplingStep` and the batch's indices.
            progress: show a bar with the time left; where None, on a terminal.

        Returns:
            Samples, on the CPU.

        Raises:
            ValueError: for unknown labels, options out of range or in contradiction.
            TypeError: for an option that the sampler does not have, or a number that is none.
            NonFiniteSampleError: at the first value that is no number; its `finished` holds the batches before.
            NonFiniteImageError: likewise, where the codec decodes one.

        Warns:
            UserWarning: for a guidance scale that looks like one of another convention.
        """
        options = RunOptions(batch_size=batch_size, output=output, frames=frames, callback=callback, progress=progress)
        settings = self.settings(
            {
                "sampler": sampler,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance": guidance,
                "sampler_options": sampler_options,
            }
        )
        if num_images is None and latents is not None and class_labels is None:
            num_images = len(latents)
        labels, count = self.labels(class_labels, num_images, seed, first_index)
        if latents is not None:
            if size is not None:
                raise ValueError("give latents or size, not both: latents have a size of their own.")
            self._check_latents(latents, count)
        indices = range(first_index, first_index + count)
        return self.draw(settings, labels, indices, seed, options, size=size, latents=latents)

    def draw(
        self,
        settings: Recipe,
        labels: Tensor | None,
        indices: Sequence[int],
        seed: int,
        options: RunOptions,
        *,
        size: tuple[int, int] | None = None,
        latents: Tensor | None = None,
    ) -> Samples:
        """What a call does with its arguments once they are checked: samples `indices` of a seed, whose labels are
        `labels`, (N,). Size, latents, result and errors as in a call."""
        shape = self.latent_shape(size)

        def denoise_batch(batch: Batch) -> Denoised:
            noise = sample_noise(seed, batch.indices, shape) if latents is None else latents[batch.rows]
            return denoise(self, settings, batch, noise, seed=seed)

        return sample_in_batches(self, settings, labels, indices, seed, options, denoise_batch)

    def settings(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe with what the options of a call change in it; others are left out. Errors as in a call."""
        return settings_of(self.recipe, self.model, **{key: options.get(key) for key in SETTINGS})

    def decode(self, latents: Tensor, settings: Recipe | None = None, batch_size: int = 16) -> Any:
        """(N, H, W, C) uint8 images of latents (N, C, H, W)."""
        rule = (settings or self.recipe).pixel_rule
        batches = [self.codec.decode(part).float().cpu() for part in latents.split(batch_size)]
        if not all(torch.isfinite(batch).all() for batch in batches):
            raise NonFiniteImageError(
                f"{self.codec.name} decoded values that are not finite; load the autoencoder in float32."
            )
        return channels_last(to_uint8(torch.cat(batches), rule))

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image of this size in pixels.

        Raises:
            ValueError: for a size that the codec or the patches do not divide.
            TypeError: for a size that is not two whole numbers.
        """
        model = self.model
        if size is None:
            return model.in_channels, model.input_size, model.input_size
        if not isinstance(size, Sequence) or len(size) != 2:
            raise TypeError(f"size must be the height and width of the images, such as (256, 256), got {size!r}.")
        for side in size:
            check_whole("image sides", side, least=1)
        factor = self.codec.downsampling
        if any(side % factor for side in size):
            raise ValueError(f"image sides must be multiples of {factor} pixels, got {size[0]}x{size[1]}.")
        height, width = (side // factor for side in size)
        model.token_grid(height, width)
        return model.in_channels, height, width

    def labels(
        self, class_labels: ClassLabels | None, num_images: int | None, seed: int = 0, first_index: int = 0
    ) -> tuple[Tensor | None, int]:
        """The label of each sample, (N,) int64, and N. Arguments and errors as in a call."""
        classes = self.model.num_classes
        check_whole("seed", seed, least=0)
        check_whole("first_index", first_index, least=0)
        if num_images is not None:
            check_whole("num_images", num_images, least=1)
        if classes == 0:
            if class_labels is not None:
                raise ValueError(f"{self.name} is unconditional and takes no class_labels; give num_images.")
            return None, num_images or 1
        if class_labels is None:
            count = num_images or 1
            return sample_labels(seed, range(first_index, first_index + count), classes), count
        given = [self._label(label) for label in _listed(class_labels)]
        if not given:
            raise ValueError("class_labels is empty; give numbers or names, or None for random classes.")
        count = num_images or len(given)
        return torch.tensor([given[(first_index + place) % len(given)] for place in range(count)]), count

    def _label(self, label: int | str) -> int:
        if isinstance(label, str):
            return self.get_label_ids([label])[0]
        if isinstance(label, bool) or not hasattr(label, "__index__"):
            raise TypeError(f"a class label is a number or a name, got {label!r}.")
        label = operator.index(label)
        most, null = self.model.num_label_rows - 1, self.model.null_label
        if not 0 <= label <= most:
            extra = f" ({null} is the null label)" if null is not None else "; it has no null label"
            raise ValueError(f"there is no class {label}: {self.name} takes labels from 0 to {most}{extra}.")
        return label

    def _check_latents(self, latents: Tensor, count: int) -> None:
        if not isinstance(latents, Tensor):
            raise TypeError(f"latents must be a tensor, got {type(latents).__name__}.")
        channels = self.model.in_channels
        if latents.ndim != 4 or latents.shape[0] != count or latents.shape[1] != channels:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; give standard normal noise of shape ({count}, {channels}, "
                "H, W), one a sample."
            )

    def _check_variance(self) -> None:
        learned, doubled = self.recipe.variance == "learned_range", self.model.out_channels > self.model.in_channels
        if learned and not doubled:
            raise ValueError(
                f"the recipe samples with a learned variance, and {self.name} predicts none (learn_sigma=False); use "
                "dataclasses.replace(recipe, variance='fixed_large', loss='mse')."
            )

    # Editing: see `ditzoo.pipeline.editing`.

    def image_to_image(
        self, images: Any, class_labels: ClassLabels | None = None, *, strength: float = 0.6, **options: Any
    ) -> Samples:
        """Samples that keep the coarse layout of given images: `ditzoo.pipeline.editing.image_to_image`."""
        from ditzoo.pipeline.editing import image_to_image

        return image_to_image(self, images, class_labels, strength=strength, **options)

    def inpaint(self, images: Any, mask: Any, class_labels: ClassLabels | None = None, **options: Any) -> Samples:
        """Given images with their masked part filled in: `ditzoo.pipeline.editing.inpaint`."""
        from ditzoo.pipeline.editing import inpaint

        return inpaint(self, images, mask, class_labels, **options)

    def invert(self, images: Any, class_labels: ClassLabels | None = None, **options: Any) -> Inversion:
        """The noise that a deterministic sampler turns into given images, and the error of the round trip:
        `ditzoo.pipeline.editing.invert`."""
        from ditzoo.pipeline.editing import invert

        return invert(self, images, class_labels, **options)

    def interpolate(self, class_labels: tuple[int | str, int | str] | None = None, **options: Any) -> Samples:
        """Samples on the way from one class and noise to another: `ditzoo.pipeline.editing.interpolate`."""
        from ditzoo.pipeline.editing import interpolate

        return interpolate(self, class_labels, **options)


#: what two models have in common whose predictions can be compared
_TASK = (
    *("prediction", "schedule", "num_train_timesteps", "time_scale", "time_offset"),
    *("latent_scale", "latent_shift"),
)


def _check_same_task(recipe: Recipe, weak: Recipe, name: str) -> None:
    for entry in _TASK:
        if getattr(recipe, entry) != getattr(weak, entry):
            raise ValueError(
                f"the weak model {name} has {entry}={getattr(weak, entry)!r} and the model "
                f"{entry}={getattr(recipe, entry)!r}; autoguidance compares predictions of the same thing at the same "
                "times."
            )


def _check_same_data(model: DiffusionTransformer, weak_model: DiffusionTransformer) -> None:
    for what in ("in_channels", "num_classes"):
        strong, weak = getattr(model, what), getattr(weak_model, what)
        if strong != weak:
            raise ValueError(
                f"weak_model has {what}={weak} and the model {what}={strong}; autoguidance needs two models of the "
                "same data."
            )


def _listed(class_labels: ClassLabels) -> Iterable[int | str]:
    if isinstance(class_labels, Tensor):
        return cast(list[int], class_labels.flatten().tolist())
    return class_labels if isinstance(class_labels, Iterable) and not isinstance(class_labels, str) else [class_labels]
