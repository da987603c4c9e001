"""Which ops have a formula: none that computes is left out, and docs/ops.md says the truth."""

import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "list_ops.py"

# What may go without a formula: sparse and nested layouts, whose sizes are data (their values are
# in the tensor, not in its shape); legacy RNNs over packed parameter objects; Apple's LSTM; torch's
# own test ops; and random keys, which are two numbers.
WITHOUT = re.compile(
    r"_?sparse|.*_sparse|_?(to|from)_(sparse|dense|padded)|_nested|to_padded_tensor|_to_dense"
    r"|(c?crow|c?col|row)_indices|_?indices_copy|_?values_copy|_coalesced?|_spdiags|_spsolve"
    r"|_convert_indices|_validate_compressed|hspmm|sspaddmm|_test_|_foobar|.*lstm_mps"
    r"|quantized_(lstm|gru)|_philox_key"
)


@pytest.fixture(scope="module")
def listing():
    spec = importlib.util.spec_from_file_location("list_ops", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_that_computes_on_dense_tensors_is_covered(listing):
    missing = listing.packets(listing.by_status()[listing.UNMODELLED])
    assert [name for name in missing if not WITHOUT.match(name)] == []


def test_coverage_of_what_is_dispatched(listing):
    names = {status: len(found) for status, found in listing.by_status().items()}
    dispatched = sum(names.values()) - names[listing.COMPOSITE]
    assert names[listing.UNMODELLED] / dispatched < 0.07
    assert sum(names.values()) > 3000


def test_the_page_is_what_the_formulas_say(listing):
    assert listing.PAGE.read_text() == listing.page(), "run python scripts/list_ops.py"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("aten.mm.default", "EXACT"),
        ("aten.mm.out", "EXACT"),
        ("aten.add_.Tensor", "ELEMENTWISE"),
        ("aten._foreach_mul.List", "ELEMENTWISE"),
        ("aten.topk.default", "PARTLY"),
        ("aten.cat.default", "MOVED"),
        ("aten.view.default", "NO_WORK"),
        ("aten.t_.default", "NO_WORK"),
        ("aten.matmul.default", "COMPOSITE"),
        ("aten.maximum.default", "ELEMENTWISE"),
        ("aten.max.other", "COMPOSITE"),  # is maximum
        ("aten.max.dim", "EXACT"),
        ("aten.any.all_out", "EXACT"),
        ("aten._sparse_addmm.default", "UNMODELLED"),
    ],
)
def test_status_of(listing, name, status):
    assert name in listing.by_status()[getattr(listing, status)]
