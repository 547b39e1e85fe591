"""What tells a run that goes wrong."""

import math
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.fsdp import fully_shard

from ditzoo.train.guards import SpikeWatch, gradient_norms, non_finite_report
from tests.zoo import TINY, inputs, lively


def with_gradients(name: str = "dit_ti_2"):
    model = lively(name)
    model(*inputs(model)).square().mean().backward()
    return model


def test_a_spike_is_told_from_the_median_of_the_losses_before():
    watch = SpikeWatch(3.0, losses=[1.0] * 25 + [2.0] * 26)
    assert watch.check(5.9) is None
    # The median stays 2 whatever the last loss was; of a mean the same could not be said.
    assert watch.check(400.0) == "the loss is 400, 200.0 times the median 2 of the 52 steps before"
    assert watch.check(6.5) == "the loss is 6.5, 3.2 times the median 2 of the 53 steps before"


def test_only_the_last_hundred_losses_count():
    watch = SpikeWatch(2.0)
    for _ in range(100):
        watch.check(10.0)
    for _ in range(51):
        watch.check(1.0)
    assert watch.check(3.0) is not None
    watch = SpikeWatch(2.0, losses=[10.0] * 100)
    assert watch.check(3.0) is None


def test_the_first_losses_are_no_spikes_and_infinity_reports_none():
    watch = SpikeWatch(2.0)
    assert [watch.check(loss) for loss in [1.0] * 18 + [9.0, 9.0]] == [None] * 20
    assert watch.check(9.0) is not None
    never = SpikeWatch(math.inf, losses=[1.0] * 50)
    assert never.check(1e30) is None


def test_losses_that_are_not_finite_are_left_out_of_the_median():
    watch = SpikeWatch(2.0, losses=[1.0] * 20)
    for _ in range(200):
        assert watch.check(math.nan) is None
    assert "median 1 of the 20 steps" in str(watch.check(3.0))


@pytest.mark.parametrize("factor", [1.0, 0.0, -2.0, math.nan])
def test_a_factor_that_would_call_everything_a_spike_is_refused(factor):
    with pytest.raises(ValueError, match=rf"spike_factor must be above 1, got {factor}"):
        SpikeWatch(factor)


@pytest.mark.parametrize("name", TINY)
def test_the_norms_of_all_parts_make_up_that_of_the_model(name):
    model = with_gradients(name)
    norms = gradient_norms(model)
    assert set(model.block_names()) <= set(norms)
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert math.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(whole.item(), rel=1e-5)
    block = model.get_submodule(model.block_names()[0])
    own = torch.nn.utils.get_total_norm([p.grad for p in block.parameters() if p.grad is not None])
    assert norms[model.block_names()[0]] == pytest.approx(own.item(), rel=1e-5)


def norms_in_shards(rank: int, folder: Path) -> None:
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = lively("dit_ti_2")
    for name in model.block_names():
        fully_shard(model.get_submodule(name))
    fully_shard(model)
    model(*inputs(model)).square().mean().backward()
    torch.save(gradient_norms(model), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow  # two processes
def test_the_norms_of_sharded_gradients_are_those_of_the_whole(tmp_path):
    multiprocessing.spawn(norms_in_shards, (tmp_path,), nprocs=2)
    expected = gradient_norms(with_gradients())
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-5)


def report(model, **changes):
    facts = {
        "step": 7,
        "seen": 1224,
        "terms": {"loss": 0.5, "loss_masked": 0.25},
        "learning_rate": 1e-3,
        "newest_checkpoint": Path("runs/a/checkpoints/000001000"),
    }
    return non_finite_report(model, **{**facts, **changes})


def test_the_report_names_the_block_whose_gradient_is_not_finite():
    model = with_gradients()
    model.blocks[2].mlp.fc1.weight.grad[0, 0] = math.inf
    norms = gradient_norms(model)
    lines = report(model).splitlines()
    assert lines[0] == "Step 7 (1,224 images seen): the gradient is not finite in blocks.2."
    assert lines[1] == "Loss: loss 0.5, loss_masked 0.25. Learning rate: 0.001."
    assert "  blocks.2: inf" in lines
    assert f"  blocks.1: {norms['blocks.1']:.6g}" in lines
    assert "The newest checkpoint before it: runs/a/checkpoints/000001000." in lines
    assert "learning_rate" in lines[-1]
    assert "on_non_finite=skip" in lines[-1]


def test_the_report_names_the_term_of_the_loss_that_is_not_finite():
    model = lively("dit_ti_2")
    text = report(model, terms={"loss": math.nan, "loss_full": 0.5, "loss_masked": math.nan}, newest_checkpoint=None)
    assert "the loss is not finite: loss is nan, loss_masked is nan.\n" in text
    assert "There is no gradient" in text
    assert "There is no checkpoint before it." in text
    assert "loss_full is" not in text
