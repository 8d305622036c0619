"""Evaluate: score a model on rows (`score`), by generated answers, by ranked candidates, or by the loss."""

from graft.evaluate.scoring import METRICS, Scores, choose_metric, loss, score

__all__ = ["METRICS", "Scores", "choose_metric", "loss", "score"]
