"""Deep Compression: few distinct weights a layer, and one file near their entropy (Han et al. 2016).

Examples:
    >>> from topiarist import compress
    >>> shared = compress.share(model, bits=5)  # k-means over the nonzero weights of each layer # doctest: +SKIP
    >>> with shared.tied():  # the centroids train on # doctest: +SKIP
    ...     topiarist.fit(shared.model, data, topiarist.Recipe.finetune())
    >>> print(compress.save(shared.model, "small.tpcf"))  # bytes of each tensor, and its entropy # doctest: +SKIP
    >>> model = compress.load_model(make_model, "small.tpcf")  # doctest: +SKIP
"""

from topiarist.compress.binary import bits_of
from topiarist.compress.clusters import Clusters, cluster
from topiarist.compress.container import MAGIC
from topiarist.compress.files import load, load_architecture, load_both, load_model, pack, save, unpack
from topiarist.compress.report import Report, Row
from topiarist.compress.sharing import Shared, share, share_state

__all__ = [
    "MAGIC",
    "Clusters",
    "Report",
    "Row",
    "Shared",
    "bits_of",
    "cluster",
    "load",
    "load_architecture",
    "load_both",
    "load_model",
    "pack",
    "save",
    "share",
    "share_state",
    "unpack",
]
