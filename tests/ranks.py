"""A program for two ranks, started by `test_launch`: one epoch of samples, and one DDP gradient.

Writes OUT/rank-R.safetensors with the sample indices that the rank saw and, on rank 0, the
gradients averaged by DDP and those of one process on the whole batch.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.objective import Objective, ObjectiveConfig
from models.vae import ModelConfig, build
from pipeline import corrupt
from pipeline.index import open_dataset
from pipeline.loader import Loader
from train.launch import start_accelerator
from train.step import Draws, TrainStep, generator_for

BATCH = 12


def make_step() -> TrainStep:
    objective = Objective(ObjectiveConfig(equivariance=0.3), 24)
    return TrainStep(build(ModelConfig(), 0), objective, corrupt.NONE)


def join(parts: list[Draws]) -> Draws:
    fields = [torch.cat([getattr(p, name) for p in parts]) for name in Draws._fields[:-1]]
    return Draws(*fields, parts[0].corruption)


def main(data: Path, out: Path) -> None:
    accelerator = start_accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    split = open_dataset(data).split("train")
    loaders = [
        Loader(split, BATCH, 0, accelerator.device, "stream", r, world) for r in range(world)
    ]
    mine = list(loaders[rank].batches(0, len(split)))
    tensors = {"indices": torch.cat([torch.from_numpy(b.indices) for b in mine])}

    step = make_step()
    draws = [
        step.draw(BATCH // world, generator_for(0, 0, r, accelerator.device)) for r in range(world)
    ]
    wrapped = accelerator.prepare(step)
    accelerator.backward(wrapped(mine[0].images, draws[rank])["loss"])
    if rank == 0:
        single = make_step()
        images = torch.cat([next(iter(loader.batches(0, BATCH))).images for loader in loaders])
        single(images, join(draws))["loss"].backward()
        for name, parameter in step.named_parameters():
            tensors[f"ddp/{name}"] = parameter.grad.contiguous()
            tensors[f"single/{name}"] = single.get_parameter(name).grad.contiguous()
    save_file(tensors, out / f"rank-{rank}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
