"""The work of benches/work.rs in PyTorch and scikit-learn: prints `{"name", "seconds"}` (median) for each NAME given.

Needs torch, and torchvision and timm for their networks; condense/kmeans and attack/membership need scikit-learn too. A name whose package is missing, or that has no counterpart, is
left out. DCU_BENCH_POINTS and DCU_BENCH_IMAGES name the files that the Rust side left for condense/kmeans and data/decode; the latter needs
Pillow.
"""
import json
import os
import statistics
import sys
import time

import numpy as np

BATCH = 256


def median(work, rounds=7):
    """Seconds of one call, after one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def mlp():
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn_features():
    from torch import nn

    widths = [3, 32, 64, 128, 256]
    blocks = [(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*[layer for block in blocks for layer in block], nn.Flatten())


def cnn():
    from torch import nn

    return nn.Sequential(cnn_features(), nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, 10))


def resnet18():
    import torchvision
    from torch import nn

    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def vgg16_bn():
    import torchvision
    from torch import nn

    net = torchvision.models.vgg16_bn(num_classes=10)
    net.avgpool, net.classifier[0] = nn.Identity(), nn.Linear(512, 4096)
    return net


def convnet3():
    from torch import nn

    blocks = [(nn.Conv2d(a, 128, 3, padding=1), nn.GroupNorm(128, 128), nn.ReLU(), nn.AvgPool2d(2)) for a in (3, 128, 128)]
    return nn.Sequential(*[layer for block in blocks for layer in block], nn.Flatten(), nn.Linear(2048, 10))


def vit_tiny():
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)


def train_step(make, batch=BATCH):
    import torch
    from torch.nn import functional as F

    net, images, labels = make(), torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)

    def work():
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()

    return median(work)


def features():
    import torch

    net, images = cnn_features().eval(), torch.randn(1024, 3, 32, 32)

    def work():
        with torch.no_grad():
            return torch.cat([net(part) for part in images.split(512)])

    return median(work)


def convolutions(shapes):
    """Each shape is (input channels, output channels, side, stride)."""
    import torch
    from torch.nn import functional as F

    def variable(*shape):
        return (0.05 * torch.randn(*shape)).requires_grad_()

    arguments = [(variable(BATCH, a, side, side), variable(b, a, 3, 3), variable(b), stride) for a, b, side, stride in shapes]

    def work():
        for image, weight, bias, stride in arguments:
            image.grad = weight.grad = bias.grad = None
            F.conv2d(image, weight, bias, stride=stride, padding=1).sum().backward()

    return median(work)


def kmeans():
    from sklearn.cluster import KMeans

    points = np.fromfile(os.environ["DCU_BENCH_POINTS"], dtype=np.float32).reshape(-1, 1024)
    return median(lambda: KMeans(n_clusters=450, n_init=1, random_state=0).fit(points), rounds=3)


def matching_step():
    """One step on 500 buckets of 10, a bucket at a time as published: 20 of them are timed, and counted 25 times."""
    import torch

    net = cnn_features().eval().requires_grad_(False)
    buckets = []
    for _ in range(20):
        images = torch.randn(10, 3, 32, 32)
        weights = torch.full((10, 1, 1, 1), 0.1, requires_grad=True)
        buckets.append((images, weights, torch.optim.Adam([weights], lr=1e-3), net(images).mean(0)))

    def work():
        for images, weights, optimiser, target in buckets:
            optimiser.zero_grad()
            ((net((weights * images).sum(0, keepdim=True))[0] - target) ** 2).sum().backward()
            optimiser.step()

    return 25 * median(work)


def membership():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    rng = np.random.default_rng(0)
    losses = np.concatenate([np.exp(0.7 * rng.standard_normal(4500) - 0.3), np.exp(0.7 * rng.standard_normal(4500))])[:, None]
    member = np.repeat([1, 0], 4500)
    splits = StratifiedShuffleSplit(n_splits=10, random_state=0)
    return median(lambda: cross_val_score(LogisticRegression(), losses, member, cv=splits, scoring="accuracy"))


def decode():
    import io
    import struct

    from PIL import Image

    with open(os.environ["DCU_BENCH_IMAGES"], "rb") as file:
        data = file.read()
    files, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        files.append(data[at + 4:at + 4 + size])
        at += 4 + size
    return median(lambda: np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]))


WORK = {
    "train-step/cnn": lambda: train_step(cnn),
    "train-step/mlp": lambda: train_step(mlp),
    "train-step/resnet18": lambda: train_step(resnet18, 128),
    "train-step/vgg16-bn": lambda: train_step(vgg16_bn, 128),
    "train-step/convnet3": lambda: train_step(convnet3, 128),
    "train-step/vit-tiny": lambda: train_step(vit_tiny, 64),
    "features/cnn": features,
    "conv/resnet18": lambda: convolutions([(64, 64, 32, 1), (64, 128, 32, 2), (256, 256, 8, 1), (512, 512, 4, 1)]),
    "conv/vgg16": lambda: convolutions([(64, 64, 32, 1), (128, 128, 16, 1), (256, 256, 8, 1), (512, 512, 4, 1), (512, 512, 2, 1)]),
    "condense/kmeans": kmeans,
    "condense/matching-step": matching_step,
    "attack/membership": membership,
    "data/decode": decode,
}

for name in sys.argv[1:]:
    try:
        if name in WORK:
            print(json.dumps({"name": name, "seconds": WORK[name]()}), flush=True)
    except ImportError as error:
        print(f"{name}: {error}", file=sys.stderr)
