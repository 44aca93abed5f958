"""Sentences that stand in the page and in the Markdown file alike."""

PAIRED = (
    "Each comparison pairs runs of the same seed. An arm is ahead where the 95 % t interval of the mean difference "
    "leaves out zero; intervals are not corrected for their number."
)

POOLED = (
    "Over several prunings a seed's difference is their mean, each counting alike: prunings of one seed share its "
    "trained network, so that only seeds are repetitions."
)

PUBLISHED = (
    "Published numbers come from the papers' own settings: they show which way a comparison went there, and are not "
    "meant to be met here."
)

HOW = (
    "Per seed, one network is trained, pruned by each method, and every pruned network is trained on (fine-tuned) or "
    "its shape is trained anew from random weights: for as many epochs as the unpruned network (Scratch-E), or for as "
    "much compute, epochs × MACs before ∕ MACs after, up to the cap below (Scratch-B). Trained like Scratch-B, a "
    "uniformly narrowed network shows what the choice of widths is worth, and one whose weights went at random what "
    "the choice of weights is; guided and transferred networks have the shape of a design pattern: the average, stage "
    "by stage, of what the method left at all seeds, of this network or of another one. All these have as many "
    "parameters as the pruned network where single weights go or the budget is in parameters, else as many MACs. "
    "Where the budget is in MACs alone the methods share the uniform network; methods that narrow all layers alike "
    "give one and the same shape, and so the same networks from scratch. MACs of sparse networks count nonzero "
    "weights; files and latency are those of dense tensors. Latency is measured here, one example at a time."
)
