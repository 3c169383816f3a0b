"""What the report explains whatever the results are: methods, definitions, cautions.

No finding stands here; findings are computed.
"""

from __future__ import annotations

TITLE = "How much of a caption does CLIP read?"

CONTROLS = {
    "as written": "The caption as it is: a summary, then one sentence for every thing.",
    "positions re-randomised": "The same captions, read by a copy of the model whose positions "
    "from 20 on are random. Where it scores as well, those positions told it nothing.",
    "details only": "Without the summary. To score here, a model must read the details.",
    "summary last": "The summary moved to the end. If the place of the summary bends the curve, "
    "the bend moves with it.",
}

LENGTHS = {
    "half": "The first cut with half of the score that all tokens bring.",
    "plateau": "The first cut with 95% of it: what one reads off a curve by eye.",
    "marginal gain": "The last cut before a step first brings {gain:g} points a token or less.",
    "last gain": "The last cut whose step up is above 0 with 97.5% certainty.",
}

METHODS = {
    "not stretched": "77 positions; a longer text is cut.",
    "linear": "All 77 interpolated to 248. Every position changes but the first.",
    "KPS": "Knowledge-preserved stretching: the first 20 stay, the other 57 are interpolated to "
    "228.",
    "keep + random": "All 77 stay; the 171 new ones are random with the same spread. The control "
    "for interpolation.",
}

TRADEOFF = (
    ("Up and to the right is better", "Up: finds pictures by long captions. Right: by short ones."),
    ("The dotted curve", "Long and short loss with the full image feature, by the weight of the "
     "short loss. Any such mixture can be had by choosing a weight."),
    ("PCM", "The short loss against the picture's primary components instead. It brings "
     "something of its own only if it lies above the curve."),
    ("Variance kept", "What share of the image features' variance the components hold. At 100% "
     "PCM is mixing, by definition."),
)  # fmt: skip

READS = (
    "<p>Each long caption is cut after its first <i>n</i> tokens, and its picture is looked for "
    "among all pictures. The curve alone misleads: it is flat wherever the rest of the caption "
    "adds little, read or not. Three controls tell why it is flat.</p>"
)
NOTICES = (
    "<p>A sharper question: two captions differ in one word; which of them fits the picture? "
    "Chance is 50%, the answer does not depend on other pictures, and it is known exactly where "
    "the word stands and how large the thing is. Guess along:</p>"
)
STRETCHES = (
    "<p>A position is a learned vector, and there are only 77. Longer texts need more of them. "
    "Four ways, all without training; a colour stands for the old position that a new one is made "
    "from.</p>"
)
FINE_TUNES = (
    "<p>All models start from KPS. Trained on long captions only, a model may forget how to match "
    "short ones. So the short captions join the loss: with a weight, or, as in Long-CLIP, against "
    "the primary components of the picture's feature (PCM).</p>"
)
CARE = (
    "<h3>Be careful</h3><ul>"
    "<li>The intervals cover the choice of test pictures and nothing else. Every model was trained "
    "once; another seed moves the scores too. A claim needs several.</li>"
    "<li>“No difference seen” means that two 95% intervals overlap, not that there is none.</li>"
    "<li>R@1 depends on the number of pictures searched. Compare within this page only.</li>"
    "<li>The world is drawn and the model is tiny. What is seen here is a hypothesis about "
    "photographs and large models; <code>longclip-lab probe</code> and <code>longclip-lab "
    "eval</code> put the same questions to them.</li></ul>"
)
RAN = "<p>The same numbers, for machines, are in <code>results.json</code> beside this file.</p>"

PAPERS = (
    ("Zhang et al., Long-CLIP: Unlocking the Long-Text Capability of CLIP, ECCV 2024",
     "https://arxiv.org/abs/2403.15378"),
    ("Wu et al., LoTLIP: Improving Language-Image Pre-training for Long Text Understanding, "
     "NeurIPS 2024", "https://arxiv.org/abs/2410.05249"),
)  # fmt: skip
