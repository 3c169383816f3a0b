"""A plan in words, assumptions first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longclip_lab.training.gpus import PAPERS_RATE, RESTART_MINUTES, SPOT_HOURS

if TYPE_CHECKING:
    from longclip_lab.training.planning import Plan

_GB = 1e9


def lines(plan: Plan) -> list[str]:
    """What is assumed, what is done, what it holds, how long it takes and what it costs."""
    recipe = plan.recipe
    machines = "spot " if plan.spot else ""
    return [
        f"{recipe.name} on {plan.count} x {machines}{plan.gpu.name}",
        f"assumed: {'; '.join(assumptions(plan))}",
        f"{plan.samples:,} pairs pass in {recipe.total_steps(plan.pairs):,} steps of "
        f"{recipe.batch_size:,}: {plan.flops:.2e} operations",
        f"memory: {_memory(plan)}",
        f"time: {_time(plan)}",
        _at_the_papers_rate(plan),
    ]


def assumptions(plan: Plan) -> list[str]:
    """Everything that does not follow from the recipe."""
    arriving = (
        "pictures arrive in time"
        if plan.arriving is None
        else f"at most {plan.arriving:g} pairs a second arrive at a GPU"
    )
    spot = [
        f"a machine is taken away every {SPOT_HOURS:g} hours, and the next step comes after "
        f"{RESTART_MINUTES:g} minutes"
    ]
    return [
        f"{plan.pairs:,} pairs",
        f"{' + '.join(map(str, plan.lengths))} tokens a pair",
        f"{plan.utilisation:.0%} of {plan.gpu.tflops:g} TFLOP/s",
        arriving,
        f"${plan.price:.2f} an hour and GPU",
        *(spot if plan.spot else []),
    ]


def _memory(plan: Plan) -> str:
    size, fits = plan.recipe.micro_batch or plan.share, plan.largest_micro_batch
    parts = plan.step_memory().parts
    named = ", ".join(f"{what} {count / _GB:.1f}" for what, count in parts.items())
    if fits is None:
        room = f"does not fit {plan.gpu.memory:.0f} GB, not even a pair at a time"
    elif fits >= plan.share:
        room = f"fits {plan.gpu.memory:.0f} GB without gradient caching"
    else:
        room = f"needs --micro-batch {fits} or less to fit {plan.gpu.memory:.0f} GB"
    return f"{plan.memory():.1f} GB a GPU for {size} pairs at a time ({named}); {room}"


def _time(plan: Plan) -> str:
    return (
        f"{plan.hours:,.1f} hours, {plan.gpu_days:,.1f} GPU days, ${plan.dollars:,.0f}, at "
        f"{plan.rate:,.0f} pairs a second and GPU"
    )


def _at_the_papers_rate(plan: Plan) -> str:
    slow = plan.as_published
    if plan.rate <= PAPERS_RATE:
        return f"both papers' runs came to {PAPERS_RATE:g} pairs a second and GPU: no slower"
    return (
        f"both papers' runs came to {PAPERS_RATE:g} pairs a second and GPU; at that rate: "
        f"{slow.hours:,.1f} hours, {slow.gpu_days:,.1f} GPU days, ${slow.dollars:,.0f}"
    )
