"""Analyse: from a program to its labels and its couples."""

from __future__ import annotations

from ecospa_fx.collecting import uncollected
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.passes.couple import couple
from ecospa_fx.passes.propagate import propagate
from ecospa_fx.passes.routers import with_routers
from ecospa_fx.passes.stacks import in_vain, stacked_axes
from ecospa_fx.program import Analysis, Program


@uncollected()
def analyse(program: Program) -> tuple[CouplingGraph, Analysis]:
    """Find the couples of a program; matrices of a stack choose for themselves where they can.

    The program of the analysis carries markers where routers pick experts.

    Args:
        program: the captured program.

    Returns:
        The coupling graph, and the analysis that it holds for.
    """
    program = with_routers(program)
    graph, analysis = couple(propagate(program))
    stacked = stacked_axes(analysis, graph)
    while stacked:
        found = couple(propagate(program, stacked))
        vain = in_vain(analysis, graph, stacked, found)
        if not vain:
            return found
        stacked = {name: stack for name, stack in stacked.items() if name not in vain}
    return graph, analysis
