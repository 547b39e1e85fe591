"""The features of the usual Frechet distance (FID): Inception-v3's pooled ones, through torch-fidelity.

Its weights are those of the TensorFlow graph that FID is defined by; torch-fidelity fetches them once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

INCEPTION_EXTRACTOR = "Inception-v3, torch-fidelity"
"""The name under which Frechet distances of these features are reported."""


def load_inception(device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) uint8, grey or in colours, of any size, to features (B, 2048), on the CPU.

    Raises:
        ImportError: torch-fidelity is not installed.
        OSError: its weights are not in the cache and cannot be fetched; the message says where they belong.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as inception
    except ImportError as error:
        raise ImportError('Inception features need torch-fidelity: pip install "ditzoo[eval]"') from error
    try:
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except (OSError, RuntimeError) as error:  # no network is a URLError, and damaged weights a RuntimeError
        url = inception.URL_INCEPTION_V3
        place = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"the weights of Inception-v3 cannot be loaded ({reason}). Without a network, fetch {url} elsewhere and "
            f"put it at {place}, or train without the Frechet distance (evaluate_every=0)."
        ) from error

    def features(images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        with torch.inference_mode():
            found: Tensor = network(images.to(device))[0]
        return found.cpu()

    return features
