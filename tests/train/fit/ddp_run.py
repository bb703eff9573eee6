"""One process of `test_ddp.py`, started by torchrun: a few steps, then what this process has read and its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file

from deeplight.train.fit.loop import TrainingData, train
from tests.train.fit.fake_source import FakeSource, small_settings


def main() -> None:
    out = Path(sys.argv[1])
    source = FakeSource(sizes=((18, 16), (16, 20), (17, 17)), valid=0.7)
    held_out = FakeSource(sizes=((12, 12),))
    settings = small_settings(batch=3, localise_rate=0.1)
    model = train(settings, TrainingData(source, held_out, {}), out / "run", device="cpu")
    rank = dist.get_rank() if dist.is_initialized() else 0
    reads = [[index, *window.shape, window.row, window.col] for index, window in source.reads]
    (out / f"reads{rank}.json").write_text(json.dumps(reads))
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, out / f"weights{rank}.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
