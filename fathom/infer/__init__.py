"""Generation: one engine for rollouts, evaluation and chat."""

from fathom.infer.engine import Engine
from fathom.infer.request import Piece, Request
from fathom.infer.speculate import SpeculationReport, speculate_greedy

__all__ = ["Engine", "Piece", "Request", "SpeculationReport", "speculate_greedy"]
