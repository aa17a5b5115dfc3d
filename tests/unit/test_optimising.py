import math

import pytest
import torch

from isoslide import optimising

torch.set_num_threads(1)


def test_gradients_are_clipped_per_model():
    parameters = [torch.zeros(2, 3, 4, requires_grad=True), torch.zeros(2, 5, requires_grad=True)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
        parameter.grad[1] *= 100
    norms = optimising.clip(parameters, 20.0)
    assert norms.tolist() == pytest.approx([math.sqrt(17), 100 * math.sqrt(17)])
    assert parameters[0].grad[0].unique().tolist() == [1]
    clipped = torch.cat([parameter.grad[1].flatten() for parameter in parameters]).norm()
    assert clipped.item() == pytest.approx(20, rel=1e-5)


def test_adamw_cosine_is_that_of_the_definition():
    """Two models against the update written out, over the whole course."""
    steps, highest, decay = 40, 0.003, 0.02
    settings = {"optimiser": "adamw_cosine", "steps": steps, "learning_rate": highest, "weight_decay": decay}
    g = torch.Generator().manual_seed(0)
    ours = torch.randn(2, 3, generator=g).requires_grad_()
    value = ours.detach().double().clone()
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    optimiser, schedule = optimising.build([ours], settings)
    for step in range(steps):
        gradient = torch.randn(2, 3, generator=g)
        ours.grad = gradient.clone()
        rate = highest * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 1) / 39)) / 2)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(rate)
        optimiser.step()
        schedule.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        value -= rate * decay * value
        value -= rate * first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    torch.testing.assert_close(ours.detach().double(), value, atol=1e-6, rtol=1e-5)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", list(optimising.OPTIMISERS))
def test_a_models_course_does_not_depend_on_its_neighbours(name):
    settings = {"optimiser": name, "steps": 10, "learning_rate": 0.003, "weight_decay": 0.02}
    start = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    courses = []
    for chosen in (slice(0, 3), slice(1, 2)):
        parameter = start[chosen].clone().requires_grad_()
        optimiser, schedule = optimising.build([parameter], settings)
        for step in range(9):
            parameter.grad = torch.sin(start[chosen] * (step + 1))
            optimiser.step()
            schedule.step()
        courses.append(parameter.detach())
    torch.testing.assert_close(courses[0][1:2], courses[1], atol=1e-7, rtol=1e-6)
