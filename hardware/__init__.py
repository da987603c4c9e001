"""Chips and clusters: one TOML file each, every number with its public source.

Importing this package reads nothing and does not import torch.
"""

from .clusters import Cluster, ClusterError, cluster_ids, load_cluster
from .loader import Chip, ChipError, Constant, chip_ids, load_chip

__all__ = [
    "Chip",
    "ChipError",
    "Cluster",
    "ClusterError",
    "Constant",
    "chip_ids",
    "cluster_ids",
    "load_chip",
    "load_cluster",
]
