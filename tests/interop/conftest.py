"""diffusers, imported once and by the tests that use it alone: it takes seconds."""

import pytest


@pytest.fixture(scope="session")
def diffusers():
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    return diffusers


@pytest.fixture
def vae(diffusers):
    """A tiny autoencoder of four channels; one pixel a latent."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=8
    ).eval()
