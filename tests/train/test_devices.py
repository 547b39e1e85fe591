"""One process or several: the same steps, and what is refused."""

import json
import os
import subprocess
import sys
from itertools import islice

import pytest
import torch

from ditzoo.models import DiffusionTransformer
from ditzoo.train import Training, make_config, run
from ditzoo.train.checkpoints import Checkpoints, load_state
from ditzoo.train.devices import Devices, make_devices
from ditzoo.train.monitor import MetricsFile
from ditzoo.train.state import check_optimizer, full_state
from tests.train.few_steps import (
    OPTIMIZERS,
    ROOT,
    VARIANTS,
    betas,
    digits_source,
    go,
    in_processes,
    norms,
    options,
    resume,
    save,
    start,
    tensors,
    variant,
)
from tests.zoo import TINY

#: Of timm's optimisers some, with state of different kinds: counters in groups, factored moments, several averages.
RESUMABLE = [*OPTIMIZERS, "adafactor", "lion", "radam", "adopt", "mars", "laprop"]

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in LAUNCHER:
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes did, with a checkpoint of one process to go on from."""
    folder = tmp_path_factory.mktemp("both")
    one = start("mdtv2_ti_2", ema_profiles=(0.1,))
    losses = go(one, 1)
    save(one, folder / "one")
    losses += go(one, 1)
    return folder, in_processes("both", folder), one, losses


def assert_near(there: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert there.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Where a gradient is next to nothing, AdamW's first steps turn the order of a sum into a sign.
        difference = (there[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert difference < 1e-2, name


def test_two_processes_of_half_a_batch_are_one_of_a_whole(both) -> None:
    folder, result, _, _ = both
    one, resumed = start("dit_ti_2"), start("dit_ti_2")
    assert result["replicated"] == pytest.approx(go(one, 2), rel=1e-5)
    assert_near(load_state(Checkpoints(folder / "replicated").newest()).tensors, tensors(one))
    resume(resumed, folder / "replicated")
    assert go(resumed, 1) == pytest.approx(go(one, 1), rel=1e-3)


def test_sharded_weights_are_shards_and_train_alike(both) -> None:
    _, result, one, losses = both
    assert result["kinds"] == result["average kinds"] == result["optimizer kinds"] == ["DTensor"]
    total = sum(weight.numel() for weight in one.weights.values())
    assert 0.45 * total < result["local numel"] < 0.55 * total
    assert result["class"] == "MDTv2"
    assert result["sharded"] == pytest.approx(losses, rel=1e-5)


def test_an_optimiser_that_shards_do_not_fit_is_refused_at_the_first_step(both) -> None:
    _, result, _, _ = both
    assert result["refused"] == (
        "the optimizer Adafactor does not work on sharded weights; take another, such as 'adamw', or set fsdp=False."
    )


def test_a_sharded_checkpoint_loads_into_a_plain_model_and_one_process_goes_on(both) -> None:
    folder, _, one, _ = both
    checkpoint = Checkpoints(folder / "sharded").newest()
    assert_near(load_state(checkpoint).tensors, tensors(one))
    model = DiffusionTransformer.from_pretrained(checkpoint.path)
    assert {type(weight) for weight in model.parameters()} == {torch.nn.Parameter}
    resumed = start("mdtv2_ti_2", ema_profiles=(0.1,))
    resume(resumed, folder / "sharded")
    assert go(resumed, 1) == pytest.approx(go(one, 1), rel=1e-3)


def test_sharded_processes_go_on_from_one(both) -> None:
    _, result, _, losses = both
    assert result["resumed"] == pytest.approx(losses[1:], rel=1e-5)


def test_processes_tell_each_other(both) -> None:
    _, result, _, _ = both
    assert (result["flags"], result["mean"], result["told"]) == (0b11, [1.5, 4.0], "from 0")
    assert result["gathered"] == ["from 0", "from 1"]
    assert result["flags of another run"] == 0b11


@pytest.mark.slow
def test_every_family_trains_sharded(tmp_path) -> None:
    result = in_processes("families", tmp_path)
    assert len(result) == 2 * len(TINY)
    for case, losses in result.items():
        name, precision = case.split()
        expected = go(start(name, precision=precision), 2)
        assert losses == pytest.approx(expected, rel=1e-5 if precision == "float32" else 1e-2), case


@pytest.mark.slow
def test_adapters_frozen_parts_and_checkpointing_train_in_processes_as_in_one(tmp_path) -> None:
    """Under SGD, whose steps show the gradients' own precision."""
    result = in_processes("variants", tmp_path)
    assert len(result) == 2 * len(VARIANTS)
    for case, (losses, sums) in result.items():
        one = variant(case.partition(" ")[2])
        assert losses == pytest.approx(go(one, 3), rel=1e-6), case
        assert sums == pytest.approx(norms(one), rel=1e-5, abs=1e-6), case


@pytest.mark.slow
def test_float16_overflows_in_all_processes_where_it_does_in_one(tmp_path) -> None:
    for case, (updated, scale, same) in in_processes("overflow", tmp_path).items():
        assert (updated, scale, same) == ([True, False, True], 2.0**15, True), case


@pytest.mark.slow
def test_optimisers_of_timm_train_and_resume_sharded(tmp_path) -> None:
    for name, (whole, resumed) in in_processes("optimizers", tmp_path).items():
        assert resumed == whole, name
        one = start("dit_ti_2", optimizer=name, betas=betas(name), learning_rate=1e-3)
        assert whole == pytest.approx(go(one, 4), rel=1e-4), name


@pytest.mark.slow
def test_three_processes_share_weights_of_any_shape_and_torchrun_starts_them(tmp_path) -> None:
    """Some weights have fewer rows than there are processes: there a shard is empty."""
    task = [str(ROOT / "tests" / "train" / "few_steps.py"), "uneven", str(tmp_path)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", *task]
    subprocess.run(
        launch, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=True, timeout=300
    )
    result = json.loads((tmp_path / "uneven.json").read_text())
    assert result == pytest.approx(go(start("uvit_ti_2", batch_size=6), 2), rel=1e-5)


@pytest.mark.slow
def test_accelerate_launch_starts_a_sharded_run_that_one_process_goes_on_with(tmp_path) -> None:
    """FSDP2 is asked for by accelerate's settings alone."""
    config = {"model": "dit_ti_2", "batch_size": 16, "warmup_images": 0, "lr_schedule": "constant", "log_every": 16}
    config |= {"sample_every": 0, "checkpoint_every": 32, "device": "cpu"}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**config, "num_images": 64}))  # JSON is YAML
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--use_fsdp"),
        *("--fsdp_version=2", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
        *("-m", "ditzoo", "train", "--config", str(file), "--out", str(tmp_path / "run")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run(make_config({**config, "num_images": 128, "out": str(tmp_path / "run")}))
    run(make_config({**config, "num_images": 128, "out": str(tmp_path / "one")}))
    rows = [MetricsFile(tmp_path / name / "metrics.jsonl").rows("train") for name in ("run", "one")]
    assert [row["seen"] for row in rows[0]] == [row["seen"] for row in rows[1]] == list(range(16, 129, 16))
    for mine, theirs in zip(*rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    starts = MetricsFile(tmp_path / "run" / "metrics.jsonl").rows("start")
    assert [(row["seen"], row["processes"]) for row in starts] == [(0, 2), (64, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMABLE)
def test_optimisers_of_timm_resume_bit_for_bit(name: str, tmp_path) -> None:
    settings = {"optimizer": name, "betas": betas(name), "learning_rate": 1e-3}
    whole, first, second = (start("dit_ti_2", **settings) for _ in range(3))
    losses = go(first, 2)
    save(first, tmp_path)
    resume(second, tmp_path)
    assert losses + go(second, 2) == go(whole, 4)
    there, wanted = tensors(second), tensors(whole)
    assert there.keys() == wanted.keys()
    assert all(torch.equal(there[key], wanted[key]) for key in wanted)


def test_an_optimiser_that_no_checkpoint_can_hold_is_known_after_a_step() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for weight in group["params"]:
                    self.state[weight]["plan"] = object()

    training = start("dit_ti_2")
    training.optimizer = Odd([weight for weight in training.weights.values() if weight.requires_grad], lr=0.1)
    check_optimizer(training.weights, training.optimizer)
    go(training, 1)
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
    training = start("dit_ti_2")
    go(training, 1)
    before = tensors(training)
    for weight in training.weights.values():
        weight.grad = torch.ones_like(weight)
    training.devices.skip(training.optimizer)
    assert all(weight.grad is None for weight in training.weights.values() if weight.requires_grad)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(training).items())


def test_gradients_are_clipped_to_a_norm() -> None:
    training = start("dit_ti_2")
    weights = [weight for weight in training.weights.values() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    norm = training.devices.gradient_norm(training.optimizer, weights)
    assert norm.item() == pytest.approx(sum(weight.numel() for weight in weights) ** 0.5, rel=1e-5)
    training.devices.clip_gradients(weights, norm, 2.0)
    assert training.devices.gradient_norm(training.optimizer, weights).item() == pytest.approx(2.0, rel=1e-5)


def test_bfloat16_runs_products_in_it_and_keeps_weights_and_losses() -> None:
    training = start("dit_ti_2", precision="bfloat16")
    kinds = []
    training.model.blocks[0].attn.qkv.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    losses, exact = go(training, 1), go(start("dit_ti_2"), 1)
    assert kinds == [torch.bfloat16]
    assert {weight.dtype for weight in training.weights.values()} == {torch.float32}
    assert losses == pytest.approx(exact, rel=1e-2)
    assert losses != exact


def in_float16(**changes) -> Training:
    return start("dit_ti_2", Devices(device=torch.device("cpu"), precision="float16"), precision="float16", **changes)


def test_float16_leaves_out_steps_that_overflow_and_scales_less() -> None:
    training = in_float16()
    scales, updated, losses = [], [], []
    for step in islice(training.steps(digits_source(training.model)), 3):
        scales.append(training.devices.state_dict()["scale"])
        updated.append(step.updated)
        losses.append(step.terms["loss"])
    assert updated == [True, False, True]
    assert scales == [65536.0, 32768.0, 32768.0]
    assert losses[:2] == pytest.approx(go(start("dit_ti_2"), 2), rel=1e-3)
    resumed = in_float16().devices
    resumed.load_state_dict(json.loads(json.dumps(training.devices.state_dict())))
    assert resumed.state_dict() == training.devices.state_dict()


def test_float16_stops_where_gradients_stay_infinite_at_any_scale() -> None:
    training = in_float16(num_images=800)
    training.weights["final_layer.linear.weight"].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"(?s)Step 17 .*the gradient is not finite in final_layer\."):
        go(training, 100)
    assert training.devices.state_dict()["scale"] == 1.0
    # Left out as asked, steps do not scale further down, where there would be no way back.
    training = in_float16(num_images=800, on_non_finite="skip")
    training.weights["final_layer.linear.weight"].register_hook(lambda gradient: gradient * float("inf"))
    go(training, 18)
    assert training.devices.state_dict()["scale"] == 1.0


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
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported; shard with FSDP2, .*: fsdp=True"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "asks for version 1 of FSDP; set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true: weights are not moved to the CPU"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "set grad_checkpointing of the run instead"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "MIXED_PRECISION=fp16 and the run has precision='float32'; set it in"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "STEPS=4 and the run has accumulation=1"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "BACKEND=INDUCTOR and the run has compile=False; set it in the run",
        ),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "sharded over all processes; leave parallelism_config out"),
    ],
)
def test_settings_of_accelerate_that_have_no_effect_are_refused(monkeypatch, environment, message: str) -> None:
    refuse(monkeypatch, message, environment)


def test_settings_of_accelerate_that_agree_are_taken(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    devices = make_devices(options(precision="bfloat16", accumulation=2))
    assert (devices.world, devices.precision, devices.device.type) == (1, "bfloat16", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here .*; cpu always can"):
        make_devices(options(), device)


def test_processes_that_no_launcher_started_are_refused(monkeypatch) -> None:
    message = "WORLD_SIZE=2 in the environment comes without RANK, MASTER_ADDR, MASTER_PORT; start the processes with"
    refuse(monkeypatch, message, {"WORLD_SIZE": "2"})
    refuse(monkeypatch, "WORLD_SIZE='many' in the environment are to be numbers", {"WORLD_SIZE": "many"})


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
    training = start("dit_ti_2")
    state = full_state(training.weights, training.averages, training.optimizer, is_main=False)
    assert (state.tensors, state.optimizer) == ({}, {})
