"""Evaluate: score a model on rows (`score`), by generated answers, by ranked candidates, or by the loss."""

from graft.evaluate.scoring import METRICS, Scores, checked_metric, choose_metric, loss, score

__all__ = ["METRICS", "Scores", "checked_metric", "choose_metric", "loss", "score"]
