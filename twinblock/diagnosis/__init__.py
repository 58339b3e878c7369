"""Is it learning, or has it collapsed? Indicators of embeddings, a verdict on them in words, and what to change."""

from twinblock.diagnosis.advice import advice
from twinblock.diagnosis.chance import Accuracy
from twinblock.diagnosis.measures import indicators
from twinblock.diagnosis.verdict import Verdict, judge, outcome, verdict, worst

__all__ = ["Accuracy", "Verdict", "advice", "indicators", "judge", "outcome", "verdict", "worst"]
