"""Where the cells of a study are computed: in processes of this machine, or on a Ray cluster."""

from topiarist.studies.executors.base import Ended, Executor, Pool, attempt
from topiarist.studies.executors.local import Local, default_workers
from topiarist.studies.executors.ray import RayCluster

__all__ = ["Ended", "Executor", "Local", "Pool", "RayCluster", "attempt", "default_workers"]
