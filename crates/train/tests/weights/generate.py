"""The files beside this one, as PyTorch writes them: `python generate.py` in this folder (made with torch 2.15.0).

All weights are of the same small network, value `i` of a tensor is `i / 4 - 1`, which every type of numbers holds exactly.
"""

from collections import OrderedDict

import torch

SHAPES = {"linear1.weight": (4, 3), "linear1.bias": (4,), "norm.running_var": (4,)}


def values(shape, dtype=torch.float32):
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) / 4 - 1).reshape(shape).to(dtype)


def state(prefix="", dtype=torch.float32):
    tensors = OrderedDict((prefix + name, values(shape, dtype)) for name, shape in SHAPES.items())
    tensors[prefix + "norm.num_batches_tracked"] = torch.tensor(7)
    return tensors


torch.save(state(), "plain.pth")
torch.save(state(), "old.pth", _use_new_zipfile_serialization=False)
torch.save(state(), "protocol4.pth", pickle_protocol=4)

mixed = state()
mixed["linear1.weight"] = torch.nn.Parameter(mixed["linear1.weight"].to(torch.float16))
mixed["linear1.bias"] = mixed["linear1.bias"].to(torch.bfloat16)
mixed["norm.running_var"] = mixed["norm.running_var"].double()
torch.save(mixed, "types.pth")

# Transposed, and cut out of a larger tensor.
apart = state()
apart["linear1.weight"] = values((4, 3)).t().contiguous().t()
apart["linear1.bias"] = torch.cat([torch.full((2,), 9.0), values((4,)), torch.full((3,), 9.0)])[2:6]
apart["norm.running_var"] = torch.stack([values((4,)), torch.full((4,), 9.0)], 1)[:, 0]
torch.save(apart, "apart.pth")
torch.save(apart, "apart-old.pth", _use_new_zipfile_serialization=False)

network = torch.nn.Linear(3, 4)
optimiser = torch.optim.Adam(network.parameters())
network(torch.ones(1, 3)).sum().backward()
optimiser.step()
torch.save(
    {
        "epoch": 3,
        "arch": "mlp",
        "best_acc1": torch.tensor([0.5]),
        "generator": torch.arange(8, dtype=torch.uint8),
        "history": [0.5, None, True, -1, 1 << 40, (1, "two"), {3}],
        "optimizer": optimiser.state_dict(),
        "state_dict": state("module._orig_mod."),
    },
    "wrapped.pth",
)
torch.save({"state_dict": state(), "state_dict_ema": state("module."), "epoch": 3}, "several.pth")
torch.save({"state_dict": state(), "class_weights": torch.ones(3)}, "beside.pth")
torch.save(network, "module.pth")
torch.save({"epoch": 3, "loss": 0.5}, "none.pth")
torch.save({"wide": torch.zeros(1).expand(1 << 20, 1 << 20)}, "expanded.pth")
torch.jit.save(torch.jit.script(network), "program.pth")
