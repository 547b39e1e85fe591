"""Between images and what a network sees: the one place where latents are scaled and shifted, and the way to bytes.

Latents are z = (e - shift) * scale, with e the autoencoder's own code of an image; the decoder gets z / scale + shift
back. Scaling twice or never is the usual mistake, so nothing outside this file touches e.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ditzoo.media.hashes import sampled_hash

Uint8Rule = Literal["dit", "adm"]


def to_uint8(images: Tensor, rule: Uint8Rule = "dit") -> Tensor:
    """Images in [-1, 1], of any shape, as uint8 values 0..255; values outside are clamped.

    Args:
        images: floats. Half precision is computed in float32: bfloat16 could not tell 254 from 255.
        rule: `"dit"` is clamp(127.5 x + 128, 0, 255), the nearest value; `"adm"` is clamp((x + 1) * 127.5, 0, 255),
            as ADM, MDT and DiffiT have it. Both then truncate, so that many values differ by one.

    Raises:
        ValueError: an unknown rule.
        TypeError: images that are no floats, such as bytes already.
    """
    if rule not in get_args(Uint8Rule):
        raise ValueError(f"unknown rule {rule!r} for uint8; choose one of {', '.join(get_args(Uint8Rule))}.")
    if not images.is_floating_point():
        raise TypeError(f"to_uint8 takes floats in [-1, 1], got {images.dtype}; such images need no conversion.")
    images = images.to(_at_least_float32(images.dtype))
    scaled = 127.5 * images + 128 if rule == "dit" else (images + 1) * 127.5
    return scaled.clamp(0, 255).to(torch.uint8)


class Posterior(NamedTuple):
    """What an encoder makes of images: a normal distribution of latents, scaled and shifted as networks see them.

    Attributes:
        mean: (B, C, h, w) float32.
        log_variance: of the same shape; None for a point, which has none.
    """

    mean: Tensor
    log_variance: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        """Latents mean + std * noise, for standard normal noise of their shape."""
        return self.mean if self.log_variance is None else self.mean + (0.5 * self.log_variance).exp() * noise


class PixelCodec:
    """For models that see pixels: encoding and decoding change nothing.

    Attributes:
        channels: of the images, 3 for colours and 1 for grey.
        name, downsampling, latent_channels, scale, shift: as `LatentCodec` has them.
        encoder_hash: None, for there are no weights.
    """

    name = "pixels"
    downsampling = 1
    scale, shift = 1.0, 0.0
    encoder_hash = None
    has_posterior = False

    def __init__(self, channels: int = 3) -> None:
        if channels < 1:
            raise ValueError(f"images have 1 or more channels, got {channels}.")
        self.channels = channels

    @property
    def latent_channels(self) -> int:
        """Those of the images."""
        return self.channels

    @property
    def image_channels(self) -> int:
        """Those of the images."""
        return self.channels

    def encode(self, images: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """`images`, checked. There is no posterior, so noise changes nothing either."""
        _check_images(images, self.channels, self.downsampling)
        _check_noise(noise, tuple(images.shape))
        return images

    def posterior(self, images: Tensor) -> Posterior:
        """A point: `images`, checked."""
        return Posterior(self.encode(images), None)

    def decode(self, latents: Tensor) -> Tensor:
        """`latents`, checked."""
        _check_latents(latents, self)
        return latents

    def check_fits(self, in_channels: int) -> None:
        """Raise a ValueError unless a model with so many input channels sees such images."""
        if in_channels != self.channels:
            raise ValueError(
                f"images have {self.channels} channels, the model takes {in_channels}; a model of latents needs the "
                "autoencoder of its recipe, one of pixels PixelCodec(channels=...)."
            )


class LatentCodec:
    """Images to scaled latents and back, through an autoencoder of diffusers.

    No gradients flow, and no random numbers are drawn.

    Args:
        autoencoder: an `AutoencoderKL` or `AutoencoderTiny`; it is frozen and put into evaluation mode.
        scale: what codes are multiplied by, in Stable Diffusion's autoencoders 0.18215. None takes scale and shift of
            the autoencoder's own configuration.
        shift: what is subtracted from codes first.
        name: for messages.
        tiling: decode large images in overlapping tiles, whose size the autoencoder decides: less memory, but tiles
            are normalised one by one and blended, so that pixels differ a little. Encoding is never tiled.
        slicing: encode and decode one image at a time: less memory, the same result.

    Both can be changed later: `codec.tiling = True`.

    Attributes:
        downsampling: pixels of an image for one of its latents, along each side.
        latent_channels: of the latents.
        image_channels: of the images.
        has_posterior: whether images become distributions of latents; tiny autoencoders make points of them.
        encoder_hash: of the encoder's weights as they are given: equal where the same images become the same latents.
            `load_codec` takes it before the weights are cast, so that it is the same in every precision.

    Raises:
        TypeError: another kind of autoencoder.
        ValueError: a scale or shift that is no finite number, a scale of 0 or less, a shift without a scale; a tiny
            autoencoder that diffusers cannot tile.

    Warns:
        UserWarning: where the autoencoder's configuration names another scale or shift. The ones given here win: they
            are those the model was trained with.
    """

    def __init__(
        self,
        autoencoder: Any,
        *,
        scale: float | None,
        shift: float = 0.0,
        name: str = "autoencoder",
        tiling: bool = False,
        slicing: bool = False,
    ) -> None:
        kind = type(autoencoder).__name__
        if kind not in _KINDS:
            raise TypeError(f"an autoencoder is an {' or '.join(_KINDS)} of diffusers, got {kind}.")
        config = autoencoder.config
        own_scale, own_shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        if scale is None and shift:
            raise ValueError(f"shift {shift} needs a scale; scale=None takes both from the autoencoder.")
        if scale is None:
            scale, shift = own_scale, own_shift
        if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
            raise ValueError(f"scale must be a number above 0 and shift a number, got {scale} and {shift}.")
        if not (_agree(scale, own_scale) and _agree(shift, own_shift)):
            warnings.warn(_disagreement(name, kind, (scale, shift), (own_scale, own_shift)), stacklevel=2)
        self.name, self.scale, self.shift = name, scale, shift
        self.image_channels, self.latent_channels = int(config.in_channels), int(config.latent_channels)
        self.downsampling = 2 ** (len(config.block_out_channels) - 1)
        self._autoencoder = autoencoder.eval().requires_grad_(False)
        self._is_tiny = kind == _TINY
        self.has_posterior = not self._is_tiny
        encoder = {k: v for k, v in autoencoder.state_dict().items() if k.startswith(_ENCODER)}
        self.encoder_hash = sampled_hash(encoder)
        autoencoder.disable_tiling()
        self.tiling, self.slicing = tiling, slicing

    @property
    def tiling(self) -> bool:
        """Whether large images are decoded in tiles.

        Raises:
            ValueError: where it is set for a tiny autoencoder that diffusers cannot tile.
        """
        return self._tiling

    @tiling.setter
    def tiling(self, tiling: bool) -> None:
        if tiling and self._is_tiny and self._autoencoder.spatial_scale_factor != self.downsampling:
            raise ValueError(
                f"diffusers cannot tile {self.name}: only tiny autoencoders that reduce each side 8 times."
            )
        self._tiling = tiling

    @property
    def slicing(self) -> bool:
        """Whether images are encoded and decoded one at a time."""
        return bool(self._autoencoder.use_slicing)

    @slicing.setter
    def slicing(self, slicing: bool) -> None:
        (self._autoencoder.enable_slicing if slicing else self._autoencoder.disable_slicing)()

    @property
    def autoencoder(self) -> Any:
        """The autoencoder itself, whose own encode and decode know nothing of scale and shift."""
        return self._autoencoder

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes; inputs are moved there."""
        device: torch.device = self._autoencoder.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        dtype: torch.dtype = self._autoencoder.dtype
        return dtype

    @torch.no_grad()
    def encode(self, images: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Latents (B, latent_channels, H / downsampling, W / downsampling) of images, float32, on the codec's device.

        Args:
            images: (B, image_channels, H, W) floats in [-1, 1]; `downsampling` divides H and W.
            noise: of the shape of the latents, standard normal: a sample of the posterior, mean + std * noise. None
                gives its mean. A tiny autoencoder has no posterior but a point, which noise does not move.

        Raises:
            TypeError: images that are no floats.
            ValueError: images or noise of another shape.
        """
        _check_images(images, self.image_channels, self.downsampling)
        batch, _, height, width = images.shape
        shape = (batch, self.latent_channels, height // self.downsampling, width // self.downsampling)
        _check_noise(noise, shape)
        encoded = self._autoencoder.encode(self._put(images))
        if self._is_tiny:
            codes = self._widen(encoded.latents)
        else:
            codes = self._widen(encoded.latent_dist.mean)
            if noise is not None:
                codes = codes + self._widen(encoded.latent_dist.std) * noise.to(codes)
        return (codes - self.shift) * self.scale

    @torch.no_grad()
    def posterior(self, images: Tensor) -> Posterior:
        """The distribution of latents that `encode` takes the mean of, or draws from: to keep on disk.

        Args:
            images: (B, image_channels, H, W) floats in [-1, 1]; `downsampling` divides H and W.

        Raises:
            TypeError, ValueError: as `encode`.
        """
        if self._is_tiny:
            return Posterior(self.encode(images), None)
        _check_images(images, self.image_channels, self.downsampling)
        codes = self._autoencoder.encode(self._put(images)).latent_dist
        mean = (self._widen(codes.mean) - self.shift) * self.scale
        return Posterior(mean, self._widen(codes.logvar) + 2 * math.log(self.scale))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, image_channels, H, W) of latents, float32, on the codec's device.

        Their range is [-1, 1], which decoders overshoot a little; `to_uint8` clamps.

        Args:
            latents: (B, latent_channels, H / downsampling, W / downsampling) as `encode` gives them and a model
                samples them.

        Raises:
            TypeError: latents that are no floats.
            ValueError: latents of another shape.
        """
        _check_latents(latents, self)
        codes = self._put(latents.to(self.device, _at_least_float32(self.dtype)) / self.scale + self.shift)
        if not self.tiling:
            return self._widen(self._autoencoder.decode(codes).sample)
        self._autoencoder.enable_tiling()
        try:
            return self._widen(self._autoencoder.decode(codes).sample)
        finally:
            self._autoencoder.disable_tiling()

    def check_fits(self, in_channels: int) -> None:
        """Raise a ValueError unless a model with so many input channels sees such latents."""
        if in_channels != self.latent_channels:
            raise ValueError(
                f"autoencoder {self.name} has {self.latent_channels} latent channels, the model takes {in_channels}; "
                "use the autoencoder that the model's recipe names."
            )

    def _put(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)

    def _widen(self, values: Tensor) -> Tensor:
        return values.to(_at_least_float32(self.dtype))


Codec = LatentCodec | PixelCodec

_TINY = "AutoencoderTiny"
_KINDS = ("AutoencoderKL", _TINY)
#: the parameters that decide latents; autoencoders whose decoder alone was tuned share them
_ENCODER = ("encoder.", "quant_conv.")


def load_codec(
    name_or_path: str | Path,
    *,
    scale: float | None,
    shift: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tiling: bool = False,
    slicing: bool = False,
    subfolder: str | None = None,
    revision: str | None = None,
) -> LatentCodec:
    """The codec of an autoencoder that diffusers has saved.

    Args:
        name_or_path: a local folder with `config.json` and weights, or the id of a model on the Hub such as
            `"stabilityai/sd-vae-ft-ema"`, which is downloaded once; `"owner/name/vae"` is the autoencoder of a pipeline
            there.
        scale, shift: those of the recipe; see `LatentCodec`. None as scale takes the autoencoder's own.
        device, dtype: where and in which precision it computes.
        tiling, slicing: to save memory; see `LatentCodec`.
        subfolder: where a pipeline was saved, the part that is the autoencoder, `"vae"`.
        revision: branch, tag or commit on the Hub.

    Raises:
        ImportError: diffusers is not installed.
        OSError: there is no such folder or model, it cannot be reached, or its files are damaged or incomplete.
        ValueError: it is another kind of autoencoder, and as `LatentCodec` has it.
    """
    name = str(name_or_path)
    autoencoder = _load_autoencoder(name, subfolder, revision)
    codec = LatentCodec(autoencoder, scale=scale, shift=shift, name=name, tiling=tiling, slicing=slicing)
    _cast(autoencoder, device, dtype)
    return codec


def load_codec_for_recipe(
    name_or_path: str | Path,
    *,
    latent_scale: float,
    latent_shift: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tiling: bool = False,
    slicing: bool = False,
) -> LatentCodec:
    """The codec of an autoencoder that takes the place of a recipe's own.

    An `AutoencoderKL` gets the recipe's scale and shift. An `AutoencoderTiny` keeps those of its configuration: it was
    trained on latents that are scaled already, so that scaling them back would be once too often. That is right where
    its teacher's scale is the recipe's. To insist on other numbers, call `load_codec`.

    Args:
        name_or_path: as `load_codec` has it.
        latent_scale, latent_shift: of the recipe.
        device, dtype, tiling, slicing: as `load_codec` has them.

    Raises:
        ImportError, OSError, ValueError: as `load_codec`.

    Warns:
        UserWarning: where the configuration of an `AutoencoderKL` names another scale or shift than the recipe.
    """
    name = str(name_or_path)
    autoencoder = _load_autoencoder(name)
    scale: float | None = latent_scale
    shift = latent_shift
    if type(autoencoder).__name__ == _TINY:
        scale, shift = None, 0.0
    codec = LatentCodec(autoencoder, scale=scale, shift=shift, name=name, tiling=tiling, slicing=slicing)
    _cast(autoencoder, device, dtype)
    return codec


def _load_autoencoder(name: str, subfolder: str | None = None, revision: str | None = None) -> Any:
    """On the CPU, in float32. Errors as `load_codec` has them."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError('Autoencoders need diffusers: pip install "ditzoo[diffusers]"') from error
    repository, subfolder = _split_place(name, subfolder)
    where = {"subfolder": subfolder, "revision": revision}
    _check_place(repository, subfolder)
    try:
        with quiet_download():
            config = diffusers.AutoencoderKL.load_config(repository, **where)
            kind = str(config.get("_class_name"))
            if kind in _KINDS:
                autoencoder, report = getattr(diffusers, kind).from_pretrained(
                    repository, torch_dtype=torch.float32, output_loading_info=True, low_cpu_mem_usage=False, **where
                )
    except Exception as error:
        # diffusers, the Hub's client and safetensors each have their own, and not all are OSErrors.
        raise OSError(_not_loaded(repository, subfolder, error)) from error
    if kind not in _KINDS:
        raise ValueError(f"{name} holds {config.get('_class_name')!r}; ditzoo decodes with {' or '.join(_KINDS)}.")
    if broken := [*report["missing_keys"], *report["mismatched_keys"], *report["error_msgs"]]:
        # diffusers would go on with random numbers in their place.
        raise OSError(f"{name} is incomplete: {broken[0]} and {len(broken) - 1} more do not fit. Fetch it again.")
    return autoencoder


def _cast(autoencoder: Any, device: torch.device | str, dtype: torch.dtype) -> None:
    # Not by its own `to`, which warns of modules to be kept in float32 where there are none.
    torch.nn.Module.to(autoencoder, device, dtype)


@contextmanager
def quiet_download() -> Iterator[None]:
    """Without the Hub client's warning of an argument that diffusers always gives, and that means nothing any more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
        yield


#: Autoencoders that recipes name and that are no models of the Hub.
_AUTHORS_FILES = {
    "autoencoder_kl": "stable-diffusion/autoencoder_kl.pth",
    "autoencoder_kl_ema": "stable-diffusion/autoencoder_kl_ema.pth, whose decoder is the fine-tuned ft-EMA one",
}
_AUTHORS_FOLDER = "https://drive.google.com/drive/folders/1yo-XhqbPue3rp5P57j6QbA5QZx6KybvP"
#: `owner/name` on the Hub, which has no other slash.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
#: the part of a pipeline's repository that is the autoencoder
_PIPELINE_PART = "vae"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a model's id on the Hub, `owner/name`."""
    return bool(_HUB_ID.fullmatch(name))


def _split_place(name: str, subfolder: str | None) -> tuple[str, str | None]:
    """Folder or id, and the folder within: `owner/name/vae` is on the Hub where no such folder is here."""
    repository, _, part = name.rpartition("/")
    if subfolder is None and part == _PIPELINE_PART and is_hub_id(repository) and not Path(name).exists():
        return repository, part
    return name, subfolder


def _check_place(name: str, subfolder: str | None) -> None:
    """Refuse at once what is neither a folder with an autoencoder nor the id of a model."""
    folder = Path(name) / (subfolder or "")
    if Path(name).is_dir():
        if not (folder / "config.json").is_file():
            inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
            hint = f" It has {', '.join(inside)}: name one as subfolder." if inside else ""
            raise FileNotFoundError(f"{folder} holds no config.json, so no autoencoder that diffusers saved.{hint}")
    elif Path(name).exists():
        raise NotADirectoryError(f"{name} is a file; name the folder of config.json and weights that diffusers saves.")
    elif name in _AUTHORS_FILES:
        raise FileNotFoundError(
            f"autoencoder {name} is the file {_AUTHORS_FILES[name]}, which U-ViT's authors publish in "
            f"{_AUTHORS_FOLDER}. Its parameters have the names of CompVis, not those of diffusers, so that "
            "it cannot be read here. Name a folder or a model of the Hub that holds the same autoencoder in diffusers' "
            "format: `--codec PLACE`, or codec=ditzoo.media.load_codec(PLACE, scale=recipe.latent_scale) in Python."
        )
    elif not is_hub_id(name):
        raise FileNotFoundError(
            f"there is no folder {name}, and it is no model of the Hub, whose ids read owner/name; give one of the "
            "two, such as 'stabilityai/sd-vae-ft-ema'."
        )


def _not_loaded(name: str, subfolder: str | None, error: Exception) -> str:
    reason = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".:")
    if Path(name).is_dir():
        return f"the autoencoder in {Path(name, subfolder or '')} cannot be read ({reason}). Fetch or save it again."
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        mend = "HF_HUB_OFFLINE is set, so that nothing is fetched: unset it,"
    else:
        mend = f"It could not be fetched ({reason}): check its name and the network,"
    whole, fetch = name, f"`hf download {name} --local-dir FOLDER` fills one"
    if subfolder is not None:
        whole = f"{name}/{subfolder}"
        fetch = f"`hf download {name} --include '{subfolder}/*' --local-dir FOLDER` fills FOLDER/{subfolder}"
    return (
        f"autoencoder {whole} is not on this machine. {mend} or give a local folder in its place; on a machine with a "
        f"network {fetch}."
    )


def _disagreement(name: str, kind: str, given: tuple[float, float], own: tuple[float, float]) -> str:
    """What to make of a recipe that differs from the autoencoder's configuration."""
    text = (
        f"the recipe's latent scale {given[0]:g} and shift {given[1]:g} are used, although {name} names scale "
        f"{own[0]:g} and shift {own[1]:g} in its configuration."
    )
    if kind == _TINY:
        text += " Tiny autoencoders give latents that are scaled already, so theirs is mostly right: scale=None."
    return text


def _agree(given: float, own: float) -> bool:
    return math.isclose(given, own, rel_tol=1e-6, abs_tol=1e-9)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_images(images: Tensor, channels: int, multiple: int) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images must be floats in [-1, 1], got {images.dtype}; for bytes: images / 127.5 - 1.")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != channels or shape[2] % multiple or shape[3] % multiple:
        sides = f", with H and W divisible by {multiple}" if multiple > 1 else ""
        raise ValueError(f"images must be (B, {channels}, H, W){sides}; got {shape}.")


def _check_latents(latents: Tensor, codec: Codec) -> None:
    if not latents.is_floating_point():
        raise TypeError(f"latents must be floats, got {latents.dtype}.")
    if latents.ndim != 4 or latents.shape[1] != codec.latent_channels:
        raise ValueError(
            f"{codec.name} decodes (B, {codec.latent_channels}, h, w), got {tuple(latents.shape)}; of a learned "
            "variance, which doubles a model's channels, keep the first half."
        )


def _check_noise(noise: Tensor | None, shape: tuple[int, ...]) -> None:
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"noise must have the shape of the latents, {shape}; got {tuple(noise.shape)}.")
