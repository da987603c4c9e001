"""Any architecture that transformers ships, as a program.

config.py     a hub id, a folder or a config.json -> config; fewer layers of it
classes.py    which class to build, and which phases it can run
attention.py  one fused op behind transformers' attention interface
masks.py      what a mask lets a query see, without building it
cache.py      KV caches written in place, as servers' are
inputs.py     tensors of the right names and sizes, from the config
program.py    the pieces as one `Program`

Plans over many ranks:

sharded.py    one rank's program: the model's own plans, applied
legality.py   which plans there are, and why not others
stage.py      a range of layers as a model of its own
rank.py       a stage as a `Program`: receive, run, send
experts.py    experts on several ranks, routing balanced
context.py    two chunks of every sequence
recompute.py  gradient checkpointing
"""

from .program import HuggingFaceProgram

__all__ = ["HuggingFaceProgram"]
