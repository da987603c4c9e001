"""Four real processes over gloo: their parts give the whole model's logits and gradients."""

import json

import pytest
import torch.multiprocessing as mp
from parallel_ranks import CASES, OTHERS, WORLD, main


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(main, (str(folder),), nprocs=WORLD, start_method="spawn")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_ranks_give_what_one_process_gives(results, case):
    for rank, result in enumerate(results):
        assert result.get(case, "did not run") == "", f"rank {rank}: {result.get(case)}"
