"""One process or several: the same steps, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ditzoo.models import DiffusionTransformer
from ditzoo.train.checkpoints import Checkpoints, load_state
from ditzoo.train.devices import make_devices
from ditzoo.train.state import check_optimizer, full_state
from tests.train.few_steps import OPTIMIZERS, ROOT, Training, in_processes, options, timm_optimizer
from tests.zoo import TINY

#: Of timm's optimisers some, with state of different kinds: counters in groups, factored moments, several averages.
RESUMABLE = [*OPTIMIZERS, "adafactor", "lion", "radam", "adopt", "mars", "laprop", "lookahead_adamw"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name)


def one_process(name: str, **changes) -> Training:
    opts = options(**changes)
    return Training(make_devices(opts, "cpu"), name, opts)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes did, with a checkpoint of one process to go on from."""
    folder = tmp_path_factory.mktemp("both")
    one = one_process("mdtv2_ti_2", ema_profiles=(0.1,))
    one.run(0, 1)
    one.save(folder / "one", 1)
    one.run(1, 2)
    return folder, in_processes("both", folder), one


def assert_near(there: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert there.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Where a gradient is next to nothing, AdamW's first steps turn the order of a sum into a sign.
        difference = (there[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert difference < 1e-2, name


def test_two_processes_of_half_a_batch_are_one_of_a_whole(both) -> None:
    folder, result, _ = both
    one = one_process("dit_ti_2")
    assert result["replicated"] == pytest.approx(one.run(0, 2), rel=1e-5)
    assert result["norm"] == pytest.approx(one.norm.item(), rel=1e-4)
    state = load_state(Checkpoints(folder / "replicated").newest())
    assert_near(state.tensors, one.tensors())
    resumed = one_process("dit_ti_2")
    assert resumed.resume(folder / "replicated") == 2
    assert resumed.run(2, 3) == pytest.approx(one.run(2, 3), rel=1e-3)


def test_sharded_weights_are_shards_and_train_alike(both) -> None:
    _, result, one = both
    assert result["kinds"] == result["average kinds"] == ["DTensor"]
    total = sum(weight.numel() for weight in one.weights.values())
    assert 0.45 * total < result["local numel"] < 0.55 * total
    assert result["class"] == "MDTv2"
    again = one_process("mdtv2_ti_2", ema_profiles=(0.1,))
    assert result["sharded"] == pytest.approx(again.run(0, 2), rel=1e-5)


def test_a_sharded_checkpoint_loads_into_a_plain_model_and_one_process_goes_on(both) -> None:
    folder, _, one = both
    checkpoint = Checkpoints(folder / "sharded").newest()
    assert_near(load_state(checkpoint).tensors, one.tensors())
    model = DiffusionTransformer.from_pretrained(checkpoint.path)
    assert {type(weight) for weight in model.parameters()} == {torch.nn.Parameter}
    resumed = one_process("mdtv2_ti_2", ema_profiles=(0.1,))
    assert resumed.resume(folder / "sharded") == 2
    assert resumed.run(2, 3) == pytest.approx(one.run(2, 3), rel=1e-3)


def test_sharded_processes_go_on_from_one(both) -> None:
    _, result, _ = both
    again = one_process("mdtv2_ti_2", ema_profiles=(0.1,))
    assert result["resumed"] == pytest.approx(again.run(0, 2)[1:], rel=1e-5)


def test_processes_tell_each_other(both) -> None:
    _, result, _ = both
    assert (result["flags"], result["mean"], result["told"]) == (0b11, [1.5, 4.0], "from 0")


@pytest.mark.slow
def test_every_family_trains_sharded(tmp_path) -> None:
    result = in_processes("families", tmp_path)
    assert len(result) == 2 * len(TINY)
    for case, losses in result.items():
        name, precision = case.split()
        expected = one_process(name, precision=precision).run(0, 2)
        assert losses == pytest.approx(expected, rel=1e-5 if precision == "float32" else 1e-2), case


@pytest.mark.slow
def test_optimisers_of_timm_train_and_resume_sharded(tmp_path) -> None:
    for name, (whole, resumed) in in_processes("optimizers", tmp_path).items():
        assert resumed == whole, name
        opts = options()
        one = Training(make_devices(opts, "cpu"), "dit_ti_2", opts, timm_optimizer(name))
        assert whole == pytest.approx(one.run(0, 4), rel=1e-4), name


@pytest.mark.slow
def test_three_processes_share_weights_of_any_shape_and_torchrun_starts_them(tmp_path) -> None:
    """Some weights have fewer rows than there are processes: there a shard is empty."""
    task = [str(ROOT / "tests" / "train" / "few_steps.py"), "uneven", str(tmp_path)]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", *task]
    subprocess.run(
        run, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=True, timeout=300
    )
    result = json.loads((tmp_path / "uneven.json").read_text())
    opts = options(batch_size=6)
    assert result == pytest.approx(Training(make_devices(opts, "cpu"), "uvit_ti_2", opts).run(0, 2), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMABLE)
def test_optimisers_of_timm_resume_bit_for_bit(name: str, tmp_path) -> None:
    opts = options()
    devices, make = make_devices(opts, "cpu"), timm_optimizer(name)
    whole, first, second = (Training(devices, "dit_ti_2", opts, make) for _ in range(3))
    expected, losses = whole.run(0, 4), first.run(0, 2)
    first.save(tmp_path, 2)
    second.resume(tmp_path)
    assert losses + second.run(2, 4) == expected
    there, wanted = second.tensors(), whole.tensors()
    assert all(torch.equal(there[key], wanted[key]) for key in wanted)


def test_an_optimiser_that_no_checkpoint_can_hold_is_known_after_a_step() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for weight in group["params"]:
                    self.state[weight]["plan"] = object()

    opts = options()
    training = Training(make_devices(opts, "cpu"), "dit_ti_2", opts, lambda weights: Odd(weights, lr=0.1))
    check_optimizer(training.weights, training.optimizer)
    training.run(0, 1)
    with pytest.raises(TypeError, match=r"Odd keeps a object under 'plan', which no checkpoint can hold; train with"):
        check_optimizer(training.weights, training.optimizer)


def test_one_process_needs_no_accelerate(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    devices = make_devices(options(), "cpu")
    devices.barrier()
    assert (devices.any(5), devices.broadcast("a"), devices.mean(torch.tensor([3.0])).item()) == (5, "a", 3.0)
    assert (devices.is_main, devices.device.type) == (True, "cpu")
    devices.close()


def test_a_step_can_be_left_out() -> None:
    training = one_process("dit_ti_2")
    training.run(0, 1)
    before = training.tensors()
    training.devices.backward(training.network(range(8)))
    training.devices.skip(training.optimizer)
    assert all(weight.grad is None for weight in training.weights.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in training.tensors().items())


def test_bfloat16_runs_products_in_it_and_keeps_weights_and_losses() -> None:
    training = one_process("dit_ti_2", precision="bfloat16")
    kinds = []
    training.model.blocks[0].attn.qkv.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    losses = training.run(0, 1)
    assert kinds == [torch.bfloat16]
    assert {weight.dtype for weight in training.weights.values()} == {torch.float32}
    assert losses == pytest.approx(one_process("dit_ti_2").run(0, 1), rel=1e-2)
    assert losses != one_process("dit_ti_2").run(0, 1)


def refuse(monkeypatch, message: str, environment: dict[str, str] | None = None, **changes) -> None:
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        make_devices(options(**changes), "cpu")


def test_batches_that_processes_cannot_share_are_refused(monkeypatch) -> None:
    several = {"WORLD_SIZE": "3"}
    refuse(monkeypatch, r"batch_size 8 cannot be divided among 3 processes; use 6 or 9\.", several)
    message = r"batch_size 8 cannot be divided among 3 processes with 4 micro-batches each; use 12\."
    refuse(monkeypatch, message, several, accumulation=4)
    message = r"num_images 100 leaves a last batch of 4, which cannot be divided among 3 processes; use 99 or 102\."
    refuse(monkeypatch, message, several, num_images=100, batch_size=6)
    monkeypatch.delenv("WORLD_SIZE")
    message = (
        r"num_images 17 leaves a last batch of 1, which cannot be divided among 1 process with 2 micro-batches each"
    )
    refuse(monkeypatch, message, num_images=17, accumulation=2)


def test_float16_on_the_cpu_is_refused(monkeypatch) -> None:
    refuse(monkeypatch, r"precision 'float16' is for GPUs; on the CPU use 'bfloat16'", precision="float16")


def test_sharding_needs_several_processes(monkeypatch) -> None:
    refuse(monkeypatch, r"fsdp shards weights over several processes and there is one; start several", fsdp=True)
    refuse(monkeypatch, "and there is one", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported; shard with FSDP2: fsdp=True"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "asks for version 1 of FSDP; set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true: weights are not moved to the CPU"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "set grad_checkpointing of the run instead"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "MIXED_PRECISION=fp16 and the run has precision='float32'; set it in"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "STEPS=4 and the run has accumulation=1"),
    ],
)
def test_settings_of_accelerate_that_have_no_effect_are_refused(monkeypatch, environment, message: str) -> None:
    refuse(monkeypatch, message, environment)


def test_settings_of_accelerate_that_agree_are_taken(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    devices = make_devices(options(precision="bfloat16", accumulation=2), "cpu")
    assert (devices.world, devices.precision) == (1, "bfloat16")


def test_several_processes_each_take_their_own_device(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"device 'cuda:1' is one device and there are 2 processes; give 'cpu'"):
        make_devices(options(), "cuda:1")


def test_several_processes_need_accelerate(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'several processes needs accelerate: pip install "ditzoo\[train\]"'):
        make_devices(options(), "cpu")


def test_a_state_of_another_process_is_empty() -> None:
    training = one_process("dit_ti_2")
    state = full_state(training.weights, training.averages, training.optimizer, is_main=False)
    assert (state.tensors, state.optimizer) == ({}, {})
