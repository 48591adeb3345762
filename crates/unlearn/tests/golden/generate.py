"""Makes methods.safetensors with PyTorch; src/golden.rs holds the methods of unlearning to it.

    pip install torch==2.15.0 safetensors
    python generate.py

Each method is written down again here, in f64, from its formula, on three tiny networks: an MLP, a CNN with batch normalisation and a ConvNet-3 with
instance normalisation. Unless DRAWN says otherwise a batch holds all samples of its set, so that their order does not matter. Random numbers of a method are given to both sides. Kept are

    CASE.images, .labels, .original_labels, .forget, .retain    the data: bytes, and rows of them
    CASE.unseen.images, .labels, CASE.validation                 held-out data, and which of it a method may use
    CASE.state.NAME                                              the original network
    CASE.METHOD                                                  its floating numbers afterwards, tensor by tensor, sorted by name
    CASE.METHOD.given                                            what random numbers it was given

and in the metadata, for each case, the architecture, and for each method its parameters and what is in DRAWN. Where batches are part of a rule, they are those that
the crate draws, which src/golden.rs tells where they are not those of DRAWN. To add a method, add a function to METHODS and a line to src/golden.rs.
"""
import copy
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.set_default_dtype(torch.float64)
MEAN, DEVIATION, CLASSES = 0.5, 0.25, 3


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.linear2, self.linear3 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.linear3(F.relu(self.linear2(F.relu(self.linear1(x.flatten(1))))))


class Sequential(nn.Module):
    def __init__(self, features, classifier):
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def blocks(channels, norm, pool):
    pairs = zip(channels, channels[1:])
    return nn.Sequential(*[layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, padding=1), norm(b), nn.ReLU(), pool(2))])


def cnn():
    classifier = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.0), nn.Linear(4, CLASSES))
    return Sequential(blocks([1, 2, 3], nn.BatchNorm2d, nn.MaxPool2d), classifier)


def convnet():
    return Sequential(blocks([1, 2, 3, 4], lambda c: nn.GroupNorm(c, c), nn.AvgPool2d), nn.Linear(4, CLASSES))


ARCHITECTURES = {
    "mlp": (Mlp, {"family": "mlp", "input": [1, 2, 3], "widths": [5, 4], "hidden": 0}),
    "cnn": (cnn, {"family": "cnn", "input": [1, 4, 4], "widths": [2, 3], "hidden": 4}),
    "convnet": (convnet, {"family": "convnet3", "input": [1, 8, 8], "widths": [2, 3, 4], "hidden": 0}),
}


class Case:
    """A network and a request. `net` gives a copy of the network in eval mode."""

    def __init__(self, name):
        make, facts = ARCHITECTURES[name]
        self.name, self.facts = name, {**facts, "classes": CLASSES, "dropout": 0.0}
        torch.manual_seed(20240208)
        self.start = make()
        with torch.no_grad():
            for key, value in self.start.state_dict().items():
                if value.is_floating_point():
                    value.mul_(1.5).add_(0.2 * torch.randn(value.shape))
                    value.copy_((value.abs() if "running_var" in key else value).float().double())
                # The gradient of a bias that instance normalisation takes out again is rounding, and so is whether it is dampened.
                if name == "convnet" and key in ("features.0.bias", "features.4.bias", "features.8.bias"):
                    value.zero_()
        self.pixels = torch.randint(0, 256, (8, *facts["input"]), dtype=torch.uint8)
        self.labels, self.original = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0]), torch.tensor([0, 2, 2, 1, 1, 2, 1, 2])
        self.unseen_pixels, self.unseen_labels = torch.randint(0, 256, (7, *facts["input"]), dtype=torch.uint8), torch.tensor([0, 1, 2, 1, 0, 1, 0])
        self.validation = [6, 0, 2, 3, 5, 1]
        self.rows = {"forget": [4, 1, 7], "retain": [0, 2, 3, 5, 6], "all": list(range(8)), "together": [0, 2, 3, 5, 6, 4, 1, 7]}

    def fresh(self):
        net = ARCHITECTURES[self.name][0]()
        with torch.no_grad():
            for value in net.state_dict().values():
                value.copy_(value.float().double() if value.is_floating_point() else value)
        return net.eval()

    def net(self):
        return copy.deepcopy(self.start).eval()

    def x(self, part):
        return normalised(self.pixels[self.rows[part]])

    def y(self, part):
        return self.labels[self.rows[part]]


def normalised(pixels):
    return (pixels.double() / 255 - MEAN) / DEVIATION


def parameters(net):
    return [value for _, value in sorted(net.named_parameters())]


def numbers(net):
    return torch.cat([value.flatten() for _, value in sorted(net.state_dict().items()) if value.is_floating_point()])


def gradients(net, value):
    return list(torch.autograd.grad(value, parameters(net)))


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def shift(net, factor, direction):
    """Moves parameters by a flat direction."""
    with torch.no_grad():
        for value, part in zip(parameters(net), direction.split([value.numel() for value in parameters(net)])):
            value.add_(factor * part.view_as(value))
    return net


def sgd(net, lr, momentum=0.9, decay=5e-4):
    return torch.optim.SGD(parameters(net), lr=lr, momentum=momentum, weight_decay=decay)


def step(optimiser, value):
    optimiser.zero_grad()
    value.backward()
    optimiser.step()


def head(net):
    return ["linear3"] if isinstance(net, Mlp) else ["classifier.3" if isinstance(net.classifier, nn.Sequential) else "classifier"]


# --- Algebra on parameters


def by_batch(net, x, y, size, loss):
    chunks = [slice(start, start + size) for start in range(0, len(x), size)]
    return [flat(gradients(net, loss(net(x[rows]), y[rows]))) for rows in chunks]


def dampened(case, settings, measure):
    net = case.net()
    whole, forget = (measure(net, case.x(part), case.y(part)) for part in ("all", "forget"))
    values = flat(parameters(net)).detach()
    factor = torch.where(forget > settings["alpha"] * whole, torch.clamp(settings["lambda"] * whole / forget, max=1.0), torch.ones_like(whole))
    return shift(net, 1.0, values * factor - values)


def ssd(case, settings):
    def measure(net, x, y):
        return torch.stack([g**2 for g in by_batch(net, x, y, settings["batch"], F.cross_entropy)]).mean(0)

    return dampened(case, settings, measure)


def lfssd(case, settings):
    def measure(net, x, y):
        return torch.stack([g.abs() for g in by_batch(net, x, y, settings["batch"], lambda z, _: (z**2).sum(1).mean())]).mean(0)

    return dampened(case, settings, measure)


def fisher(case, settings):
    net, total = case.net(), 0
    for x in case.x("retain"):
        z = net(x[None])
        p = z.softmax(1)[0].detach()
        total = total + sum(p[c] * flat(gradients(net, F.cross_entropy(net(x[None]), torch.tensor([c])))) ** 2 for c in range(CLASSES))
    information = total / len(case.x("retain"))
    noise, at, moves = torch.randn(len(information)).float().double(), 0, []
    for name, value in sorted(net.named_parameters()):
        own = information[at : at + value.numel()].view_as(value)
        is_head = name.rsplit(".", 1)[0] in head(net)
        variance = settings["alpha"] * ((own + 1e-8) ** (-2 * settings["exponent"])).clamp(max=100.0 if is_head else 1000.0)
        if value.dim() > 1:
            variance = variance.mean(1, keepdim=True).expand_as(value)
        if is_head or value.dim() == 1:
            variance = 10 * variance
        moves.append(variance.sqrt() * noise[at : at + value.numel()].view_as(value))
        at += value.numel()
    return shift(net, 1.0, flat(moves)), noise


def tangents(case, part, only_head):
    """[K * n, P], sample by sample, and the errors; with zeros for what does not move."""
    net = case.net()
    moves = torch.cat([torch.full((v.numel(),), float(not only_head or n.rsplit(".", 1)[0] in head(net))) for n, v in sorted(net.named_parameters())])
    rows = torch.stack([flat(gradients(net, net(x[None])[0, c])) for x in case.x(part) for c in range(CLASSES)])
    return rows * moves, (net(case.x(part)).softmax(1) - F.one_hot(case.y(part), CLASSES)).flatten().detach()


def ntk(case, settings):
    def end(part):
        g, e = tangents(case, part, settings["parameters"] == "head")
        return -g.T @ torch.linalg.solve(g @ g.T + len(case.x(part)) * settings["weight_decay"] * torch.eye(len(g)), e)

    of_retain, of_all = end("retain"), end("together")
    delta, back = of_retain - of_all, -of_retain
    angle = torch.arccos(delta @ back / (delta.norm() * back.norm()))
    quarter = torch.pi / 2
    longer = delta.norm() + 2 * torch.sin((angle - quarter).abs()) * back.norm()
    return shift(case.net(), settings.get("strength", 1.0) * longer / delta.norm(), delta)


def influence(case, settings):
    net = case.net()
    names = [name for name, _ in sorted(net.named_parameters())]
    moves = flat([torch.full_like(v, float(settings["parameters"] == "all" or n.rsplit(".", 1)[0] in head(net))) for n, v in sorted(net.named_parameters())]).bool()
    x = case.x("forget")
    change = -flat(gradients(net, F.cross_entropy(net(x), case.y("forget"), reduction="sum")))
    if settings["instead"] == "relabel":
        change = change + flat(gradients(net, F.cross_entropy(net(x), case.original[case.rows["forget"]], reduction="sum")))
    if settings["order"] == "first":
        return shift(net, -settings["strength"], change * moves)
    sizes, shapes = [v.numel() for v in parameters(net)], [v.shape for v in parameters(net)]

    def loss(vector):
        values = {name: part.view(shape) for name, part, shape in zip(names, vector.split(sizes), shapes)}
        return F.cross_entropy(torch.func.functional_call(net, values, (case.x("together"),)), case.y("together"))

    hessian = torch.autograd.functional.hessian(loss, flat(parameters(net)).detach())[moves][:, moves]
    damped = hessian + settings["damping"] * torch.eye(len(hessian))
    assert torch.linalg.eigvalsh(damped).min() > 0.05
    solution = torch.zeros_like(change)
    solution[moves] = torch.linalg.solve(damped, change[moves] / len(case.rows["all"]))
    return shift(net, -1.0, solution)


def woodfisher(case, settings):
    net = case.net()
    (xf, yf), (xr, yr) = ((case.x(part), case.y(part)) for part in ("forget", "retain"))
    n, k = len(xf) + len(xr), len(xf)
    q = flat(gradients(net, F.cross_entropy(net(xf), yf, reduction="sum"))) / n - k / n * flat(gradients(net, F.cross_entropy(net(xr), yr)))
    order, o = torch.randperm(len(xr)), None
    for row in order:
        g = flat(gradients(net, F.cross_entropy(net(xr[row][None]), yr[row][None])))
        if o is None:
            o = g
        else:
            q, o = q - (q @ g) / (settings["samples"] + o @ g) * o, o - (o @ g) / (settings["samples"] + o @ g) * o
    return shift(net, settings["alpha"], q), order


# --- Passes


def relabelled(case, settings, mask=None):
    net = case.net().train()
    optimiser, labels = sgd(net, settings["lr"]), torch.randint(0, CLASSES, (settings["epochs"], len(case.rows["forget"])))
    before = flat(parameters(net)).detach().clone()

    def one(x, y):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        if mask is not None:
            at = 0
            for value in parameters(net):
                value.grad.mul_(mask[at : at + value.numel()].view_as(value))
                at += value.numel()
        optimiser.step()
        if mask is not None:
            shift(net, 1.0, (1 - mask) * (before - flat(parameters(net)).detach()))

    for given in labels:
        one(case.x("forget"), given)
        one(case.x("retain"), case.y("retain"))
    return net, labels


def salun(case, settings):
    net = case.net()
    sizes = flat(gradients(net, F.cross_entropy(net(case.x("forget")), case.y("forget"), reduction="sum"))).abs()
    mask = torch.zeros_like(sizes)
    mask[sizes.sort(descending=True, stable=True).indices[: round(settings["saliency"] * len(sizes))]] = 1
    return relabelled(case, settings, mask)


def divergence(student, teacher, t):
    return t**2 * F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


def scrub(case, settings):
    net, teacher = case.net().train(), case.net()
    if settings["preset"] == "small":
        optimiser, t, gamma, alpha = torch.optim.Adam(parameters(net), lr=settings["lr"], weight_decay=0.1), 2.0, 1.0, 0.5
    else:
        optimiser, t, gamma, alpha = sgd(net, settings["lr"]), 4.0, 0.99, 1e-3
    xf, xr, yr = case.x("forget"), case.x("retain"), case.y("retain")
    for epoch in range(settings["epochs"]):
        if epoch < settings["max_epochs"]:
            step(optimiser, -divergence(net(xf), teacher(xf).detach(), t))
        z = net(xr)
        step(optimiser, gamma * F.cross_entropy(z, yr) + alpha * divergence(z, teacher(xr).detach(), t))
    return net


def gradient_ascent(case, settings):
    net = case.net().train()
    optimiser = sgd(net, settings["lr"])
    for _ in range(settings["epochs"]):
        step(optimiser, -F.cross_entropy(net(case.x("forget")), case.y("forget")))
    return net


def neggrad(case, settings):
    net = case.net()
    optimiser, alpha = sgd(net, settings["lr"]), settings["alpha"]
    for _ in range(settings["epochs"]):
        of_retain, of_forget = (F.cross_entropy(net(case.x(part)), case.y(part)) for part in ("retain", "forget"))
        step(optimiser, alpha * of_retain - (1 - alpha) * of_forget)
    return net


def silver_linings(case, settings):
    """An attacker with random weights, before and after a level that its mean score of the forget samples is brought to."""
    net, units = case.net(), [5, 64, 32, 1]
    means, deviations = torch.tensor([0.5, 0.3, 0.2, 1.0, 0.5]), torch.tensor([0.2, 0.1, 0.1, 0.5, 0.5])
    layers = [(2 / a**0.5 * torch.randn(a, b), torch.randn(b)) for a, b in zip(units, units[1:])]
    given = torch.cat([means, deviations] + [part.flatten() for layer in layers for part in layer]).float().double()
    means, deviations, *parts = given.split([5, 5] + [part.numel() for layer in layers for part in layer])
    layers = [(parts[2 * i].view(a, b), parts[2 * i + 1]) for i, (a, b) in enumerate(zip(units, units[1:]))]
    x, y = case.x("forget"), case.y("forget")

    def margins():
        z = net(x)
        losses = F.cross_entropy(z, y, reduction="none")[:, None]
        values = torch.cat([z.softmax(1).topk(3).values, losses, (z.argmax(1) == y).double()[:, None]], 1)
        values = (values - means) / deviations
        for number, (weight, bias) in enumerate(layers):
            values = (F.relu(values) if number else values) @ weight + bias
        return values[:, 0]

    optimiser, first = torch.optim.Adam(parameters(net), lr=settings["lr"]), margins().sigmoid().mean().item()
    level, done = torch.tensor(first * 0.9).float().item(), 0
    for _ in range(settings["epochs"]):
        if margins().sigmoid().mean() <= level:
            break
        value = margins()
        step(optimiser, F.cross_entropy(net(case.x("retain")), case.y("retain")) + settings["lambda"] * F.binary_cross_entropy_with_logits(value, torch.zeros(len(x))))
        done += 1
    print(f"attacked with {first:.3f} before and {margins().sigmoid().mean():.3f} after {done} steps; the level is {level:.3f}")
    return net, torch.cat([given, torch.tensor([level])])


def sparse(case, settings):
    net = case.net().train()
    optimiser = sgd(net, settings["lr"])
    for epoch in range(settings["epochs"]):
        gamma = settings["gamma"] * max(0.0, 1 - epoch / (settings["epochs"] - settings["tail"]))
        step(optimiser, F.cross_entropy(net(case.x("retain")), case.y("retain")) + gamma * flat(parameters(net)).abs().sum())
    return net


def distillation(case, settings):
    net, teacher, x = case.net().train(), case.net(), case.x("retain")
    optimiser = torch.optim.Adam(parameters(net), lr=settings["lr"])
    for _ in range(settings["epochs"]):
        z = net(x)
        step(optimiser, F.cross_entropy(z, case.y("retain")) + settings["weight"] * divergence(z, teacher(x).detach(), settings["temperature"]))
    return net


def mixed(case, settings, drawn, loss):
    """Passes by Adam over forget and retain samples, which share batches: `loss` is told which rows of both, the forget samples first, are in one."""
    net, x = case.net().train(), torch.cat([case.x("forget"), case.x("retain")])
    optimiser = torch.optim.Adam(parameters(net), lr=settings["lr"])
    for epoch in drawn["batches"]:
        for rows in epoch:
            step(optimiser, loss(net(x[rows]), x[rows], torch.tensor(rows)))
    return net


def bad_teacher(case, settings, drawn):
    good, bad, gone = case.net(), case.fresh(), len(case.rows["forget"])

    def loss(z, x, rows):
        said = torch.where((rows < gone)[:, None], bad(x), good(x)).detach()
        return divergence(z, said, settings["temperature"])

    return mixed(case, settings, drawn, loss), numbers(bad)


def amnesiac(case, settings, drawn):
    wrong = torch.tensor(drawn["labels"])
    assert (wrong != case.y("forget")).all()
    labels = torch.cat([wrong, case.y("retain")])
    return mixed(case, settings, drawn, lambda z, _, rows: F.cross_entropy(z, labels[rows]))


def accelerated(case, settings, drawn):
    net, teacher, k = case.net().train(), case.net(), settings["steepness"]
    xf, yf, xr, yr = case.x("forget"), case.y("forget"), case.x("retain"), case.y("retain")
    known = [row for row in case.validation if case.unseen_labels[row] in yf]
    xu, yu = normalised(case.unseen_pixels[known]), case.unseen_labels[known]
    optimiser = torch.optim.Adam(parameters(net), lr=settings["lr"])

    def level(x, y):
        # Nothing of these samples goes into running averages.
        logits = copy.copy(net).eval()(x)
        net.train()
        return torch.log(1 + F.cross_entropy(logits, y, reduction="none") + 1e-8)

    def normal(r, others):
        differences = r[:, None] - others[None, :]
        return torch.special.ndtri(torch.sigmoid(k * F.relu(differences)).mean(1))

    def kernel(a, b):
        return torch.exp(-((a[:, None] - b[None, :]) ** 2) / 2).mean()

    for epoch in drawn["epochs"]:
        if settings["variant"] == "scrub":
            for rows in epoch["max"]:
                step(optimiser, -0.2 * F.kl_div((net(xf[rows]) / 2).log_softmax(1), (teacher(xf[rows]) / 2).softmax(1), reduction="batchmean"))
        for rows, own, other in epoch["steps"]:
            z = net(xr[rows])
            value = F.cross_entropy(z, yr[rows]) ** 2
            if settings["variant"] == "sparse":
                value = value + 1e-4 * flat(parameters(net)).abs().sum()
            if settings["variant"] == "scrub":
                value = 0.99 * value + 1e-3 * divergence(z, teacher(xr[rows]).detach(), 2.0)
            of_forget, of_unseen = level(xf[own], yf[own]), level(xu[other], yu[other]).detach()
            if settings["ranks"] == "own":
                a, b = normal(of_forget, of_forget), normal(of_unseen, of_unseen)
            else:
                # A sample is not compared with itself: the others stay where they are.
                both = torch.cat([of_forget.detach(), of_unseen])
                a, b = normal(of_forget, both), normal(of_unseen, both)
            step(optimiser, value + settings["weight"] * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)))
    return net


def jit(case, settings):
    net, x, size = case.net(), case.x("forget"), settings["batch"]
    chunks = [x[start : start + size] for start in range(0, len(x), size)]
    noise, earlier = [], 0
    for batch in chunks:
        value = 0
        for _ in range(settings["perturbations"]):
            zeta = (settings["sigma"] * torch.randn(batch.shape)).float().double()
            noise.append(zeta.flatten())
            noisy = (batch + zeta).clamp(batch.min(), batch.max())
            ratio = (net(batch) - net(noisy).detach()).norm(dim=1) / (noisy - batch).flatten(1).norm(dim=1)
            value = value + ratio.sum() / settings["perturbations"]
        own = flat(gradients(net, value))
        earlier = earlier + own if settings["accumulate"] else own
        shift(net, -settings["lr"], earlier)
    return net, torch.cat(noise)


def prune(case, settings):
    net = case.net()
    named = [(name, value) for name, value in sorted(net.named_parameters()) if value.dim() > 1]
    original, masks = [value.detach().clone() for _, value in named], [torch.ones_like(value) for _, value in named]
    total = sum(value.numel() for value in original)
    for turn in range(1, settings["rounds"] + 1):
        linear = copy.deepcopy(net)
        with torch.no_grad():
            for value in linear.state_dict().values():
                value.abs_()
        weights = [dict(linear.named_parameters())[name] for name, _ in named]
        slopes = torch.autograd.grad(linear(torch.ones(1, *case.facts["input"])).sum(), weights)
        scores = flat([torch.where(mask > 0, (slope * weight).abs(), -1.0) for mask, slope, weight in zip(masks, slopes, weights)]).detach()
        kept = torch.zeros(total)
        kept[scores.sort(descending=True, stable=True).indices[: round(total * settings["density"] ** (turn / settings["rounds"]))]] = 1
        masks = [part.view_as(value) for part, value in zip(kept.split([value.numel() for value in original]), original)]
        with torch.no_grad():
            for (_, value), first, mask in zip(named, original, masks):
                value.copy_(first * mask)
    optimiser = torch.optim.Adam(parameters(net), lr=settings["lr"])
    for _ in range(settings["epochs"]):
        optimiser.zero_grad()
        F.cross_entropy(net(case.x("retain")), case.y("retain")).backward()
        for (_, value), mask in zip(named, masks):
            value.grad.mul_(mask)
        optimiser.step()
    return net


def boundary_shrink(case, settings):
    net, x, y = case.net(), case.x("forget").requires_grad_(), case.y("forget")
    slope = torch.autograd.grad(F.cross_entropy(net(x), y), x)[0]
    moved = (case.pixels[case.rows["forget"]].double() + 255 * settings["epsilon"] * slope.sign()).clamp(0, 255)
    beyond = net(((moved + 0.5).floor() / 255 - MEAN) / DEVIATION).argmax(1)
    changed = beyond != y
    assert changed.any()
    optimiser = sgd(net.train(), settings["lr"], decay=0.0)
    for _ in range(settings["epochs"]):
        step(optimiser, F.cross_entropy(net(x.detach()[changed]), beyond[changed]))
    return net


# By the name of the vector: the case, the function, and the parameters, which are those of the method in the crate too.
PASSES = {"lr": 0.1, "epochs": 2}
FASTER = {"weight": 34.0, "steepness": 2.0, "epochs": 2, "share": 1.0, "lr": 0.01, "batch": 2}
METHODS = {
    "mlp.ssd": (ssd, {"alpha": 1.2, "lambda": 0.8, "batch": 1}),
    "cnn.ssd": (ssd, {"alpha": 1.2, "lambda": 0.8, "batch": 1}),
    "convnet.ssd": (ssd, {"alpha": 1.2, "lambda": 0.8, "batch": 3}),
    "mlp.lfssd": (lfssd, {"alpha": 1.1, "lambda": 0.9, "batch": 2}),
    "convnet.lfssd": (lfssd, {"alpha": 1.1, "lambda": 0.9, "batch": 1}),
    "mlp.fisher": (fisher, {"alpha": 1e-3, "exponent": 0.5}),
    "cnn.fisher": (fisher, {"alpha": 1e-3, "exponent": 0.25}),
    "mlp.ntk.head": (ntk, {"parameters": "head", "weight_decay": 0.1}),
    "mlp.ntk.all": (ntk, {"parameters": "all", "weight_decay": 0.1}),
    "cnn.ntk.all": (ntk, {"parameters": "all", "weight_decay": 0.1, "strength": 0.5}),
    "mlp.influence.first": (influence, {"order": "first", "parameters": "all", "instead": "relabel", "strength": 0.05}),
    "mlp.influence.first.head": (influence, {"order": "first", "parameters": "head", "instead": "remove", "strength": 0.05}),
    "mlp.influence.second": (influence, {"order": "second", "parameters": "all", "instead": "remove", "damping": 3.0, "tolerance": 1e-9}),
    "mlp.influence.second.head": (influence, {"order": "second", "parameters": "head", "instead": "relabel", "damping": 0.1, "tolerance": 1e-9}),
    "cnn.influence.second": (influence, {"order": "second", "parameters": "all", "instead": "remove", "damping": 5.0, "tolerance": 1e-9}),
    "mlp.woodfisher": (woodfisher, {"alpha": 0.5, "samples": 10}),
    "mlp.random-label": (relabelled, PASSES),
    "cnn.random-label": (relabelled, PASSES),
    "mlp.salun": (salun, {**PASSES, "saliency": 0.5}),
    "cnn.salun": (salun, {**PASSES, "saliency": 0.5}),
    "mlp.scrub": (scrub, {"preset": "small", "lr": 0.01, "epochs": 3, "max_epochs": 2}),
    "cnn.scrub": (scrub, {"preset": "large", "lr": 0.05, "epochs": 3, "max_epochs": 2}),
    "mlp.gradient-ascent": (gradient_ascent, {"lr": 0.05, "epochs": 3}),
    "cnn.gradient-ascent": (gradient_ascent, {"lr": 0.05, "epochs": 3}),
    "mlp.neggrad": (neggrad, {"alpha": 0.7, "lr": 0.05, "epochs": 3}),
    "cnn.neggrad": (neggrad, {"alpha": 0.7, "lr": 0.05, "epochs": 3}),
    "mlp.sparse": (sparse, {"gamma": 0.05, "tail": 1, "lr": 0.05, "epochs": 4}),
    "cnn.sparse": (sparse, {"gamma": 0.05, "tail": 1, "lr": 0.05, "epochs": 4}),
    "mlp.distillation": (distillation, {"student": "original", "weight": 0.5, "temperature": 4.0, "lr": 0.02, "epochs": 3}),
    "mlp.jit": (jit, {"perturbations": 3, "sigma": 0.5, "lr": 0.05, "batch": 2, "accumulate": False}),
    "mlp.jit.accumulated": (jit, {"perturbations": 3, "sigma": 0.5, "lr": 0.05, "batch": 2, "accumulate": True}),
    "cnn.jit": (jit, {"perturbations": 2, "sigma": 0.5, "lr": 0.05, "batch": 128, "accumulate": False}),
    "mlp.prune": (prune, {"score": "synflow", "density": 0.4, "rounds": 5, "lr": 0.01, "epochs": 3}),
    "mlp.boundary-shrink": (boundary_shrink, {"epsilon": 0.3, "lr": 0.05, "epochs": 3}),
    "mlp.bad-teacher": (bad_teacher, {"epochs": 2, "share": 0.6, "temperature": 2.0, "lr": 0.02, "batch": 4}),
    "cnn.bad-teacher": (bad_teacher, {"epochs": 2, "share": 1.0, "temperature": 1.0, "lr": 0.02, "batch": 4}),
    "mlp.amnesiac": (amnesiac, {"epochs": 2, "share": 0.6, "lr": 0.02, "batch": 4}),
    "cnn.amnesiac": (amnesiac, {"epochs": 2, "share": 1.0, "lr": 0.02, "batch": 4}),
    "mlp.accelerated.finetune": (accelerated, {**FASTER, "variant": "finetune", "ranks": "own"}),
    "mlp.accelerated.sparse": (accelerated, {**FASTER, "variant": "sparse", "ranks": "own"}),
    "mlp.accelerated.scrub": (accelerated, {**FASTER, "variant": "scrub", "ranks": "own", "lr": 0.1}),
    "mlp.accelerated.pooled": (accelerated, {**FASTER, "variant": "finetune", "ranks": "pooled"}),
    "cnn.accelerated.finetune": (accelerated, {**FASTER, "variant": "finetune", "ranks": "own"}),
    "mlp.silver-linings": (silver_linings, {"lambda": 0.5, "lr": 0.02, "epochs": 12, "share": 1.0}),
    "cnn.silver-linings": (silver_linings, {"lambda": 2.0, "lr": 0.02, "epochs": 6, "share": 1.0}),
}
DRAWN = {
    "mlp.accelerated.finetune": {"epochs": [{"max": [], "steps": [[[2, 0], [0, 1, 2], [1, 0, 3]], [[4, 3, 1], [2, 1, 0], [0, 1, 4]]]}, {"max": [], "steps": [[[1, 3], [1, 0, 2], [2, 1, 3]], [[2, 4, 0], [0, 2, 1], [0, 2, 3]]]}]},
    "mlp.accelerated.sparse": {"epochs": [{"max": [], "steps": [[[2, 0], [0, 1, 2], [1, 0, 3]], [[4, 3, 1], [2, 1, 0], [0, 1, 4]]]}, {"max": [], "steps": [[[1, 3], [1, 0, 2], [2, 1, 3]], [[2, 4, 0], [0, 2, 1], [0, 2, 3]]]}]},
    "mlp.accelerated.scrub": {"epochs": [{"max": [[0, 1, 2]], "steps": [[[2, 0], [0, 1, 2], [1, 0, 3]], [[4, 3, 1], [2, 1, 0], [0, 1, 4]]]}, {"max": [[1, 0, 2]], "steps": [[[1, 3], [1, 0, 2], [2, 1, 3]], [[2, 4, 0], [0, 2, 1], [0, 2, 3]]]}]},
    "mlp.accelerated.pooled": {"epochs": [{"max": [], "steps": [[[2, 0], [0, 1, 2], [1, 0, 3]], [[4, 3, 1], [2, 1, 0], [0, 1, 4]]]}, {"max": [], "steps": [[[1, 3], [1, 0, 2], [2, 1, 3]], [[2, 4, 0], [0, 2, 1], [0, 2, 3]]]}]},
    "cnn.accelerated.finetune": {"epochs": [{"max": [], "steps": [[[2, 0], [0, 1, 2], [1, 0, 3]], [[4, 3, 1], [2, 1, 0], [0, 1, 4]]]}, {"max": [], "steps": [[[1, 3], [1, 0, 2], [2, 1, 3]], [[2, 4, 0], [0, 2, 1], [0, 2, 3]]]}]},
    "mlp.amnesiac": {"labels": [2, 0, 1], "batches": [[[2, 5, 6, 1], [0, 4]], [[1, 4, 2, 0], [5, 6]]]},
    "cnn.amnesiac": {"labels": [2, 0, 1], "batches": [[[2, 5, 7, 1], [0, 3, 4, 6]], [[7, 4, 2, 0], [5, 6, 3, 1]]]},
    "mlp.bad-teacher": {"batches": [[[5, 0, 4, 6], [2, 1]], [[5, 2, 6, 0], [4, 1]]]},
    "cnn.bad-teacher": {"batches": [[[5, 0, 7, 6], [3, 1, 2, 4]], [[5, 2, 3, 0], [4, 1, 7, 6]]]},
}


def main():
    cases, tensors = {name: Case(name) for name in ARCHITECTURES}, {}
    for name, case in cases.items():
        data = {"images": case.pixels, "labels": case.labels, "original_labels": case.original, "validation": torch.tensor(case.validation)}
        data |= {"unseen.images": case.unseen_pixels, "unseen.labels": case.unseen_labels}
        tensors |= {f"{name}.{key}": value for key, value in data.items()}
        tensors |= {f"{name}.{part}": torch.tensor(case.rows[part]) for part in ("forget", "retain")}
        tensors |= {f"{name}.state.{key}": value.float() if value.is_floating_point() else value for key, value in case.start.state_dict().items()}
    for seed, (name, (method, settings)) in enumerate(METHODS.items()):
        torch.manual_seed(seed)
        case = cases[name.split(".")[0]]
        result = method(case, settings, *([DRAWN[name]] if name in DRAWN else []))
        net, given = result if isinstance(result, tuple) else (result, None)
        tensors[name] = numbers(net)
        moved = (tensors[name] - numbers(case.start)).abs().max()
        print(f"{name}: moved by {moved:.3f} at most")
        assert moved > 1e-2
        if given is not None:
            tensors[f"{name}.given"] = given
    facts = {
        "made_by": f"generate.py with torch {torch.__version__}",
        "cases": json.dumps({name: case.facts for name, case in cases.items()}),
        "parameters": json.dumps({name: settings for name, (_, settings) in METHODS.items()}),
        "drawn": json.dumps(DRAWN),
    }
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, Path(__file__).parent / "methods.safetensors", facts)


main()
