"""Schedule, AdamW against its own definition, moments that can be put back."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinylora.training.optimiser import BETAS, Optimiser, Schedule, thin


def test_schedule_rises_falls_and_stays_at_a_tenth():
    schedule = Schedule(1.0, 4, 100)
    rates = [schedule.at(step) for step in range(130)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(1.0)
    assert rates[52] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[100:] == pytest.approx([0.1] * 30)


def test_short_runs_reach_their_peak():
    assert max(Schedule(1.0, 100, 8).at(step) for step in range(8)) == pytest.approx(1.0)


@given(st.floats(1e-5, 1), st.integers(0, 50), st.integers(1, 500), st.integers(0, 600))
def test_rates_are_positive_and_below_the_peak(peak, warmup, total, step):
    rate = Schedule(peak, warmup, total).at(step)
    assert 0 < rate <= peak * (1 + 1e-12)


def _naive_adamw(x, gradients, schedule):
    """Kingma and Ba, algorithm 1, without decay; gradients clipped to norm 1."""
    m = v = torch.zeros_like(x)
    for step, gradient in enumerate(gradients):
        gradient = gradient / max(1.0, gradient.norm().item() + 1e-6)
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * gradient**2
        corrected = (v / (1 - BETAS[1] ** (step + 1))).sqrt() + 1e-8
        x = x - schedule.at(step) * m / (1 - BETAS[0] ** (step + 1)) / corrected
    return x


def test_steps_follow_the_definition():
    gradients = [torch.randn(5) * scale for scale in (0.1, 3.0, 0.5, 2.0)]
    start, schedule = torch.randn(5), Schedule(0.1, 1, 10)
    parameter = torch.nn.Parameter(start.clone())
    optimiser = Optimiser([parameter], schedule)
    for step, gradient in enumerate(gradients):
        optimiser.step((parameter * gradient).sum(), step)
    torch.testing.assert_close(parameter.detach(), _naive_adamw(start, gradients, schedule), rtol=1e-4, atol=1e-5)


def test_moments_can_be_put_back_any_number_of_times():
    parameter, schedule = torch.nn.Parameter(torch.zeros(3)), Schedule(0.1, 0, 10)
    first = Optimiser([parameter], schedule)
    first.step((parameter * torch.tensor([1.0, -2.0, 0.5])).sum(), 0)
    moments, start = first.moments(), parameter.detach().clone()
    results = []
    for _ in range(2):
        again = torch.nn.Parameter(start.clone())
        optimiser = Optimiser([again], schedule, moments)
        optimiser.step((again**2).sum(), 1)
        results.append(again.detach().clone())
    first.step((parameter**2).sum(), 1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], parameter.detach())


@given(st.lists(st.floats(0, 10), max_size=50), st.integers(1, 12))
def test_thinned_losses_keep_their_mean_weighted_by_length(losses, n_points):
    points = thin(losses, n_points)
    assert len(points) == min(n_points, len(losses))
    if losses and len(losses) % len(points) == 0:
        assert math.fsum(points) / len(points) == pytest.approx(math.fsum(losses) / len(losses))
