"""Makes recipes.safetensors with PyTorch: what update rules and schedules do; the tests of crates/nn compare with it.

    pip install torch==2.15.0 torchvision==0.29.2 timm==1.0.31 safetensors
    python recipes.py

Two parameters of 3 values each (fewer than PyTorch's loops take at a time: these round otherwise) in f32 and f64, six steps, on one thread. Rates are
recorded before the step that they are for, as PyTorch computes them, one by one. `reconstruction` are the losses, in f64, of steps of SGD on the first
images of zoo.py's `conv_autoencoder`, all at once: the cross-entropy, and half the mean squared error between decoded images and images.
"""
import torch
import torch.nn.functional as F
import zoo
from pathlib import Path
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, SequentialLR

FOLDER = Path(__file__).parent
STEPS = 6
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

RULES = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "nesterov_decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "adamw_decay": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw_spared": lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0}], lr=0.01, weight_decay=0.1),
    "sgd_spared": lambda p: torch.optim.SGD([{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0}], lr=0.1, momentum=0.9, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
}
# The largest norm of both parameters' gradients together: that of 6 normal numbers is about 2.4.
CLIPPED = {"sgd_clipped": ("sgd", 1.0), "adamw_clipped": ("adamw_decay", 1.0), "sgd_unclipped": ("sgd", 1000.0)}


def optimisers(tensors):
    for dtype, kind in [(torch.float32, "f32"), (torch.float64, "f64")]:
        torch.manual_seed(20240203)
        start = torch.randn(2, 3).to(dtype)
        gradients = torch.randn(STEPS, 2, 3).to(dtype)
        tensors[f"{kind}.start"], tensors[f"{kind}.gradients"] = start, gradients
        for name, (rule, most) in ({rule: (rule, None) for rule in RULES} | CLIPPED).items():
            parameters = [nn.Parameter(values.clone()) for values in start]
            optimiser, values = RULES[rule](parameters), []
            for gradient in gradients:
                for parameter, part in zip(parameters, gradient):
                    parameter.grad = part.clone()
                if most is not None:
                    nn.utils.clip_grad_norm_(parameters, most)
                optimiser.step()
                values.append(torch.stack([parameter.detach().clone() for parameter in parameters]))
            tensors[f"{kind}.{name}"] = torch.stack(values)


def rates(count, scheduler):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, found = scheduler(optimiser), []
    for _ in range(count):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return torch.tensor(found, dtype=torch.float64)


def warmed_up(units, scheduler):
    return lambda optimiser: SequentialLR(
        optimiser, [LinearLR(optimiser, start_factor=1 / (units + 1), total_iters=units), scheduler(optimiser)], milestones=[units])


def schedules(tensors):
    """Ten epochs of seven steps; warm-up of two epochs; milestones at the epochs 4 and 7, which PyTorch counts from the end of the warm-up."""
    for per, unit in [("epoch", 1), ("step", 7)]:
        total, warmup = 10 * unit, 2 * unit

        def cycle(units, **options):
            return lambda optimiser: OneCycleLR(optimiser, max_lr=0.1, total_steps=units, cycle_momentum=False, **options)

        kinds = {
            "constant": lambda _: lambda optimiser: ConstantLR(optimiser, factor=1.0, total_iters=0),
            "cosine": lambda units: lambda optimiser: CosineAnnealingLR(optimiser, T_max=units),
            "steps": lambda units: lambda optimiser: MultiStepLR(optimiser, [4 * unit - (total - units), 7 * unit - (total - units)], gamma=0.2),
            "one-cycle": lambda units: cycle(units),
            "triangular": lambda units: cycle(units, anneal_strategy="linear", pct_start=0.4, div_factor=5.0, final_div_factor=10.0),
        }
        for name, kind in kinds.items():
            tensors[f"{per}.{name}"] = rates(total, kind(total))
            if name not in ("one-cycle", "triangular"):
                tensors[f"{per}.{name}.warmup"] = rates(total, warmed_up(warmup, kind(total - warmup)))


def reconstruction(tensors):
    case = "conv_autoencoder"
    net = zoo.network(case, zoo.CASES[case]).double().train()
    images, targets = zoo.drawn(case, 0, zoo.BATCH, zoo.CASES[case])
    optimiser, losses = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9), []
    for _ in range(2 * STEPS):
        decoded = net.decoder(net.encoder(images))
        loss = F.cross_entropy(net.classifier(decoded), targets) + 0.5 * F.mse_loss(decoded, images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    tensors["reconstruction"] = torch.tensor(losses, dtype=torch.float64)


made = {}
optimisers(made)
schedules(made)
reconstruction(made)
save_file({key: value.contiguous() for key, value in made.items()}, FOLDER / "recipes.safetensors", {"made_by": f"recipes.py with torch {torch.__version__}"})
