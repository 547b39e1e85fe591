"""Every image is encoded once, whatever stops the job and however many processes share it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file

from ditzoo.data import Encoded, LatentCache, TensorSource, encode, latents
from ditzoo.media import LatentCodec
from tests.data.latents import Squares, ToyCodec, made
from tests.media.test_codec import needs_diffusers, small_kl


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_on_disk(tmp_path):
    squares = Squares()
    assert encode(squares, ToyCodec(), tmp_path, shard_size=4, batch_size=3) == Encoded(10, 0, ())
    assert sorted(files(tmp_path)) == ["manifest.json", *(f"shard-00000{k}.safetensors" for k in range(3))]
    assert squares.seen == list(range(10))
    manifest = LatentCache(tmp_path).manifest
    assert (manifest.codec, manifest.encoder_hash) == ("toys/toy", "ab" * 32)
    assert (manifest.latent_scale, manifest.latent_shift) == (0.5, 0.25)
    assert (manifest.image_shape, manifest.latent_shape, manifest.moments_shape) == ((1, 8, 8), (2, 4, 4), (2, 4, 4, 4))
    assert (manifest.source_name, manifest.source_fingerprint) == ("squares", "squares")


def test_the_files_do_not_depend_on_batches_processes_and_workers(tmp_path):
    made(tmp_path / "a", flip=True)
    made(tmp_path / "b", flip=True, batch_size=1)
    made(tmp_path / "c", flip=True, num_workers=2)
    results = [encode(Squares(), ToyCodec(), tmp_path / "d", shard_size=4, process=(rank, 2)) for rank in (1, 0)]
    assert results == [Encoded(4, 6, ()), Encoded(6, 0, ())]
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c") == files(tmp_path / "d")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_are_rounded_to_the_dtype_and_come_back_as_float32(tmp_path, dtype):
    squares = Squares()
    squares.x *= 0.9
    encode(squares, ToyCodec(), tmp_path, flip=False, dtype=dtype)
    exact = ToyCodec().posterior(squares.x).mean
    latents = LatentCache(tmp_path, sample_posterior=False).load(range(10), range(10), 0).x
    assert latents.dtype == torch.float32
    assert torch.equal(latents, exact.to(getattr(torch, dtype)).float())
    assert not torch.equal(latents, exact)


class Stopped(ToyCodec):
    """Is stopped at a certain batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def posterior(self, images):
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        return super().posterior(images)


@pytest.mark.parametrize("batches", range(0, 5))
def test_a_stopped_job_goes_on_with_the_missing_files(tmp_path, batches):
    made(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        made_by(Stopped(batches), Squares(), tmp_path / "cache")
    there = sorted(path.name for path in (tmp_path / "cache").glob("shard*"))
    assert len(there) == batches // 2  # two batches a file
    squares = Squares()
    encoded = made_by(ToyCodec(), squares, tmp_path / "cache")
    assert encoded == Encoded(10 - 4 * len(there), 0, ())
    assert squares.seen == list(range(4 * len(there), 10))
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
    assert made_by(ToyCodec(), Squares(), tmp_path / "cache") == Encoded(0, 0, ())


def made_by(codec, source, folder, **options):
    return encode(source, codec, folder, flip=False, **{"shard_size": 4, "batch_size": 3, **options})


def be_killed(folder):
    """Make a cache, and die with the second file half written."""

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if '"number": 1' in metadata["ditzoo"]:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    latents.save_file = half
    made(folder)


def test_a_job_that_was_killed_while_it_wrote(tmp_path):
    made(tmp_path / "whole")
    # A fork: nothing is imported again, and the patch stays in the child.
    process = multiprocessing.get_context("fork").Process(target=be_killed, args=(tmp_path / "cache",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    names = set(os.listdir(tmp_path / "cache"))
    assert names > {"manifest.json", "shard-000000.safetensors"}
    assert len(names) == 3  # the last has a temporary name
    squares = Squares()
    assert made_by(ToyCodec(), squares, tmp_path / "cache") == Encoded(6, 0, ())
    assert squares.seen == list(range(4, 10))
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_damaged_files_are_made_again(tmp_path):
    before = files(made(tmp_path).path)
    (tmp_path / "shard-000001.safetensors").write_bytes(before["shard-000001.safetensors"][:-1])
    encoded = made_by(ToyCodec(), Squares(), tmp_path)
    assert encoded.images == 4
    assert len(encoded.problems) == 1
    assert "shard-000001.safetensors is damaged (" in encoded.problems[0]
    assert encoded.problems[0].endswith("). It is made again.")
    assert files(tmp_path) == before


def test_unreadable_images_are_told_whichever_run_met_them(tmp_path):
    message = ("square 5 is torn",)
    first = made_by(ToyCodec(), Squares(unreadable=(5,)), tmp_path, process=(1, 2))
    assert first == Encoded(4, 6, message)
    assert made_by(ToyCodec(), Squares(), tmp_path).problems == message
    assert LatentCache(tmp_path).unreadable == message


def test_a_resumed_job_keeps_the_size_of_its_files(tmp_path):
    made(tmp_path)
    assert made_by(ToyCodec(), Squares(), tmp_path, shard_size=None) == Encoded(0, 0, ())
    encode(Squares(), ToyCodec(), tmp_path / "new")
    assert LatentCache(tmp_path / "new").manifest.shard_size == 1024


def test_progress(tmp_path):
    steps = []
    made_by(ToyCodec(), Squares(), tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 10), (4, 10), (7, 10), (8, 10), (10, 10)]
    (tmp_path / "shard-000002.safetensors").unlink()
    made_by(ToyCodec(), Squares(), tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert steps[5:] == [(2, 2)]


# What is refused.


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_unreadable_images(tmp_path, num_workers):
    """They are counted over all workers."""
    text = r"2 files of squares cannot be read, more than max_unreadable \(1\); the last: square 5 is torn square 7"
    with pytest.raises(ValueError, match=text):
        made_by(ToyCodec(), Squares(unreadable=(5, 7)), tmp_path, num_workers=num_workers)


def test_the_codec_of_another_encoder_scale_or_source(tmp_path):
    made(tmp_path)
    other = ToyCodec()
    other.encoder_hash, other.scale = "cd" * 32, 1.0
    text = (
        rf'holds other latents: encoder_hash was "{"ab" * 32}", is "{"cd" * 32}"; latent_scale was 0.5, is 1.0\. Give'
    )
    with pytest.raises(ValueError, match=text):
        made_by(other, Squares(), tmp_path)
    with pytest.raises(ValueError, match='source_fingerprint was "squares", is "others"'):
        made_by(ToyCodec(), Squares(fingerprint="others"), tmp_path)
    with pytest.raises(ValueError, match="shard_size was 4, is 5"):
        made_by(ToyCodec(), Squares(), tmp_path, shard_size=5)


def test_a_job_goes_on_where_images_and_codec_have_other_names(tmp_path):
    made(tmp_path)
    squares = Squares()
    squares.name = "squares in another place"
    assert made_by(ToyCodec(), squares, tmp_path, codec_name="/copy") == Encoded(0, 0, ())
    assert (LatentCache(tmp_path).manifest.source_name, LatentCache(tmp_path).manifest.codec) == ("squares", "toys/toy")


def test_two_autoencoders_of_one_name(tmp_path):
    needs_diffusers()
    images = TensorSource(torch.zeros(2, 3, 8, 8), None, fingerprint="black")
    first, second = (LatentCodec(small_kl(scaling_factor=1.0), scale=1.0, name="same") for _ in range(2))
    encode(images, first, tmp_path)
    with pytest.raises(ValueError, match=r'holds other latents: encoder_hash was "[0-9a-f]{64}", is "'):
        encode(images, second, tmp_path)


def test_sources_that_cannot_be_encoded(tmp_path):
    squares = Squares()
    squares.flip = True
    with pytest.raises(ValueError, match="squares flips images at random; give it flip=False"):
        made_by(ToyCodec(), squares, tmp_path)
    with pytest.raises(ValueError, match=r"squares has no fingerprint.* TensorSource\(fingerprint=\.\.\.\)"):
        made_by(ToyCodec(), Squares(fingerprint=""), tmp_path)
    for shape in ((3, 8, 8), (1, 7, 8), (1, 8, 7)):
        wrong = TensorSource(torch.zeros(2, *shape), None, name="wrong", fingerprint="wrong")
        size = "x".join(map(str, shape))
        text = f"toys/toy encodes images of 1 channels with sides divisible by 2, those of wrong are {size}; choose"
        with pytest.raises(ValueError, match=text):
            made_by(ToyCodec(), wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cache holds latents already; name the images"):
        made_by(ToyCodec(), made(tmp_path / "cache"), tmp_path / "again")


def test_images_of_several_sizes(tmp_path):
    squares = Squares()
    squares.shape = (1, 8, 4)
    with pytest.raises(
        ValueError, match=r"images 0 to 2 of squares are \(1, 8, 8\), the first \(1, 8, 4\); a cache has"
    ):
        made_by(ToyCodec(), squares, tmp_path)


def test_labels_out_of_range(tmp_path):
    squares = Squares()
    squares.y = squares.y - 1
    with pytest.raises(ValueError, match="labels of squares must be 0 to 2, got -1 to 1"):
        made_by(ToyCodec(), squares, tmp_path)
    squares.y = None
    with pytest.raises(ValueError, match="labels of squares must be 0 to 2, got none"):
        made_by(ToyCodec(), squares, tmp_path / "new")


def test_latents_that_are_no_numbers(tmp_path):
    squares = Squares()
    squares.x[7] = float("nan")
    text = "latents of image 7 of squares are NaN or infinite; let the autoencoder compute in float32 or bfloat16"
    with pytest.raises(FloatingPointError, match=text):
        made_by(ToyCodec(), squares, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("shard*")) == ["shard-000000.safetensors"]


def test_latents_that_do_not_fit_float16(tmp_path):
    squares = Squares()
    squares.x[7] = 5e4
    with pytest.raises(
        FloatingPointError, match=r"image 7 of squares are too large for float16, up to 1e\+05; use float"
    ):
        made_by(ToyCodec(), squares, tmp_path, dtype="float16")


def test_too_little_disk_is_told_before_anything_is_encoded(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 10 * 4 * 16 * 4 - 1))
    squares = Squares()
    with pytest.raises(OSError, match=r"the latents need 0\.0 GB, and .* has 0\.0 GB free; free some space"):
        encode(squares, ToyCodec(), tmp_path)
    assert squares.seen == []
    encode(squares, ToyCodec(), tmp_path / "new", flip=False)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"process": (2, 2)}, {"process": (-1, 2)}])
def test_impossible_numbers(tmp_path, options):
    with pytest.raises(ValueError, match=r"batch_size \(\d\) must be 1 or more, and process \(.*\) one of"):
        made_by(ToyCodec(), Squares(), tmp_path, **options)
