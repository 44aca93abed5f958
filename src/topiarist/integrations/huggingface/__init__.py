"""Pruned models of Hugging Face's transformers: saved so that they load again, and never with weights drawn anew.

A configuration states one width for all layers. Where it can state the shape of the pruned network, the folder is what
transformers writes, and `from_pretrained` of transformers loads it. Where it cannot, the folder holds the original
configuration, and beside it the weights and the architecture as `topiarist.save` writes them; transformers refuses that
folder with an error that names `from_pretrained` of this package. Which of both it is, is tried and not looked up.
"""

from topiarist.integrations.huggingface.heads import whole_heads
from topiarist.integrations.huggingface.loading import from_pretrained
from topiarist.integrations.huggingface.saving import Saved, save_pretrained

__all__ = ["Saved", "from_pretrained", "save_pretrained", "whole_heads"]
