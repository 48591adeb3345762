"""Makes condensations.safetensors with PyTorch and NumPy; src/golden.rs holds the methods of condensation to it.

    pip install torch==2.15.0 numpy==2.4.6 safetensors
    python generate.py

Each method is written down again here, in f64, from its formula, for a ConvNet-3 with instance normalisation and eight small images in three buckets, of which one has
a single member. What a method draws (networks, real samples, changes to all images) is given to both sides. Kept, rounded to f32, are

    images, bucket                      the data: bytes, and the bucket of each
    network.NUMBER.NAME                 the tensors of each network
    METHOD                              the images afterwards (of `blend` with the shares of the samples in METHOD.shares; of `gm` and `mtt` the slope of the distance by them)
    METHOD.start, .distance             the images before; the distance
    change.NUMBER                       the images after a change
    grid.features, .labels, .rows       features on a grid, where many are equally far from a point, or the same; the labels of a dataset, and the rows with these features
    grid.RULE                           the rows that are chosen, class by class, in their order

and in the metadata the architecture, for each method its steps, and the changes.
"""
import copy
import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.set_default_dtype(torch.float64)
MEAN, DEVIATION, CLASSES, SIDE = 0.5, 0.25, 2, 8
BUCKET, CLASS = torch.tensor([1, 0, 1, 2, 0, 1, 0, 1]), torch.tensor([0, 1, 1])
MEMBERS = [[row for row, own in enumerate(BUCKET) if own == bucket] for bucket in range(len(CLASS))]


class ConvNet3(nn.Module):
    def __init__(self):
        super().__init__()
        pairs = itertools.pairwise([3, 4, 5, 4])
        self.features = nn.Sequential(*[layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(b, b), nn.ReLU(), nn.AvgPool2d(2))])
        self.classifier = nn.Linear(4, CLASSES)
        with torch.no_grad():
            for name, value in self.named_parameters():
                value.add_(0.2 * torch.randn(value.shape))
                value.copy_(value.float().double())

    def forward(self, x):
        return self.classifier(self.embedded(x))

    def embedded(self, x):
        return self.features(x).flatten(1)


torch.manual_seed(20251107)
NETWORKS = [ConvNet3() for _ in range(3)]
PIXELS = torch.randint(0, 256, (len(BUCKET), 3, SIDE, SIDE), dtype=torch.uint8)
REAL = (PIXELS.double() / 255 - MEAN) / DEVIATION


def changed(x, change):
    """A change to all images alike: its name, and by how much."""
    name, *by = change
    if name == "none":
        return x
    if name == "flip":
        return x.flip(3)
    if name == "shift":
        down, right = by
        wide = F.pad(x, (SIDE, SIDE, SIDE, SIDE))
        return wide[:, :, SIDE - down : 2 * SIDE - down, SIDE - right : 2 * SIDE - right]
    if name == "cutout":
        rows, columns = ((torch.arange(SIDE) - centre + SIDE // 4) // (SIDE // 2) == 0 for centre in by)
        return x * ~(rows[:, None] & columns)
    if name == "colour":
        brightness, saturation, contrast = by
        x = x + brightness
        x = x.mean(1, keepdim=True) + saturation * (x - x.mean(1, keepdim=True))
        return x.mean((1, 2, 3), keepdim=True) + contrast * (x - x.mean((1, 2, 3), keepdim=True))
    raise ValueError(name)


CHANGES = [["none"], ["flip"], ["shift", 1, -1], ["shift", -1, 0], ["cutout", 4, 3], ["cutout", 0, 8], ["colour", -0.3, 1.6, 0.7], ["colour", 0.2, 0.4, 1.3]]


def decoded(images, tiles):
    """Images that lie beside one another in one, at full size."""
    edges = [place * SIDE // tiles for place in range(tiles + 1)]
    parts = [images[:, :, a:b, c:d] for a, b in itertools.pairwise(edges) for c, d in itertools.pairwise(edges)]
    return torch.stack([F.interpolate(part, (SIDE, SIDE), mode="bilinear", align_corners=False) for part in parts], 1).flatten(0, 1)


def blend(steps, lr):
    net = NETWORKS[0]
    weights = [torch.full((len(rows),), 1 / len(rows), requires_grad=True) for rows in MEMBERS]
    optimiser = torch.optim.SGD(weights, lr=lr, momentum=0.5)

    def images():
        return torch.stack([torch.tensordot(w / w.sum(), REAL[rows], 1) for w, rows in zip(weights, MEMBERS)])

    wanted = torch.stack([net.embedded(REAL[rows]).mean(0) for rows in MEMBERS]).detach()
    for _ in range(steps):
        optimiser.zero_grad()
        ((net.embedded(images()) - wanted) ** 2).mean(1).mean().backward()
        optimiser.step()
    return {"": images(), ".shares": torch.cat([w / w.sum() for w in weights])}


def start(each):
    return torch.randn(len(MEMBERS) * each, 3, SIDE, SIDE).float().double()


def dm(steps, lr, each, tiles):
    before = start(each)
    images = before.clone().requires_grad_()
    optimiser = torch.optim.SGD([images], lr=lr, momentum=0.5)
    for number, drawn, change in steps:
        net, loss = NETWORKS[number], 0
        for bucket, rows in enumerate(drawn):
            own = decoded(images[bucket * each : (bucket + 1) * each], tiles)
            apart = net.embedded(changed(REAL[rows], change)).mean(0) - net.embedded(changed(own, change)).mean(0)
            loss = loss + (apart**2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {"": images, ".start": before}


def idm(steps, lr, each, tiles):
    """As `dm`; the mean cross-entropy of each bucket's images counts as well, as much as each step says."""
    before = start(each)
    images = before.clone().requires_grad_()
    optimiser = torch.optim.SGD([images], lr=lr, momentum=0.5)
    for (number, drawn, change), weight in steps:
        net, loss = NETWORKS[number], 0
        for bucket, rows in enumerate(drawn):
            own = changed(decoded(images[bucket * each : (bucket + 1) * each], tiles), change)
            apart = net.embedded(changed(REAL[rows], change)).mean(0) - net.embedded(own).mean(0)
            loss = loss + (apart**2).sum() + weight * F.cross_entropy(net(own), CLASS[bucket].repeat(len(own)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {"": images, ".start": before}


def slopes(net, x, label, **more):
    return torch.autograd.grad(F.cross_entropy(net(x), torch.full((len(x),), label)), list(net.parameters()), **more)


def gm(bucket, rows, change, each, tiles):
    """The slope of the distance of two gradients by the pixels, through the gradient."""
    net, before = NETWORKS[1], start(each)
    images = before.clone().requires_grad_()
    wanted = slopes(net, changed(REAL[rows], change), CLASS[bucket])
    own = slopes(net, changed(decoded(images[bucket * each : (bucket + 1) * each], tiles), change), CLASS[bucket], create_graph=True)
    distance = 0
    for a, b in zip(own, wanted):
        if a.dim() > 1:
            a, b = a.flatten(1), b.flatten(1)
            distance = distance + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return {"": torch.autograd.grad(distance, images)[0], ".start": before, ".distance": distance[None]}


def learn(epochs, lr):
    """Steps of a network on all condensed images."""
    net, before = copy.deepcopy(NETWORKS[2]), start(1)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5)
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(net(before), CLASS).backward()
        optimiser.step()
    return {"": torch.cat([value.flatten() for _, value in sorted(net.state_dict().items())]), ".start": before}


def mtt(begin, end, steps, rate):
    """How far a student of the images that begins as one network is from another, as a share of the way, and its slope by the pixels, through all its steps."""
    net, before = NETWORKS[begin], start(1)
    images, names = before.clone().requires_grad_(), [name for name, _ in net.named_parameters()]
    first = [value.detach().clone().requires_grad_() for value in net.parameters()]
    student, goal = first, list(NETWORKS[end].parameters())
    for _ in range(steps):
        loss = F.cross_entropy(torch.func.functional_call(net, dict(zip(names, student)), (images,)), CLASS)
        student = [value - rate * slope for value, slope in zip(student, torch.autograd.grad(loss, student, create_graph=True))]

    def apart(weights):
        return sum(((a - b) ** 2).sum() for a, b in zip(weights, goal))

    distance = apart(student) / apart(first)
    return {"": torch.autograd.grad(distance, images)[0], ".start": before, ".distance": distance[None]}


def square(vector):
    return sum(value * value for value in vector)


def herding(features, wanted):
    """Without rounding: of those left, always the first with which the mean of all chosen is nearest to the mean."""
    centre, chosen = [Fraction(int(total), len(features)) for total in features.sum(0)], []
    while len(chosen) < wanted:
        left = [place for place in range(len(features)) if place not in chosen]
        means = {place: [Fraction(int(total), len(chosen) + 1) for total in features[[*chosen, place]].sum(0)] for place in left}
        chosen.append(min(left, key=lambda place: (square(a - b for a, b in zip(means[place], centre)), place)))
    return chosen


def k_centre(features, wanted):
    """Without rounding: the first that is nearest to the mean, then always the first whose nearest chosen one is farthest."""
    centre = [Fraction(int(total), len(features)) for total in features.sum(0)]
    chosen = [min(range(len(features)), key=lambda place: (square(int(a) - b for a, b in zip(features[place], centre)), place))]
    while len(chosen) < wanted:
        far = {place: min(square(features[place] - features[other]) for other in chosen) for place in range(len(features)) if place not in chosen}
        chosen.append(max(far, key=lambda place: (far[place], -place)))
    return chosen


PER_CLASS = 8
ALL = [[row for row in rows] for rows in MEMBERS]
SOME = [[6, 1], [7, 0, 5], [3]]
METHODS = {
    "blend": (blend, {"steps": 12, "lr": 20.0}),
    "dm": (dm, {"steps": [[0, SOME, ["none"]], [1, ALL, ["none"]], [2, SOME, ["none"]]], "lr": 30.0, "each": 1, "tiles": 1}),
    "dm.changed": (dm, {"steps": [[number % 3, SOME, change] for number, change in enumerate(CHANGES[1:])], "lr": 30.0, "each": 1, "tiles": 1}),
    "dm.tiles": (dm, {"steps": [[0, SOME, ["none"]], [1, ALL, ["shift", 1, -1]]], "lr": 30.0, "each": 2, "tiles": 3}),
    "gm": (gm, {"bucket": 1, "rows": [7, 0, 5], "change": ["none"], "each": 2, "tiles": 1}),
    "gm.changed": (gm, {"bucket": 0, "rows": [6, 1, 4], "change": ["colour", -0.3, 1.6, 0.7], "each": 1, "tiles": 2}),
    "gm.learn": (learn, {"epochs": 3, "lr": 0.1}),
    "mtt": (mtt, {"begin": 0, "end": 1, "steps": 5, "rate": 0.2}),
    "idm": (idm, {"steps": [[[0, SOME, ["none"]], 0.0], [[1, ALL, ["shift", 1, -1]], 0.5], [[2, SOME, ["none"]], 2.0]], "lr": 3.0, "each": 2, "tiles": 2}),
}


def main():
    tensors = {"images": PIXELS, "bucket": BUCKET}
    for number, net in enumerate(NETWORKS):
        tensors |= {f"network.{number}.{key}": value for key, value in net.state_dict().items()}
    for seed, (name, (method, settings)) in enumerate(METHODS.items()):
        torch.manual_seed(seed)
        tensors |= {f"{name}{key}": value for key, value in method(**settings).items()}
    tensors |= {f"change.{number}": changed(REAL[:2], change) for number, change in enumerate(CHANGES)}
    draw = np.random.default_rng(1)
    features, labels, rows = draw.integers(-2, 3, (20, 3)), np.arange(24) % 2, draw.permutation(24)[:20]
    features[[9, 17]] = features[3]
    tensors |= {"grid.features": torch.tensor(features), "grid.labels": torch.tensor(labels), "grid.rows": torch.tensor(rows)}
    for rule, choose in {"herding": herding, "k-centre": k_centre}.items():
        places = [np.flatnonzero(labels[rows] == label) for label in range(2)]
        tensors[f"grid.{rule}"] = torch.tensor(np.concatenate([rows[own[choose(features[own], PER_CLASS)]] for own in places]))
    facts = {
        "made_by": f"generate.py with torch {torch.__version__} and numpy {np.__version__}",
        "architecture": json.dumps({"family": "convnet3", "input": [3, SIDE, SIDE], "widths": [4, 5, 4], "hidden": 0, "classes": CLASSES, "dropout": 0.0}),
        "settings": json.dumps({name: settings for name, (_, settings) in METHODS.items()}),
        "changes": json.dumps(CHANGES),
        "class": json.dumps(CLASS.tolist()),
        "per_class": str(PER_CLASS),
    }
    for name in METHODS:
        begin = tensors.get(f"{name}.start")
        print(name, "" if begin is None or begin.shape != tensors[name].shape else f"moved by {(tensors[name] - begin).abs().max():.3f}", f"norm {tensors[name].norm():.4f}")
    save_file({key: (value.float() if value.is_floating_point() else value).detach().contiguous() for key, value in tensors.items()}, Path(__file__).parent / "condensations.safetensors", facts)


main()
