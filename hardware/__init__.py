"""Chip descriptions: one TOML file a chip, every number with its public source.

Importing this package reads nothing and does not import torch.
"""

from .loader import Chip, ChipError, Constant, chip_ids, load_chip

__all__ = ["Chip", "ChipError", "Constant", "chip_ids", "load_chip"]
