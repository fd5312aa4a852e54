"""Generation: one engine for rollouts, evaluation and chat."""

from fathom.infer.engine import Engine
from fathom.infer.experts import replay_of
from fathom.infer.request import Details, Forced, Piece, Request
from fathom.infer.speculate import SpeculationReport, speculate_greedy

__all__ = ["Details", "Engine", "Forced", "Piece", "Request", "SpeculationReport", "replay_of", "speculate_greedy"]
