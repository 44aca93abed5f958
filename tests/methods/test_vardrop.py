"""What the paper on sparse variational dropout promises, beside the golden row."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import topiarist
from door import NET, run
from networks import Net, distance
from topiarist import Budget, Recipe, TopiaristError, load_data, prune
from topiarist.measure import collect, evaluate
from topiarist.methods import make
from topiarist.methods.vardrop import divergence, normal_like
from topiarist.pruning import choose
from topiarist.train import attach, fit

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)).double()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def noisy(model=None, **fields):
    """A model in double precision, its method, its graph, and an optimiser."""
    model = network() if model is None else model
    method = make("vardrop", **{"examples": 16, "warmup": (0, 0), **fields})
    return model, method, topiarist.trace(model, X), torch.optim.Adam(model.parameters(), lr=0.05)


def drowned(model, seed=1, low=-4.0, high=6.0):
    """Sets ``log alpha`` of all weights at random; weight tensor → what it is now."""
    noise, values = model.vardrop_noise, {}
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1 and "noise" not in name]
    for name, log_sigma2 in zip(names, noise.log_sigma2, strict=True):
        theta = model.get_parameter(name)
        value = low + (high - low) * torch.rand(theta.shape, generator=generator, dtype=theta.dtype)
        with torch.no_grad():
            log_sigma2.copy_(value + (theta.square() + 1e-8).log())
        values[name] = value
    return values


# the divergence


@pytest.mark.parametrize("value", [-6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 8.0])
def test_the_divergence_is_the_true_one_by_monte_carlo(value):
    # KL(N(theta, alpha theta^2) || 1 / |w|) = E log|1 + sqrt(alpha) e| - log(alpha) / 2 + C; it is 0 where alpha is
    # infinite if C = -E log|e| = (Euler's constant + log 2) / 2.
    noise = torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    true = (1 + math.exp(value / 2) * noise).abs().log().mean() - value / 2 + (0.5772156649 + math.log(2)) / 2
    # The approximation is within 0.008, and the mean of two million logarithms (deviation 1.1) within 0.003.
    assert float(divergence(torch.tensor(value))) == pytest.approx(float(true), abs=0.011)


def test_the_divergence_has_its_gradient():
    value = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(divergence, value)
    gradient = torch.autograd.grad(divergence(value).sum(), value)[0]
    assert (gradient < 0).all(), "more noise is always less far from the prior"


def test_penalty_and_loss_have_the_gradients_of_differences():
    model, method, graph, optimizer = noisy()

    def penalty():
        return method.penalty(model, graph)

    def loss():
        torch.manual_seed(5)
        return F.mse_loss(model(X), X[:, :3])

    with attach(method, model.train(), optimizer, graph):
        drowned(model, low=-9.0, high=9.0)  # some of them beyond the clamp
        tensors = [model[0].weight, model[2].weight, *model.vardrop_noise.log_sigma2]
        for value in (penalty, loss):
            for tensor, gradient in zip(tensors, torch.autograd.grad(value(), tensors), strict=True):
                for index in range(tensor.numel()):
                    assert float(gradient.view(-1)[index]) == pytest.approx(
                        difference(value, tensor, index), rel=1e-4, abs=1e-7
                    )


def difference(value, tensor, index, step=1e-6):
    """The derivative of a value in one entry of a tensor."""
    with torch.no_grad():
        flat, ends = tensor.view(-1), []
        for sign in (1, -1):
            flat[index] += sign * step
            ends.append(float(value()))
            flat[index] -= sign * step
    return (ends[0] - ends[1]) / (2 * step)


# the local reparameterisation


def weight(*shape):
    return nn.Parameter(torch.ones(shape))


LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "conv": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding="same", dilation=2, bias=False), (4, 6, 6)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "line": (nn.Conv1d(2, 3, 3, stride=2), (2, 7)),
    "space": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 3, 3)),
    "functional": (Net(lambda n, x: F.conv2d(weight=n.w, input=x, stride=2), w=weight(2, 3, 2, 2)), (3, 6, 6)),
    "product": (Net(lambda n, x: x @ n.w.T, w=weight(2, 5)), (5,)),
}
LOCAL = [kind for kind in LAYERS if kind != "product"]


def layer(kind):
    """The model, one example, its method, its graph, its optimiser, and its weight's name."""
    model, shape = LAYERS[kind]
    model = model.double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(1, *shape, generator=generator).double()
    name = next(name for name, parameter in model.named_parameters() if parameter.ndim > 1)
    graph = topiarist.trace(model, x)
    method = make("vardrop", examples=1, warmup=(0, 0), threshold=7.0)
    return model, x, method, graph, torch.optim.SGD(model.parameters(), lr=0.1), name


@pytest.mark.parametrize("kind", LOCAL)
def test_outputs_are_drawn_with_the_mean_and_variance_that_noisy_weights_give(kind):
    model, x, method, graph, optimizer, name = layer(kind)
    with torch.no_grad():
        mean = model(x)
    with attach(method, model.train(), optimizer, graph), torch.no_grad():
        log_alpha = drowned(model)[name]
        seen, drawn = [], []
        for seed in (0, 1):
            torch.manual_seed(seed)
            seen.append(model(x))
            torch.manual_seed(seed)
            drawn.append(torch.randn(mean.shape, dtype=torch.float64))
    spread = (seen[0] - seen[1]) / (drawn[0] - drawn[1])
    # By brute force: each weight alone adds its variance times the square of what it is multiplied with.
    theta = model.get_parameter(name)
    variance = torch.zeros_like(mean)
    bias = getattr(model, "bias", None)
    with torch.no_grad():
        value = theta.clone()
        if bias is not None:
            bias.zero_()
        for index in range(theta.numel()):
            theta.zero_()
            theta.view(-1)[index] = 1.0
            sigma2 = log_alpha.view(-1)[index].exp() * value.view(-1)[index] ** 2
            variance += sigma2 * model.eval()(x).square()
    torch.testing.assert_close(seen[0] - spread * drawn[0], mean)
    torch.testing.assert_close(spread.square(), variance + 1e-8, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped", "product"])
def test_outputs_are_distributed_as_if_the_weights_were_sampled(kind):
    model, x, method, graph, optimizer, name = layer(kind)
    n = 2000
    with attach(method, model.train(), optimizer, graph), torch.no_grad():
        sigma = (drowned(model)[name].exp()).sqrt() * model.get_parameter(name).abs()
        torch.manual_seed(0)
        local = torch.cat([model(x) for _ in range(n)])
    theta = model.get_parameter(name)
    with torch.no_grad():
        value, sampled = theta.clone(), []
        for _ in range(n):
            theta.copy_(value + sigma * torch.randn_like(theta))
            sampled.append(model.eval()(x))
    sampled = torch.cat(sampled)
    spread = sampled.std(0)
    assert ((local.mean(0) - sampled.mean(0)).abs() <= 5 * math.sqrt(2 / n) * spread).all()
    # The logarithm of a variance over n normal numbers deviates by sqrt(2 / n), of two of them by sqrt(4 / n).
    assert ((local.var(0) / sampled.var(0)).log().abs() <= 5 * math.sqrt(4 / n)).all()


def test_each_example_has_noise_of_its_own_unless_its_weights_are_drawn():
    model, x, method, graph, optimizer, _ = layer("linear")
    with attach(method, model.train(), optimizer, graph):
        drowned(model)
        twins = model(x.expand(2, -1))
        assert not torch.isclose(twins[0], twins[1]).any()


# the training


def test_noise_is_drawn_along_the_memory_of_any_layout():
    x = torch.zeros(2, 3, 4, 5)
    for layout in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[:, :1].expand(2, 3, 4, 5)):
        torch.manual_seed(0)
        drawn = normal_like(layout)
        torch.manual_seed(0)
        assert torch.equal(drawn.as_strided((120,), (1,)), torch.randn(120))
        assert drawn.stride() == torch.empty_like(layout).stride()


def test_log_alpha_is_clamped_at_eight():
    """Beyond it the noise follows the weight, and no variance has a gradient of the divergence."""
    model, method, graph, optimizer = noisy(nn.Linear(5, 3).double())
    with attach(method, model.train(), optimizer, graph):
        noise, theta = model.vardrop_noise, model.weight
        for given, clamped in ((-20.0, -8.0), (-7.5, -7.5), (7.5, 7.5), (20.0, 8.0)):
            with torch.no_grad():
                noise.log_sigma2[0].copy_(given + (theta.square() + 1e-8).log())
            k1, k2, k3 = 0.63576, 1.87320, 1.48695
            one = k1 / (1 + math.exp(k2 + k3 * clamped)) + 0.5 * math.log(1 + math.exp(-clamped))
            penalty = method.penalty(model, graph)
            assert float(penalty.detach()) == pytest.approx(15 * one / 16, rel=1e-9)
            (gradient,) = torch.autograd.grad(penalty, [noise.log_sigma2[0]])
            assert bool(gradient.any()) == (given == clamped)
            expected = math.exp(clamped / 2) * theta.detach().abs()
            torch.testing.assert_close(noise.sigma(theta).detach(), expected)


@pytest.mark.parametrize("drawn", ["outputs", "weights"])
@pytest.mark.nightly
def test_the_mean_of_noisy_weights_is_clipped_where_it_is_asked_for(drawn):
    """Its noise stays: the authors clip the mean alone."""
    for clip in (False, True):
        model, method, graph, optimizer = noisy(nn.Linear(5, 3).double(), clip_mean=clip)
        if drawn == "weights":
            model.forward = lambda x, model=model: x @ model.weight.T + model.bias
        with attach(method, model.train(), optimizer, graph), torch.no_grad():
            alpha = drowned(model)["weight"]
            torch.manual_seed(0)
            outputs = torch.cat([model(X[:1]) for _ in range(4000)])
            theta = model.weight.clone()
        kept = theta.masked_fill(alpha >= 3, 0) if clip else theta
        assert (alpha >= 3).any()
        mean, spread = X[0] @ kept.T + model.bias, (X[0].square() @ (alpha.exp() * theta.square()).T).sqrt()
        assert ((outputs.mean(0) - mean).abs() <= 5 * spread / math.sqrt(4000)).all()
        assert ((outputs.var(0).log() - spread.square().log()).abs() <= 5 * math.sqrt(2 / 4000)).all()


def test_evaluation_is_free_of_noise_and_the_end_is_what_it_saw():
    model, method, graph, optimizer = noisy()
    keys = model.state_dict().keys()
    with attach(method, model, optimizer, graph) as attached:
        log_alpha = drowned(model)
        assert attached.parameters == tuple(model.vardrop_noise.log_sigma2)
        assert optimizer.param_groups[-1]["params"] == list(attached.parameters)
        assert not torch.equal(model.train()(X), model(X))
        wanted = model.eval()(X)
        assert torch.equal(model(X), wanted)
    assert torch.equal(model(X), wanted)
    for name, value in log_alpha.items():
        assert torch.equal(model.get_parameter(name) == 0, value >= 3)
    assert model.state_dict().keys() == keys
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert list(topiarist.trace(model, X).shapes) == list(graph.shapes), "what is left for the score is no layer"


def test_a_model_that_fails_leaves_no_noise_behind():
    model, method, graph, optimizer = noisy()
    with attach(method, model.train(), optimizer, graph):
        drowned(model)
        with pytest.raises(RuntimeError, match="shape"):
            model(X[:, :3])
        assert torch.equal(F.linear(X, model[0].weight), X @ model[0].weight.T)


def test_the_divergence_warms_up_over_the_training():
    model, method, graph, optimizer = noisy(warmup=(0.25, 0.75), steps=8)
    seen = []
    with attach(method, model, optimizer, graph):
        full = float(make("vardrop", examples=16, warmup=(0, 0)).penalty(model, graph).detach())
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(8):
            seen.append(float(method.penalty(model, graph).detach()))
            model(X).sum().backward()
            optimizer.step()
    assert seen == pytest.approx([full * part for part in (0, 0, 0, 0.25, 0.5, 0.75, 1, 1)], rel=1e-6)
    assert make("vardrop", steps=3).in_training(10, 50) == make("vardrop", examples=10, steps=3)


def test_removed_weights_stay_zero_and_make_no_noise():
    model, method, graph, optimizer = noisy()
    rooms = graph.weights()
    keep = {group.name: torch.arange(group.units) % 2 == 0 for group in rooms.groups}
    keep["0.weight"] = torch.zeros(30, dtype=torch.bool)
    with attach(method, model.train(), optimizer, rooms, keep):
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(model(X), X[:, :3]).backward()
            optimizer.step()
            for name, kept in keep.items():
                assert not model.get_parameter(name).flatten()[~kept].any()
        hidden = []
        model[0].register_forward_hook(lambda module, args, output: hidden.append(output))
        model(X)
    # The first layer has nothing but its bias left; 1e-8 is added to each variance.
    torch.testing.assert_close(hidden[0], model[0].bias.expand(16, -1), rtol=0, atol=1e-3)


@pytest.mark.nightly
def test_most_weights_of_the_digits_go_at_little_loss():
    data = load_data("digits")
    recipe = Recipe(epochs=40, batch_size=128, lr=0.01, optimizer="adam", schedule="linear", weight_decay=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    done = prune(
        model,
        data.example(),
        topiarist.Pruning.of(make("vardrop", warmup=(0.1, 0.8)), sparse_training=recipe),
        data=data,
    )
    assert done.proof.ok
    kept = sum(int(kept.sum()) for kept in done.keep.values())
    assert kept <= 0.06 * (6400 + 5000 + 500)
    assert kept == sum(int((done.model[index].weight != 0).sum()) for index in (1, 3, 5))
    fit(model, data, recipe)  # the same network without noise
    assert evaluate(done.model, data) >= evaluate(model, data) - 2.5
    x, _ = next(iter(data.batches("test", 64)))
    assert torch.equal(done.model.eval()(x), done.trained.eval()(x)), "what the noise drowned is not missed"
    fit(done.model, data, Recipe(epochs=1, lr=0.01), graph=done.graph, keep=done.keep)
    assert kept == sum(int((done.model[index].weight != 0).sum()) for index in (1, 3, 5))


@pytest.mark.nightly
def test_convolutions_train_with_a_budget_and_in_steps():
    data = load_data("digits").subset(256)
    recipe = Recipe(epochs=3, lr=0.003, optimizer="adam", schedule="constant")
    torch.manual_seed(0)
    model = topiarist.make_model(NET, in_channels=1, classes=10, input_size=8)()
    for steps in (1, 2):
        request = topiarist.Pruning.of("vardrop", 0.3, steps=steps, sparse_training=recipe)
        done = prune(model, data.example(), request, data=data)
        units = sum(len(kept) for kept in done.keep.values())
        assert sum(int(kept.sum()) for kept in done.keep.values()) == pytest.approx(0.3 * units, abs=1)
        assert done.proof.ok


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path):
    data = load_data("digits").subset(128)
    recipe = Recipe(epochs=4, lr=0.003, optimizer="adam", schedule="constant", batch_size=32)

    def trained(stop, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        graph = topiarist.trace(model, data.example())

        def progress(epoch, epochs, row):
            if epoch == stop:
                raise KeyboardInterrupt

        method = make("vardrop", warmup=(0.0, 1.0))
        fit(model, data, recipe, method=method, graph=graph, progress=progress, **options)
        return model.state_dict()

    whole = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(2, checkpoint=tmp_path / "state.pt")
    again = trained(None, checkpoint=tmp_path / "state.pt")
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


# the choice


def test_scores_follow_the_noise_and_without_training_the_weights():
    model, method, graph, optimizer = noisy()
    rooms = graph.weights()
    order = method.score(graph, collect(model, rooms))["0.weight"].argsort()
    assert torch.equal(order, model[0].weight.detach().abs().flatten().argsort())
    with attach(method, model, optimizer, graph):
        log_alpha = drowned(model)
    scores = method.score(graph, collect(model, rooms))
    keep = choose(method, rooms, collect(model, rooms), Budget(ratio=0.25))
    threshold = torch.cat([value.flatten() for value in log_alpha.values()]).sort().values[12]
    for name, value in log_alpha.items():
        alive = value < 3
        torch.testing.assert_close(scores[name][alive.flatten()], -value[alive])
        assert (scores[name][~alive.flatten()] < -3).all()
        assert torch.equal(keep[name], value.flatten() < threshold)
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    kept = method.select(graph, collect(fresh, rooms), None)
    assert torch.equal(kept["0.weight"], model[0].weight.flatten() != 0), "of a file only the zeros speak"


def test_a_budget_takes_no_weight_that_the_noise_has_not_ranked():
    model, method, graph, _ = noisy()
    rooms = graph.weights()
    with pytest.raises(TopiaristError, match="this budget prunes units that vardrop has not trained"):
        choose(method, rooms, collect(model, rooms), Budget(ratio=0.25))
    assert all(bool(kept.all()) for kept in method.select(graph, collect(model, rooms), None).values())


def test_one_weight_of_a_tensor_stays():
    model, method, graph, optimizer = noisy()
    with attach(method, model, optimizer, graph):
        drowned(model, low=4.0, high=6.0)
    keep = method.select(graph, collect(model, graph.weights()), None)
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {"0.weight": 1, "2.weight": 1}


@pytest.mark.nightly
def test_the_command_line_trains_with_noise(tmp_path, capsys):
    words = ["--method", "vardrop", "--method.warmup", "[0, 0]", "--data", "digits?train=600", "--train.epochs", 8]
    words += ["--train.optimizer", "adam", "--train.lr", 0.02, "--epochs", 1, "--out", tmp_path, "--json"]
    assert run("prune", NET, *words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["params"]["after"] < 0.9 * summary["params"]["before"]
    assert summary["proof"]["max_rel_diff"] <= 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("vardrop", threshold=math.nan), "threshold must be a finite number"),
        (lambda: make("vardrop", start=math.inf), "start must be a finite number"),
        (lambda: make("vardrop", warmup=(0.5, 0.2)), "warmup must be two rising fractions"),
        (lambda: make("vardrop", warmup=(0.5,)), "warmup"),
        (lambda: make("vardrop", steps=0), "steps must be the number of training steps"),
        (lambda: make("vardrop", examples=0), "examples must be the number"),
        (
            lambda: make("vardrop").penalty(network(), topiarist.trace(network(), X)),
            "needs its noise in training",
        ),
        (lambda: _stepped(examples=None), "say how many, examples="),
        (lambda: _stepped(warmup=(0.1, 0.2)), "say how many steps it has, steps="),
    ],
)
def test_what_it_cannot_do_is_refused(call, message):
    with pytest.raises(TopiaristError, match=message):
        call()


def _stepped(**fields):
    model, method, graph, optimizer = noisy(**fields)
    with attach(method, model, optimizer, graph):
        optimizer.step()


def test_noise_and_weights_can_be_twice_in_a_network():
    shared = nn.Linear(5, 5, bias=False)
    model = Net(lambda n, x: n.b(n.a(x).tanh()), a=shared, b=shared).double()
    model, method, graph, optimizer = noisy(model)
    with attach(method, model.train(), optimizer, graph):
        assert len(model.vardrop_noise.log_sigma2) == 1
        model(X).sum().backward()
        assert model.vardrop_noise.log_sigma2[0].grad.abs().sum() > 0
    assert distance(model.eval()(X), model(X)) == 0
