"""What a model really reads: cuts, effective length, counterfactuals, overshadowing, read-outs."""

from longclip_lab.probing.along import ReadAlong, read_along
from longclip_lab.probing.counterfactual import (
    CounterfactualProbe,
    PairScores,
    counterfactual_probe,
    newcombe,
    pair_scores,
    wilson,
)
from longclip_lab.probing.effective_length import EffectiveLength, effective_length, lengths_of
from longclip_lab.probing.filtering import SentenceScores, drop_lowest, sentence_scores
from longclip_lab.probing.hallucination import (
    Hallucination,
    hallucination,
    majority_limit,
    truth_margin,
)
from longclip_lab.probing.overshadowing import Overshadowing, overshadowing
from longclip_lab.probing.readout import Readout, presence_readout
from longclip_lab.probing.truncation import (
    CONTROLS,
    TruncationCurve,
    default_cuts,
    randomise_positions,
    truncation_curve,
)

__all__ = [
    "CONTROLS",
    "CounterfactualProbe",
    "EffectiveLength",
    "Hallucination",
    "Overshadowing",
    "PairScores",
    "ReadAlong",
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
    "read_along",
    "sentence_scores",
    "truncation_curve",
    "truth_margin",
    "wilson",
]
