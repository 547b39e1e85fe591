"""Checkpoints: whole or not there, which are kept, and what becomes of damaged ones."""

import errno
import json
import math
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import ditzoo
from ditzoo.train.checkpoints import PROGRESS, TRAINING_STATE, Checkpoints, load_state
from ditzoo.train.state import TrainingState, restore
from tests.train.few_steps import go, resume, save, start, tensors


def fill(folder: Path) -> dict[str, int]:
    (folder / "data").write_bytes(bytes(100))
    return {"step": 1}


def write(checkpoints: Checkpoints, *seen: int) -> None:
    for number in seen:
        checkpoints.write(number, fill, num_bytes=100)


def seen_of(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.seen for checkpoint in checkpoints.all()]


def test_there_are_none_before_the_first(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.all() == []
    assert checkpoints.newest() is None


def test_the_newest_few_are_kept(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    write(checkpoints, 100, 200, 300, 1_000_000_000, 2_000_000_000)  # longer names sort after shorter ones
    assert seen_of(checkpoints) == [1_000_000_000, 2_000_000_000]
    assert checkpoints.newest().path == tmp_path / "2000000000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000000000", "2000000000"]


def test_the_first_of_each_period_is_kept_for_ever(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=1000)
    write(checkpoints, *range(320, 3840, 320))
    # 1,280, 2,240 and 3,200 are the first at or after 1,000, 2,000 and 3,000.
    assert seen_of(checkpoints) == [1280, 2240, 3200, 3520]


@pytest.mark.parametrize(("name", "value"), [("keep_last", 0), ("keep_every", -5)])
def test_numbers_to_keep_are_checked(tmp_path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be 1 or more, got {value}"):
        Checkpoints(tmp_path, **{name: value})


def truncate(path: Path) -> None:
    (path / "data").write_bytes(bytes(99))


def lose_file(path: Path) -> None:
    (path / "data").unlink()


def lose_progress(path: Path) -> None:
    (path / PROGRESS).unlink()


def tear_progress(path: Path) -> None:
    text = (path / PROGRESS).read_text()
    (path / PROGRESS).write_text(text[: len(text) // 2])


def say_nothing(path: Path) -> None:
    (path / PROGRESS).write_text("{}")


def come_from_the_future(path: Path) -> None:
    (path / PROGRESS).write_text(json.dumps({**json.loads((path / PROGRESS).read_text()), "schema_version": 7}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "data has 99 bytes where 100 were written"),
        (lose_file, "No such file"),
        (lose_progress, "No such file"),
        (tear_progress, "is no JSON"),
        (say_nothing, "training.json names no files"),
        (come_from_the_future, "schema_version 7, and this version of ditzoo reads 1"),
    ],
)
def test_damaged_ones_are_passed_over_with_a_warning(tmp_path, damage, reason: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 100, 200)
    damage(tmp_path / "000000200")
    with pytest.warns(UserWarning, match=rf"000000200 is no whole checkpoint and is passed over: .*{reason}"):
        assert checkpoints.newest().seen == 100
    with pytest.warns(UserWarning, match="passed over"):
        write(checkpoints, 200)  # training comes there again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen_of(checkpoints) == [100, 200]


def test_what_killed_processes_leave_is_no_checkpoint_and_goes_with_the_next(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 100)
    half = tmp_path / ".000000200.partial-0123456789abcdef"
    half.mkdir()
    (half / "data").write_bytes(bytes(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen_of(checkpoints) == [100]
    write(checkpoints, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000100", "000000200"]


def test_links_are_removed_and_what_they_lead_to_stays(tmp_path) -> None:
    """As where a checkpoint was moved to another disk."""
    checkpoints = Checkpoints(tmp_path / "run", keep_last=1)
    write(checkpoints, 100)
    (tmp_path / "run" / "000000100").rename(tmp_path / "moved")
    (tmp_path / "run" / "000000100").symlink_to(tmp_path / "moved")
    assert checkpoints.newest().seen == 100
    write(checkpoints, 200)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["000000200"]
    assert (tmp_path / "moved" / "data").exists()


def test_space_is_looked_up_where_the_folder_will_be(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path / "not" / "yet")
    checkpoints.check_space(1)
    with pytest.raises(OSError, match=r"needs 1,000,000,000,004,000,000 bytes and .* free"):
        checkpoints.check_space(10**18)


def test_a_resumed_run_holds_no_file_of_the_checkpoint(saved) -> None:
    """It would keep the space of a checkpoint that has been removed."""
    _, checkpoint = saved
    state, training = load_state(checkpoint), start("dit_ti_2", ema_profiles=(0.1,))
    restore(state, training.weights, training.averages, training.optimizer)
    mapped = {tensor.untyped_storage().data_ptr() for tensor in state.tensors.values()}
    kept = tensors_held(training)
    assert len(kept) > 100
    assert not any(tensor.untyped_storage().data_ptr() in mapped for tensor in kept)


def tensors_held(training):
    """The memory that training works on."""
    states = [value for state in training.optimizer.state.values() for value in state.values()]
    averages = [tensor for group in training.averages.tensors.values() for tensor in group.values()]
    return [each for each in [*training.weights.values(), *averages, *states] if isinstance(each, torch.Tensor)]


def test_a_write_that_fails_leaves_what_there_was(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    write(checkpoints, 100)

    def fail(folder: Path) -> dict[str, int]:
        fill(folder)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="000000200 cannot be written: Input/output error"):
        checkpoints.write(200, fail, num_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["000000100"]


def test_one_that_is_there_is_not_written_again(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 100)
    assert checkpoints.write(100, lambda folder: pytest.fail("written again"), num_bytes=1) == tmp_path / "000000100"


def test_space_is_checked_before_anything_is_written(tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    message = r"needs 7,000,000 bytes and .*checkpoints has 5,000,000 free, so nothing was written; free some space"
    with pytest.raises(OSError, match=message) as raised:
        checkpoints.write(100, lambda folder: pytest.fail("written"), num_bytes=3_000_000)
    assert raised.value.errno == errno.ENOSPC
    assert list((tmp_path / "checkpoints").iterdir()) == []
    checkpoints.write(100, fill, num_bytes=100)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two steps, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    training = start("dit_ti_2", ema_profiles=(0.1,))
    go(training, 2)
    save(training, folder)
    return training, Checkpoints(folder).newest()


def test_a_checkpoint_is_a_folder_of_the_averaged_model(saved) -> None:
    training, checkpoint = saved
    assert (checkpoint.seen, checkpoint.step, checkpoint.extra) == (16, 2, {})
    model = ditzoo.models.DiffusionTransformer.from_pretrained(checkpoint.path)
    assert type(model) is type(training.model)
    for name, weight in model.named_parameters():
        expected = training.averages.tensors["ema"].get(name, training.weights[name])
        assert torch.equal(weight, expected)
    assert not torch.equal(model.final_layer.linear.weight, training.weights["final_layer.linear.weight"])


def test_a_checkpoint_holds_all_and_the_averaged_weights_once(saved) -> None:
    training, checkpoint = saved
    there, expected = load_state(checkpoint).tensors, tensors(training)
    assert there.keys() == expected.keys()
    assert all(torch.equal(there[name], expected[name]) for name in expected)
    assert not any(
        name.startswith("average/ema/") for name in ditzoo.weights.load_state_dict(checkpoint.path / TRAINING_STATE)
    )
    sizes = json.loads((checkpoint.path / PROGRESS).read_text())["files"]
    assert sizes == {p.name: p.stat().st_size for p in checkpoint.path.iterdir() if p.name != PROGRESS}


def test_averages_that_the_model_does_not_show_are_written_besides(saved, tmp_path) -> None:
    """As with adapters, which are merged into the weights that are sampled from."""
    _, checkpoint = saved
    state = load_state(checkpoint)
    merged = ditzoo.create("dit_ti_2")
    Checkpoints(tmp_path).save(merged, state, seen=16, step=2, extra={"scale": 2.0})
    found = Checkpoints(tmp_path).newest()
    assert found.extra == {"scale": 2.0}
    again = load_state(found).tensors
    assert all(torch.equal(again[name], state.tensors[name]) for name in state.tensors)
    assert again.keys() == state.tensors.keys()


def test_the_space_asked_for_covers_what_is_written(saved, tmp_path, monkeypatch) -> None:
    training, checkpoint = saved
    asked: list[int] = []
    monkeypatch.setattr(Checkpoints, "check_space", lambda self, num_bytes: asked.append(num_bytes))
    with training.averaged_model() as model:
        Checkpoints(tmp_path).save(model, load_state(checkpoint), seen=16, step=2)
    written = sum(path.stat().st_size for path in (tmp_path / "000000016").iterdir())
    assert asked[0] <= written < 1.1 * asked[0] < asked[0] + 4 * 10**6


def test_extra_entries_must_be_json(saved, tmp_path) -> None:
    training, _ = saved
    state = TrainingState({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Checkpoints(tmp_path).save(training.model, state, seen=1, step=1, extra={"x": math.inf})
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path) -> None:
    first, second, whole = (start("mdtv2_ti_2", ema_profiles=(0.1,), ema_warmup=True) for _ in range(3))
    losses = go(first, 2)
    save(first, tmp_path)
    resume(second, tmp_path)
    assert losses + go(second, 2) == go(whole, 4)
    there, wanted = tensors(second), tensors(whole)
    assert there.keys() == wanted.keys()
    assert all(torch.equal(there[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("uvit_ti_2", {}, r"does not fit the model and options: it lacks .*; it has .* besides"),
        (
            "dit_ti_2",
            {"ema_profiles": (0.2,)},
            r"it lacks average/0.2/.*; it has average/0.1/.* besides\. Resume with the configuration",
        ),
        (
            "dit_ti_2",
            {"weight_decay": 0.1},
            "has 1 groups of parameters and the optimizer 2; resume with the optimizer and weight_decay",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, name: str, changes: dict, message: str) -> None:
    _, checkpoint = saved
    other = start(name, **{"ema_profiles": (0.1,), **changes})
    with pytest.raises(ValueError, match=message):
        restore(load_state(checkpoint), other.weights, other.averages, other.optimizer)


def test_frozen_weights_are_the_checkpoints_where_the_model_was_made_from_others(tmp_path) -> None:
    """As where a run starts from weights of another run that has gone on since."""

    def begin(scale: float):
        def change(model) -> None:
            for weight in model.blocks.parameters():
                weight.data.mul_(scale)
                weight.requires_grad_(False)

        return start("dit_ti_2", change=change)

    first, second = begin(1.0), begin(1.1)
    save(first, tmp_path)
    resume(second, tmp_path)
    with first.averaged_model() as wanted, second.averaged_model() as there:
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(there.state_dict()[name], tensor), name


def test_state_of_a_frozen_weight_is_refused(saved) -> None:
    _, checkpoint = saved
    other = start("dit_ti_2", ema_profiles=(0.1,))
    frozen = other.weights["final_layer.linear.bias"]
    rest = [weight for weight in other.weights.values() if weight.requires_grad and weight is not frozen]
    other.optimizer = torch.optim.AdamW(rest)
    message = r"has the optimizer's state of final_layer.linear.bias, which is not trained; resume with the model and"
    with pytest.raises(ValueError, match=message):
        restore(load_state(checkpoint), other.weights, other.averages, other.optimizer)
