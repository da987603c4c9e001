"""Two real processes over gloo share a Llama's sequences: logits and gradients of the whole."""

import json

import torch.multiprocessing as mp
from context_ranks import WORLD, main


def test_chunks_of_sequences_give_what_whole_ones_give(tmp_path):
    mp.start_processes(main, (str(tmp_path),), nprocs=WORLD, start_method="spawn")
    for rank in range(WORLD):
        result = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert result == "", f"rank {rank}: {result}"
