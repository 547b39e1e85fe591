"""Kills a run again and again, and compares what comes of it with a run that nobody killed.

A program of its own: processes are forked from one that has imported everything and computed nothing, since torch's
autograd does not survive a fork. Called as `python -m tests.train.killing FOLDER NUMBER_OF_KILLS`; fails by assertion.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from ditzoo.train import checkpoints as checkpoints_module
from ditzoo.train import make_config
from ditzoo.train.checkpoints import Checkpoints
from ditzoo.train.monitor import MetricsFile
from ditzoo.train.runs import run

#: Images between two checkpoints, and of a step.
EVERY, BATCH = 16, 8
#: Times at which a checkpoint is half written, or a file has a temporary name, of about two checkpoints.
MOMENTS = 24


def settings(out, total):
    return make_config(
        {
            "out": str(out),
            "model": "mdtv2_ti_2",
            "model_options": {"depth": 4, "decode_layer": 2, "hidden_size": 16, "num_heads": 2},
            "num_images": total,
            "batch_size": BATCH,
            "flip": True,
            "log_every": 24,
            "sample_every": 0,
            "checkpoint_every": EVERY,
            "ema_profiles": "0.1",
        }
    )


def in_a_child(work):
    """Fork a process that does `work()`; its number."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """The exit code of a process, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_in_a_write(at):
    """Be killed in the `at`-th moment of this process at which a checkpoint is half written."""
    moments = 0

    def moment():
        nonlocal moments
        moments += 1
        if moments == at:
            os.kill(os.getpid(), signal.SIGKILL)

    write, rename = checkpoints_module.write_safetensors, os.replace

    def half_written(path, tensors):
        names = list(tensors)
        write(path, {name: tensors[name] for name in names[: len(names) // 2]})
        moment()
        write(path, tensors)

    def renamed(source, target):
        moment()
        rename(source, target)
        moment()

    checkpoints_module.write_safetensors = half_written
    os.replace = renamed


def newest(folder):
    checkpoint = Checkpoints(folder / "checkpoints").newest()
    return 0 if checkpoint is None else checkpoint.seen


def started(folder):
    """Images seen at each start of the run."""
    return [row["seen"] for row in MetricsFile(folder / "metrics.jsonl").rows("start")]


def outcome(folder, total):
    """What must be the same: weights, averages, optimiser, and the curve."""
    last = folder / "checkpoints" / f"{total:09d}"
    files = {name: (last / name).read_bytes() for name in ("model.safetensors", "training.safetensors")}
    files |= {path.name: path.read_bytes() for path in sorted((folder / "ema").iterdir())}
    rows = [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in MetricsFile(folder / "metrics.jsonl").rows("train")
    ]
    return files, rows


def main(folder, kills):
    whole, killed = folder / "whole", folder / "killed"
    total = EVERY * (2 * kills + 6)  # a life has a checkpoint or two, and the last kill needs a run to kill
    start = time.monotonic()
    assert ended(in_a_child(lambda: run(settings(whole, total)))) == 0
    interval = (time.monotonic() - start) * EVERY / total
    generator = random.Random(0)
    for number in range(kills):
        before, starts = newest(killed), started(killed)
        moment = generator.randrange(1, MOMENTS + 1) if number % 2 else None

        def work(moment=moment):
            if moment is not None:
                die_in_a_write(moment)
            run(settings(killed, total))

        pid = in_a_child(work)
        if moment is None:
            deadline = time.monotonic() + 60
            while number and started(killed) == starts:  # the first may die before it has a folder
                assert time.monotonic() < deadline, "the run does not start again"
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 3) * interval)
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        assert code == -signal.SIGKILL, code
        after = newest(killed)
        assert after >= before, "a checkpoint was lost"
        if (now := started(killed)) != starts:  # it may have been killed before it began
            assert now == [*starts, before], "the run did not go on from the newest checkpoint"
        print(f"kill {number + 1}: from {before} to {after} images of {total}", flush=True)
    assert ended(in_a_child(lambda: run(settings(killed, total)))) == 0
    left = [path.name for path in (killed / "checkpoints").iterdir()]
    files, rows = outcome(whole, total)
    files_killed, rows_killed = outcome(killed, total)
    assert rows == rows_killed, "the curve differs"
    assert files.keys() == files_killed.keys(), sorted(files_killed)
    for name, content in files.items():
        assert content == files_killed[name], f"{name} differs"
    assert all(name.isdecimal() for name in left), f"leftovers: {left}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
