"""What network and recipe the settings of a run and its data make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ditzoo import registry
from ditzoo.data.source import Source
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.train.config import RunConfig
from ditzoo.train.finetune import check_origin
from ditzoo.weights.folders import model_folder, read_config
from ditzoo.weights.hub import is_hub_name
from ditzoo.weights.sources import fetch_config_folder

_COLOURS = (1, 3)


def meta_network(config: RunConfig, options: Mapping[str, Any] | None = None) -> DiffusionTransformer:
    """The network that the settings name, without weights, on the meta device, with its `details`.

    Args:
        config: of whose `model_options` the constructor takes those that `options` does not replace.
        options: such as `network_options` makes for the data.

    Raises:
        ValueError: for an unknown name, a file that does not say of which network it is, or an option out of range.
        TypeError: for an option that the network does not have.
        OSError: for a folder that is not there, or a model of the Hub whose description cannot be fetched.
    """
    options = {**config.model_options, **(options or {})}
    name = config.model or config.from_weights
    assert name is not None, "the config fills one in"
    if config.model is None:
        check_origin(name)
        name = str(fetch_config_folder(name)) if is_hub_name(name) else name
    with torch.device("meta"):
        if config.model is not None or not Path(name).exists():
            return registry.create(name, **options)
        saved = read_config(model_folder(name))
        model_cls = registry.model_classes()[saved.network.model_cls]
        registry.check_option_names(name, model_cls, options)
        model = model_cls(**{**saved.network.options, **options})
    model.details = saved.details
    return model


def open_data(config: RunConfig, network: DiffusionTransformer) -> Source:
    """The data of a run. Images are cropped to the `size` of the settings, or else to what the network was made for.

    Raises:
        ValueError: where the settings name no data, or what does not fit them.
        OSError: for data that is not there.
    """
    from ditzoo.data.open import has_own_size, open_source

    spec = config.data
    if spec is None:
        raise ValueError(f"data is not given, and preset {config.preset!r} does not know where yours lies; set data.")
    own = has_own_size(spec)
    return open_source(
        spec,
        size=config.size if own or config.size else network.input_size,
        channels=network.in_channels if network.in_channels in _COLOURS and not own else None,
        flip=config.flip,
        max_unreadable=config.max_unreadable,
        buckets=config.bucket_sizes() or None,
        labels=config.num_classes != 0,
        sample_posterior=config.sample_posterior,
    )


def network_options(config: RunConfig, network: DiffusionTransformer, source: Source) -> dict[str, Any]:
    """Constructor options for `ditzoo.create`: those of the settings, and what the data asks for.

    The network gets the data's classes, channels and, where samples are square, side, unless the settings say
    otherwise.

    Args:
        config: the settings.
        network: from `meta_network`.
        source: the data.

    Raises:
        ValueError: where the settings and the data contradict each other; the message names the fields.
    """
    channels, height, width = source.shape
    options = dict(config.model_options)
    classes = options.get("num_classes", source.num_classes) if config.num_classes is None else config.num_classes
    if classes and not source.num_classes:
        raise ValueError(
            f"num_classes is {classes}, and {source.name} has no labels; set num_classes to 0, or give labelled data."
        )
    if 0 < classes < source.num_classes:
        raise ValueError(
            f"num_classes is {classes}, and {source.name} has {source.num_classes} classes; set it to "
            f"{source.num_classes} or more, or to 0 to train without labels."
        )
    if options.get("in_channels", channels) != channels:
        raise ValueError(
            f"model_options has in_channels={options['in_channels']}, and {source.name} has {channels} channels; leave "
            "it out."
        )
    if network.in_channels not in (*_COLOURS, channels) and "in_channels" not in options:
        raise ValueError(
            f"{config.model or config.from_weights} sees latents of {network.in_channels} channels, and {source.name} "
            f"has {channels}; give the latents that `ditzoo encode` makes, or train on pixels with in_channels="
            f"{channels} among model_options."
        )
    wanted = {"num_classes": classes, "in_channels": channels}
    if height == width:
        if options.get("input_size", height) != height:
            raise ValueError(
                f"model_options has input_size={options['input_size']}, and {source.name} has a side of {height}; "
                "leave it out, or set size."
            )
        wanted["input_size"] = height
    changed = {name: value for name, value in wanted.items() if getattr(network, name) != value}
    return {**options, **changed}


def run_recipe(config: RunConfig, model: DiffusionTransformer, *, latents: bool) -> Recipe:
    """How the run trains, and how its model is sampled: the model's recipe, changed by the settings.

    Mask ratio and learned variance are the network's. Licence and source are those of published weights, so they stay
    only where training starts from these.

    Args:
        config: the settings.
        model: with its `details`.
        latents: whether the data is latents, not pixels.

    Raises:
        ValueError: for a model without recipe, or settings that make none.
    """
    recipe = model.details.recipe
    if recipe is None:
        recipe = _whole_recipe(config)
    if not latents:
        recipe = replace(recipe, latent_codec=None, latent_scale=1.0, latent_shift=0.0)
    learned = model.out_channels > model.in_channels
    if learned and recipe.is_discrete and recipe.variance != "learned_range":
        recipe = replace(recipe, variance="learned_range", loss="hybrid")
    elif not learned and recipe.variance == "learned_range":
        recipe = replace(recipe, variance="fixed_large", loss="mse")
    ratio = model.config.get("mask_ratio")
    recipe = replace(recipe, mask_ratio=ratio, mask_ratio_spread=0.0 if ratio is None else model.mask_ratio_spread)
    if config.from_weights is None:
        recipe = replace(recipe, licence=None, source=None)
    recipe = config.apply_recipe(recipe)
    model.check_recipe(recipe)
    if recipe.mask_ratio is not None and not model.supports_masking:
        raise ValueError(
            f"recipe has mask_ratio={recipe.mask_ratio:g}, and {type(model).__name__} takes no masks; leave it out."
        )
    return recipe


def _whole_recipe(config: RunConfig) -> Recipe:
    """Of a model that was registered without one."""
    missing = [name for name in ("prediction", "schedule") if name not in config.recipe]
    if missing:
        raise ValueError(
            f"{config.model or config.from_weights} has no recipe of its own; set {' and '.join(missing)} in recipe."
        )
    return Recipe.from_dict({name: config.recipe[name] for name in ("prediction", "schedule")})
