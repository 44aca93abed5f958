"""What layers cost at each width on a runtime: measured alone, kept in a cache."""

from topiarist.deploy.prices.cache import Cache
from topiarist.deploy.prices.layers import Layer, layers_of
from topiarist.deploy.prices.table import fastest, latency_table, machine, ratio_of

__all__ = ["Cache", "Layer", "fastest", "latency_table", "layers_of", "machine", "ratio_of"]
