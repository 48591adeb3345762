"""Makes zoo.safetensors with PyTorch, torchvision and timm; tests/zoo.rs and tests/derivatives.rs compare with it.

    pip install torch==2.15.0 torchvision==0.29.2 timm==1.0.31 safetensors
    python zoo.py

Weights and images are not kept: both sides compute them. Value `i` of the tensor NAME comes from the 64-bit number
`z = splitmix64(fnv1a(NAME) + (i + 1) * 0x9E3779B97F4A7C15)`, all modulo 2^64:

    u = (z >> 40) / 2^23 - 1                        in [-1, 1), and a label is (z >> 33) % classes

With CASE before each name, images are `CASE/images/DRAW` = u, labels `CASE/labels`, directions of products `CASE/direction/PARAMETER` = u, and of a state
dict, computed in f64 and rounded to f32,

    *.running_mean  u / 5          *.running_var  1 + u / 2          *.num_batches_tracked  3
    *.weight of one dimension  1 + u / 4          *.bias, cls_token, pos_embed  u / 10
    any other  u * sqrt(6 / (product of all extents but the first))

Kept are, for each case, by name and shape what the state dict has, and in f64, computed in f64:

    CASE.eval, CASE.train          logits of the first images of `images`, with dropout 0
    CASE.buffer.NAME               running averages after that pass in train mode
    CASE.gradient                  for each parameter, sorted by name: the gradient of the mean loss in train mode, as its norm and as its
                                   product with the direction
    CASE.sgd, .adam, .adamw        losses of the first steps of a training in f64, in train mode, on batches in order, and
    CASE.sgd.end, ...              the logits in eval mode afterwards
    CASE.calm.sgd, ...             the same in f32 on one thread, from calm weights
    CASE.calm.sgd.end, ...
    CASE.loss, CASE.gradient.NAME  of cases for derivatives: mean loss in eval mode, its gradient, that of each sample, the sum of their
    CASE.samples.NAME              squares, the product of the Hessian of the mean loss with the direction, and the solution of
    CASE.squares.NAME              (Hessian + damping) x = direction
    CASE.hessian.NAME
    CASE.solution.NAME

Biases in front of a normalisation that takes them out again rest, as in generate.py.

Where an activation lies within rounding of a rectification's kink, or two of a window's are equal up to rounding, another rounding gives another
gradient: not even PyTorch's f32 and f64 agree then, and they are 0.01 apart after 20 steps of a small ResNet-18, whose batch normalisations put 10^5 values
around the kink. In f64 that does not happen. Trainings in f32 therefore start where few values are near it: of a batch normalisation with the `u` above,

    scale  (1 + u / 4) / 4         shift  (1 where u > -0.5, otherwise -1) + u / 10

and DRAW is the first number from 0 with which PyTorch's trainings in f64, in f32, and in f32 from weights that are shifted by a few roundings agree to 1e-5 in
all losses, for all three rules. No other implementation has a say in it. It is kept with the case, as are the learning rates.

The table of `initial` is how torchvision and timm start each tensor: the script checks it against them, the test checks the networks against it.
"""
import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, cfgs, make_layers

FILE = Path(__file__).parent / "zoo.safetensors"
STEPS, BATCH, IMAGES, SHOWN = 20, 8, 24, 5
# Trainings from shifted weights, by how many roundings at most, how far losses may lie apart, and how many draws may fail.
SHIFTS, ROUNDINGS, AGREEMENT, DRAWS = 2, 4, 1e-5, 20
RULES = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05),
}
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def numbers(name, count):
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(state) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def units(name, shape):
    u = (numbers(name, math.prod(shape)) >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return torch.from_numpy(u).reshape(tuple(shape))


def labels(name, count, classes):
    return torch.from_numpy(((numbers(name, count) >> np.uint64(33)) % np.uint64(classes)).astype(np.int64))


def weights(case, name, shape):
    if name.endswith(".num_batches_tracked"):
        return torch.tensor(3)
    u = units(f"{case}/{name}", shape)
    if name.endswith(".running_mean"):
        values = u / 5
    elif name.endswith(".running_var"):
        values = 1 + u / 2
    elif name.endswith(".weight") and len(shape) == 1:
        values = 1 + u / 4
    elif name.endswith(".bias") or name in ("cls_token", "pos_embed"):
        values = u / 10
    else:
        values = u * math.sqrt(6 / math.prod(shape[1:]))
    return values.float()


class Mlp(nn.Module):
    def __init__(self, facts):
        super().__init__()
        sizes = [math.prod(facts["input"]), *facts["widths"], facts["classes"]]
        for index, (a, b) in enumerate(zip(sizes, sizes[1:])):
            setattr(self, f"linear{index + 1}", nn.Linear(a, b))
        self.count = len(sizes) - 1

    def forward(self, x):
        x = x.flatten(1)
        for index in range(1, self.count):
            x = F.relu(getattr(self, f"linear{index}")(x))
        return getattr(self, f"linear{self.count}")(x)


class Sequential(nn.Module):
    """`features`, flattened, and `classifier`."""

    def __init__(self, features, classifier):
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def sized(facts, features, classifier):
    """With a classifier for as many values as the features have for this input."""
    with torch.no_grad():
        return Sequential(features, classifier(features.eval()(torch.zeros(1, *facts["input"])).numel()))


def blocks(facts, layers):
    channels = [facts["input"][0], *facts["widths"]]
    return nn.Sequential(*[layer for a, b in zip(channels, channels[1:]) for layer in layers(a, b)])


def hidden_layers(facts):
    return lambda inputs: nn.Sequential(nn.Linear(inputs, facts["hidden"]), nn.ReLU(), nn.Dropout(facts["dropout"]), nn.Linear(facts["hidden"], facts["classes"]))


def cnn(facts):
    features = blocks(facts, lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)))
    return sized(facts, features, hidden_layers(facts))


def conv_classifier(facts):
    features = blocks(facts, lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    return sized(facts, features, hidden_layers(facts))


def convnet3(facts):
    features = blocks(facts, lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(b, b), nn.ReLU(), nn.AvgPool2d(2)))
    return sized(facts, features, lambda inputs: nn.Linear(inputs, facts["classes"]))


class WeakCnn(nn.Module):
    def __init__(self, facts):
        super().__init__()
        first, second, third, fourth = facts["widths"]
        self.conv1, self.conv2 = nn.Conv2d(facts["input"][0], first, 5), nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(self.features(torch.zeros(1, *facts["input"])).numel(), third)
        self.fc2, self.fc3 = nn.Linear(third, fourth), nn.Linear(fourth, facts["classes"])

    def features(self, x):
        return F.max_pool2d(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))), 2).flatten(1)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(self.features(x))))))


class Autoencoder(nn.Module):
    def __init__(self, facts):
        super().__init__()
        channels, (a, b, c) = facts["input"][0], facts["widths"][:3]
        down, up = lambda i, o: nn.Conv2d(i, o, 4, stride=2, padding=1), lambda i, o: nn.ConvTranspose2d(i, o, 4, stride=2, padding=1)
        self.encoder = nn.Sequential(down(channels, a), nn.ReLU(), down(a, b), nn.ReLU(), down(b, c), nn.ReLU())
        self.decoder = nn.Sequential(up(c, b), nn.ReLU(), up(b, a), nn.ReLU(), up(a, channels), nn.Sigmoid())
        with torch.no_grad():
            shape = self.decoder(self.encoder(torch.zeros(1, *facts["input"]))).shape[1:]
        self.classifier = conv_classifier({**facts, "input": list(shape), "widths": facts["widths"][3:]})

    def forward(self, x):
        return self.classifier(self.decoder(self.encoder(x)))


class Dictionary(nn.Module):
    def __init__(self, facts):
        super().__init__()
        count, size = facts["widths"][0], facts["patch"]
        self.register_buffer("weight", torch.zeros(count, facts["input"][0], size, size))
        self.register_buffer("bias", torch.zeros(count))


class Patches(nn.Module):
    def __init__(self, facts):
        super().__init__()
        self.dictionary = Dictionary(facts)
        self.head = nn.Linear(8 * facts["widths"][0], facts["classes"])

    def forward(self, x):
        responses = F.conv2d(x, self.dictionary.weight, self.dictionary.bias)
        return self.head(F.adaptive_avg_pool2d(torch.cat([F.relu(responses), F.relu(-responses)], dim=1), 2).flatten(1))


def resnet18(facts):
    """torchvision's, with other widths."""
    net, widths = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=facts["classes"]), facts["widths"]
    channels = facts["input"][0]
    net.inplanes = widths[0]
    if facts["stem"] == "cifar":
        net.conv1, net.maxpool = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.Identity()
    else:
        net.conv1 = nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(widths[0])
    for index, width in enumerate(widths):
        setattr(net, f"layer{index + 1}", net._make_layer(BasicBlock, width, 2, stride=1 if index == 0 else 2))
    net.fc = nn.Linear(widths[-1], facts["classes"])
    return net


def vgg16(facts):
    """torchvision's, with other widths and, for small images, without the pooling to 7 x 7."""
    widths = dict(zip([64, 128, 256], facts["widths"]))
    layers = [entry if entry == "M" else widths.get(entry) for entry in cfgs["D"]]
    layers[-8:] = [facts["widths"][3]] * 3 + ["M"] + [facts["widths"][4]] * 3 + ["M"]
    features = make_layers(layers, batch_norm=facts["family"] == "vgg16-bn")
    if facts["input"][0] != 3:
        raise ValueError("torchvision's has three channels")
    net, hidden = VGG(nn.Sequential(), num_classes=facts["classes"], init_weights=False), facts["hidden"]
    net.features = features
    if facts["stem"] == "cifar":
        net.avgpool = nn.Identity()
    with torch.no_grad():
        inputs = net.avgpool(features.eval()(torch.zeros(1, *facts["input"]))).numel()
    drop = facts["dropout"]
    net.classifier = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, facts["classes"])
    )
    return net


def vit_tiny(facts):
    return VisionTransformer(
        img_size=tuple(facts["input"][1:]), patch_size=facts["patch"], in_chans=facts["input"][0], num_classes=facts["classes"],
        embed_dim=facts["widths"][0], depth=facts["depth"], num_heads=facts["heads"],
    )


FAMILIES = {
    "mlp": Mlp, "cnn": cnn, "weak-cnn": WeakCnn, "resnet18": resnet18, "vgg16": vgg16, "vgg16-bn": vgg16, "vit-tiny": vit_tiny,
    "convnet3": convnet3, "conv-autoencoder": Autoencoder, "conv-classifier": conv_classifier, "patches": Patches,
}


def facts(family, size, widths, classes=5, hidden=0, **others):
    return {"family": family, "input": list(size), "classes": classes, "widths": widths, "hidden": hidden, "dropout": 0.0, **others}


# Sizes that fit, sizes that leave something over, images that are not square.
CASES = {
    "mlp": facts("mlp", (3, 16, 16), [24, 12]),
    "mlp_odd": facts("mlp", (1, 17, 13), [9, 7, 5], classes=2),
    "cnn": facts("cnn", (3, 16, 16), [8, 8, 16, 12], hidden=20),
    "cnn_odd": facts("cnn", (3, 17, 13), [8, 9, 10], hidden=11, classes=7),
    "weak_cnn": facts("weak-cnn", (3, 32, 32), [6, 8, 20, 12]),
    "weak_cnn_odd": facts("weak-cnn", (1, 21, 17), [6, 8, 20, 12]),
    "resnet18": facts("resnet18", (3, 16, 16), [8, 8, 16, 16], stem="cifar"),
    "resnet18_odd": facts("resnet18", (3, 17, 13), [8, 12, 10, 9], stem="cifar"),
    "resnet18_imagenet": facts("resnet18", (3, 32, 32), [8, 8, 16, 16], stem="imagenet"),
    "resnet18_imagenet_odd": facts("resnet18", (3, 37, 45), [8, 12, 10, 9], stem="imagenet"),
    "vgg16": facts("vgg16", (3, 32, 32), [8, 8, 8, 16, 16], hidden=24, stem="cifar"),
    "vgg16_odd": facts("vgg16", (3, 37, 65), [8, 9, 10, 11, 12], hidden=13, stem="cifar"),
    "vgg16_imagenet": facts("vgg16", (3, 37, 65), [8, 8, 8, 8, 4], hidden=12, stem="imagenet"),
    "vgg16_bn": facts("vgg16-bn", (3, 32, 32), [8, 8, 8, 16, 16], hidden=24, stem="cifar"),
    "vgg16_bn_odd": facts("vgg16-bn", (3, 33, 43), [8, 9, 10, 11, 12], hidden=13, stem="cifar"),
    "vgg16_bn_imagenet": facts("vgg16-bn", (3, 32, 64), [8, 8, 8, 8, 4], hidden=12, stem="imagenet"),
    "vit_tiny": facts("vit-tiny", (3, 16, 16), [24], depth=2, heads=3, patch=4),
    "vit_tiny_oblong": facts("vit-tiny", (1, 20, 12), [20], depth=3, heads=5, patch=4, classes=3),
    "convnet3": facts("convnet3", (3, 16, 16), [8, 16, 8]),
    "convnet3_odd": facts("convnet3", (3, 17, 13), [8, 9, 10]),
    "conv_autoencoder": facts("conv-autoencoder", (3, 16, 16), [8, 8, 16, 8, 8, 16], hidden=20),
    "conv_autoencoder_odd": facts("conv-autoencoder", (3, 21, 19), [8, 9, 10, 7, 6, 5], hidden=11),
    "conv_classifier": facts("conv-classifier", (3, 16, 16), [8, 8, 16], hidden=20),
    "conv_classifier_odd": facts("conv-classifier", (1, 17, 13), [8, 9, 10], hidden=11),
    "patches": facts("patches", (3, 16, 16), [8], patch=3),
    "patches_odd": facts("patches", (1, 17, 13), [7], patch=6),
}
# For derivatives: few parameters, as all of them are kept. The last is the number of samples.
SMALL = {
    "small_mlp": (facts("mlp", (1, 4, 4), [6, 5], classes=3), 4),
    "small_cnn": (facts("cnn", (2, 8, 9), [3, 4], hidden=5, classes=3), 3),
    "small_resnet18": (facts("resnet18", (3, 8, 8), [2, 2, 3, 3], classes=3, stem="cifar"), 3),
    "small_vgg16_bn": (facts("vgg16-bn", (3, 32, 32), [2, 2, 2, 2, 2], hidden=3, classes=3, stem="cifar"), 2),
    "small_vit_tiny": (facts("vit-tiny", (1, 8, 8), [6], depth=2, heads=3, patch=4, classes=3), 3),
    "small_convnet3": (facts("convnet3", (2, 9, 8), [3, 4, 3], classes=3), 3),
    "small_conv_autoencoder": (facts("conv-autoencoder", (1, 8, 8), [2, 2, 3, 2, 2, 2], hidden=3, classes=3), 3),
}
SOLVED, DAMPING = "small_mlp", 2.0


def network(case, facts):
    net = FAMILIES[facts["family"]](facts)
    net.load_state_dict({name: weights(case, name, value.shape) for name, value in net.state_dict().items()})
    return net


def resting(net):
    """Biases of convolutions that a normalisation with statistics of its own takes out again: their gradients are rounding, which Adam blows up."""
    modules = list(net.named_modules())
    pairs = zip(modules, modules[1:])
    return {f"{name}.bias" for (name, module), (_, next_one) in pairs
            if isinstance(module, nn.Conv2d) and module.bias is not None and isinstance(next_one, (nn.BatchNorm2d, nn.GroupNorm))}


def rates(facts):
    return {"sgd": 2e-4 if facts["family"] == "vit-tiny" else 1e-3, "adam": 2e-4, "adamw": 2e-4}


def calm(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            u = 10 * module.bias.detach().double()
            module.load_state_dict({**module.state_dict(), "weight": module.weight / 4, "bias": (torch.where(u > -0.5, 1.0, -1.0) + u / 10).float()})
    return net


def drawn(case, draw, count, facts):
    return units(f"{case}/images/{draw}", (count, *facts["input"])), labels(f"{case}/labels", count, facts["classes"])


def train(case, facts, draw, rule, dtype, is_calm=True, shift=None):
    """Losses, and logits afterwards; from weights that are shifted by a few roundings where there is a `shift`."""
    net, (images, targets) = network(case, facts), drawn(case, draw, IMAGES, facts)
    net = calm(net) if is_calm else net
    if shift is not None:
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter *= (1 + ROUNDINGS * 2**-23 * units(f"{case}/shift/{shift}/{name}", parameter.shape)).float()
    net, images = net.to(dtype), images.to(dtype)
    rests = resting(net)
    optimiser, losses = RULES[rule]([parameter for name, parameter in net.named_parameters() if name not in rests], rates(facts)[rule]), []
    for step in range(STEPS):
        rows = [(step * BATCH + row) % IMAGES for row in range(BATCH)]
        optimiser.zero_grad()
        loss = F.cross_entropy(net.train()(images[rows]), targets[rows])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64), net.eval()(images[:SHOWN]).detach().double()


def trainings(case, facts, draw):
    """Losses and logits of each rule; nothing where they hang on the rounding."""
    results = {}
    for rule in RULES:
        losses, end = train(case, facts, draw, rule, torch.float32)
        others = [train(case, facts, draw, rule, torch.float64)] + [train(case, facts, draw, rule, torch.float32, shift=shift) for shift in range(SHIFTS)]
        apart = max((losses - other).abs().max().item() for other, _ in others)
        if apart > AGREEMENT:
            print(f"{case}: draw {draw} with {rule} hangs on the rounding, losses {apart:.1e} apart")
            return None
        logits = max((end - other).abs().max().item() for _, other in others)
        print(f"{case}: draw {draw} with {rule} from {losses[0]:.4f} to {losses[-1]:.4f}, losses {apart:.1e} and logits {logits:.1e} apart", flush=True)
        results[rule] = losses, end
    return results


def record(case):
    facts, tensors = CASES[case], {}
    draw, results = next((draw, results) for draw in range(DRAWS) if (results := trainings(case, facts, draw)))
    images, targets = drawn(case, draw, IMAGES, facts)
    shown = images[:SHOWN]
    net = network(case, facts).double()
    state = [[name, list(value.shape)] for name, value in net.state_dict().items()]
    tensors[f"{case}.eval"] = net.eval()(shown)
    rounded, largest = network(case, facts).eval()(shown.float()), tensors[f"{case}.eval"].abs().max()
    assert (rounded - tensors[f"{case}.eval"]).abs().max() < 2e-6 * max(1, largest), case
    logits = net.train()(shown)
    tensors[f"{case}.train"] = logits
    F.cross_entropy(logits, targets[:SHOWN]).backward()
    parameters = dict(net.named_parameters())
    gradients = {name: parameters[name].grad for name in sorted(parameters)}
    tensors[f"{case}.gradient"] = torch.stack([torch.stack([g.norm(), (g * units(f"{case}/direction/{name}", g.shape)).sum()]) for name, g in gradients.items()])
    for name, buffer in net.named_buffers():
        if "running" in name:
            tensors[f"{case}.buffer.{name}"] = buffer.clone()
    for rule, (losses, end) in results.items():
        tensors[f"{case}.calm.{rule}"], tensors[f"{case}.calm.{rule}.end"] = losses, end
        tensors[f"{case}.{rule}"], tensors[f"{case}.{rule}.end"] = train(case, facts, draw, rule, torch.float64, is_calm=False)
    kept = {name: value.detach().numpy() for name, value in tensors.items()}
    return {"architecture": facts, "state": state, "draw": draw, "rates": rates(facts), "rest": sorted(resting(net))}, kept


@sdpa_kernel(SDPBackend.MATH)  # the one attention of PyTorch's that has second derivatives
def derive(tensors, case, facts, count):
    net = network(case, facts).double().eval()
    images, targets = drawn(case, 0, count, facts)
    names, parameters = zip(*net.named_parameters())
    loss = F.cross_entropy(net(images), targets)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    directions = [units(f"{case}/direction/{name}", parameter.shape) for name, parameter in zip(names, parameters)]
    product = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions))
    products = torch.autograd.grad(product, parameters, retain_graph=True, materialize_grads=True)
    samples = [torch.autograd.grad(F.cross_entropy(net(images[row : row + 1]), targets[row : row + 1]), parameters) for row in range(count)]
    tensors[f"{case}.loss"] = loss
    for index, name in enumerate(names):
        each = torch.stack([gradient[index] for gradient in samples])
        tensors[f"{case}.gradient.{name}"], tensors[f"{case}.hessian.{name}"] = gradients[index], products[index]
        tensors[f"{case}.samples.{name}"], tensors[f"{case}.squares.{name}"] = each, each.square().sum(0)
    if case == SOLVED:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        rows = [torch.cat([row.flatten() for row in torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)]) for value in flat]
        damped = torch.stack(rows) + DAMPING * torch.eye(len(flat), dtype=torch.float64)
        assert torch.linalg.eigvalsh(damped)[0] > 0.1, "conjugate gradients need a positive definite matrix"
        solution = torch.linalg.solve(damped, torch.cat([direction.flatten() for direction in directions]))
        for name, parameter in zip(names, parameters):
            tensors[f"{case}.solution.{name}"], solution = solution[: parameter.numel()].reshape(parameter.shape), solution[parameter.numel() :]
    state = [[name, list(value.shape)] for name, value in net.state_dict().items()]
    return {"architecture": facts, "state": state, "samples": count, "damping": DAMPING if case == SOLVED else None}


def initial(family, name, shape, is_norm):
    """How torchvision, timm or PyTorch start a tensor: a uniform bound, a normal deviation or a constant."""
    spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else None
    if is_norm:
        return "constant", 1.0 if name.endswith((".weight", ".running_var")) else 0.0
    if family == "resnet18" and len(shape) == 4 or family.startswith("vgg16") and len(shape) == 4:
        return "normal", math.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    if family.startswith("vgg16"):
        return ("normal", 0.01) if len(shape) == 2 else ("constant", 0.0)
    if family == "vit-tiny" and name == "cls_token":
        return "normal", 1e-6
    if family == "vit-tiny" and (name == "pos_embed" or len(shape) == 2):
        return "normal", 0.02
    if family == "vit-tiny" and not name.startswith("patch_embed"):
        return "constant", 0.0
    return "uniform", spread


def initials():
    """The table for networks as wide as needed to tell deviations apart, checked against what is made in Python."""
    torch.manual_seed(20240301)
    table = {}
    for case, facts in {
        "resnet18": facts_of("resnet18", [32, 32, 48, 64], stem="imagenet"),
        "vgg16": facts_of("vgg16", [32, 32, 32, 32, 32], hidden=64, stem="imagenet"),
        "vgg16-bn": facts_of("vgg16-bn", [32, 32, 32, 32, 32], hidden=64, stem="imagenet"),
        "vit-tiny": facts_of("vit-tiny", [48], depth=2, heads=3, patch=4),
        "convnet3": facts_of("convnet3", [32, 32, 32]),
        "cnn": facts_of("cnn", [32, 32, 32], hidden=64),
        "mlp": facts_of("mlp", [64, 32]),
        "weak-cnn": facts_of("weak-cnn", [16, 16, 64, 48]),
        "conv-autoencoder": facts_of("conv-autoencoder", [16, 32, 32, 16, 16, 32], hidden=64),
    }.items():
        net = FAMILIES[facts["family"]](facts)
        if case == "resnet18":
            # The layers of other widths are PyTorch's own: once more what torchvision's constructor does to its own.
            redo(ResNet.__init__, net)
        if case.startswith("vgg16"):
            redo(VGG.__init__, net)
        state, rows = net.state_dict(), []
        fan_in = {}
        for name, value in state.items():
            module = net.get_submodule(name.rpartition(".")[0])
            is_norm = isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))
            kind, size = initial(facts["family"], name, list(value.shape), is_norm)
            if kind == "uniform" and size is None:
                size = fan_in[name.rsplit(".", 1)[0]]
            fan_in[name.rsplit(".", 1)[0]] = size
            value = value.double()
            spread = value.square().mean().sqrt().item()
            expected = {"uniform": (size or 0) / math.sqrt(3), "normal": size, "constant": abs(size)}[kind]
            noise = 5 / math.sqrt(value.numel()) if kind != "constant" else 0
            assert abs(spread - expected) <= max(noise * expected, 1e-12), (case, name, spread, expected)
            assert kind != "uniform" or value.abs().max() <= size * (1 + 1e-6), (case, name)
            rows.append([name, list(value.shape), kind, size])
        table[case] = {"architecture": facts, "tensors": rows}
    return table


def redo(constructor, net):
    """Starts all tensors again as torchvision's constructors do, which treat all modules of a kind alike."""
    is_vgg = constructor is VGG.__init__
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and is_vgg:
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def facts_of(family, widths, **others):
    return facts(family, (3, 32, 32), widths, classes=10, **others)


def main():
    tensors = {}
    derived = {case: derive(tensors, case, facts, count) for case, (facts, count) in SMALL.items()}
    started = initials()
    with multiprocessing.Pool() as pool:
        recorded = dict(zip(CASES, pool.map(record, CASES, chunksize=1)))
    cases = {case: facts for case, (facts, _) in recorded.items()}
    for _, kept in recorded.values():
        tensors |= {name: torch.from_numpy(value) for name, value in kept.items()}
    metadata = {
        "made_by": f"zoo.py with torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}",
        "cases": json.dumps(cases), "derivatives": json.dumps(derived), "initial": json.dumps(started),
    }
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, FILE, metadata)


if __name__ == "__main__":
    main()
