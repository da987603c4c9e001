"""Two real processes over gloo share a transformers model: they compute what one would.

Chunks of sequences (CP), layers (PP), and experts, whose messages the trace without data is held
against.
"""

import json

import torch.multiprocessing as mp
from rank_programs import messages
from transformers_ranks import BATCH, SEQ, WORLD, main, mixtral

from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.parallel import Plan, rank_trace


def test_ranks_give_what_one_gives(tmp_path):
    mp.start_processes(main, (str(tmp_path),), nprocs=WORLD, start_method="spawn")
    sent = {"alltoall_base_": 0, "all_to_all_single": 0}
    for rank in range(WORLD):
        failed, found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert failed == "", f"rank {rank}: {failed}"
        for kind, nbytes in found.items():
            sent[kind] += nbytes
    # Routing of real data is uneven, but the ranks together send every row.
    plan = Plan(ep=WORLD, dp=WORLD, micro_batch=BATCH)
    trace = rank_trace(mixtral("bf16"), Workload("training", BATCH, SEQ, SEQ), plan)
    each = messages(price(trace), "ep")
    assert sent == {
        "alltoall_base_": WORLD * each["alltoall_base_"],
        "all_to_all_single": WORLD * 2 * each["all_to_all_single"],  # FP32 there, BF16 here
    }
