"""What layers cost on a runtime: at each width, measured alone and kept in a cache; at each density, all together."""

from topiarist.deploy.prices.cache import Cache
from topiarist.deploy.prices.layers import Layer, layers_of
from topiarist.deploy.prices.table import fastest, latency_table, machine, ratio_of
from topiarist.deploy.prices.zeros import zeros_table

__all__ = ["Cache", "Layer", "fastest", "latency_table", "layers_of", "machine", "ratio_of", "zeros_table"]
