"""What a model really reads: cuts, effective length, counterfactuals, overshadowing, read-outs."""

from longclip_lab.probing.counterfactual import (
    CounterfactualProbe,
    Hallucination,
    PairScores,
    SentenceScores,
    counterfactual_probe,
    drop_lowest,
    hallucination,
    majority_limit,
    pair_scores,
    sentence_scores,
    truth_margin,
)
from longclip_lab.probing.effective_length import EffectiveLength, effective_length, lengths_of
from longclip_lab.probing.linear_probe import Readout, presence_readout
from longclip_lab.probing.overshadowing import Overshadowing, overshadowing
from longclip_lab.probing.truncation import (
    CONTROLS,
    TruncationCurve,
    default_cuts,
    randomise_positions,
    truncation_curve,
)
from longclip_lab.stats import newcombe, wilson

__all__ = [
    "CONTROLS",
    "CounterfactualProbe",
    "EffectiveLength",
    "Hallucination",
    "Overshadowing",
    "PairScores",
    "Readout",
    "SentenceScores",
    "TruncationCurve",
    "counterfactual_probe",
    "default_cuts",
    "drop_lowest",
    "effective_length",
    "hallucination",
    "lengths_of",
    "majority_limit",
    "newcombe",
    "overshadowing",
    "pair_scores",
    "presence_readout",
    "randomise_positions",
    "sentence_scores",
    "truncation_curve",
    "truth_margin",
    "wilson",
]
