"""Bytes of the ops that do not read and write every argument once, tensor by tensor."""

import pytest
import torch
from op_records import ledger_of, read_bytes, record, ref, work, written_bytes
from torch import nn

from tracer.capture import Capture
from tracer.cost import price

aten = torch.ops.aten
I64, F32, BF16 = 8, 4, 2
ROWS, WIDTH = 100, 10
TABLE = F32 * ROWS * WIDTH


def table():
    return torch.zeros(ROWS, WIDTH)


def ids(*shape):
    return torch.zeros(*shape, dtype=torch.long)


def moved(function, *args, **kwargs):
    """Bytes read and written by a call."""
    total = ledger_of(function, *args, **kwargs).total()
    return sum(total.read.values()), sum(total.write.values())


ROW = F32 * WIDTH

GATHERS = {
    # name: call, bytes read, bytes written
    "embedding": (lambda: nn.functional.embedding(ids(3), table()), 3 * (I64 + ROW), 3 * ROW),
    "more ids than rows": (
        lambda: nn.functional.embedding(ids(500), table()),
        500 * I64 + TABLE,
        500 * ROW,
    ),
    "index": (lambda: table()[ids(4)], 4 * (I64 + ROW), 4 * ROW),
    "rows and columns": (
        lambda: table()[ids(4, 1), ids(5)],
        (4 + 5) * I64 + 20 * F32,
        20 * F32,
    ),
    "select": (lambda: table().index_select(0, ids(4)), 4 * (I64 + ROW), 4 * ROW),
    "gather": (lambda: table().gather(1, ids(ROWS, 2)), 2 * ROWS * (I64 + F32), 2 * ROWS * F32),
    "take": (lambda: table().take(ids(7)), 7 * (I64 + F32), 7 * F32),
    "slice copied": (lambda: torch.slice_copy(table(), 0, 0, 3), 3 * ROW, 3 * ROW),
    "diagonal copied": (lambda: torch.diagonal_copy(table()), 10 * F32, 10 * F32),
    "windows copied": (
        lambda: torch.unfold_copy(torch.zeros(8), 0, 4, 1),
        8 * F32,  # overlapping windows share what they read
        5 * 4 * F32,
    ),
    "slice replaced": (
        lambda: torch.slice_scatter(table(), torch.zeros(3, WIDTH), 0, 0, 3),
        TABLE,  # 97 rows of the old, 3 of the new
        TABLE,
    ),
    "cropped": (
        lambda: nn.functional.pad(table(), (0, 0, -90, 0)),
        10 * ROW,
        10 * ROW,
    ),
    "trace": (lambda: table().trace(), 10 * F32, F32),
}


@pytest.mark.parametrize("name", GATHERS)
def test_gathers_read_what_they_return(name):
    call, read, written = GATHERS[name]
    with Capture() as capture:
        call()
    last = price(capture.trace, execution="naive", strict=True).kernels[-1].cost
    assert (sum(last.read.values()), sum(last.write.values())) == (read, written)


class TestScatter:
    """In place, the rows that are hit; out of place, a copy of everything first."""

    @staticmethod
    def bytes_of(function, *args, **kwargs):
        with Capture() as capture:
            function(*args, **kwargs)
        cost = price(capture.trace, execution="naive", strict=True).kernels[-1].cost
        return sum(cost.read.values()), sum(cost.write.values())

    def test_overwriting_does_not_read_the_target(self):
        x, rows, values = table(), ids(3), torch.zeros(3, WIDTH)
        given = 3 * (I64 + ROW)
        assert self.bytes_of(x.index_put_, (rows,), values) == (given, 3 * ROW)
        assert self.bytes_of(x.index_copy_, 0, rows, values) == (given, 3 * ROW)
        assert self.bytes_of(x.scatter_, 0, ids(3, WIDTH), values) == (
            3 * WIDTH * (I64 + F32),
            3 * ROW,
        )

    def test_adding_does(self):
        x, rows, values = table(), ids(3), torch.zeros(3, WIDTH)
        given = 3 * (I64 + ROW)
        for call in (
            lambda: x.index_put_((rows,), values, accumulate=True),
            lambda: x.index_add_(0, rows, values),
        ):
            assert self.bytes_of(call) == (given + 3 * ROW, 3 * ROW)
        assert self.bytes_of(x.scatter_add_, 0, ids(3, WIDTH), values) == (
            3 * WIDTH * (I64 + F32 + F32),
            3 * ROW,
        )
        assert self.bytes_of(x.scatter_reduce_, 0, ids(3, WIDTH), values, "sum") == (
            3 * WIDTH * (I64 + F32 + F32),
            3 * ROW,
        )

    def test_out_of_place_copies_first(self):
        x, rows, values = table(), ids(3), torch.zeros(3, WIDTH)
        given = 3 * (I64 + ROW)
        assert self.bytes_of(x.index_copy, 0, rows, values) == (given + TABLE, TABLE + 3 * ROW)
        assert self.bytes_of(x.index_add, 0, rows, values) == (
            given + TABLE + 3 * ROW,
            TABLE + 3 * ROW,
        )

    def test_only_the_part_of_the_source_that_has_an_index(self):
        source = torch.zeros(50, WIDTH)
        read, _ = self.bytes_of(table().scatter_, 0, ids(3, WIDTH), source)
        assert read == 3 * WIDTH * (I64 + F32)

    def test_a_mask_hits_at_most_everything(self):
        x = table()
        mask = x > 0
        read, written = self.bytes_of(x.index_put_, (mask,), torch.zeros(()))
        assert (read, written) == (ROWS * WIDTH + F32, TABLE)

    def test_filling_rows(self):
        assert self.bytes_of(table().index_fill_, 0, ids(3), 1.0) == (3 * I64, 3 * ROW)


def test_embedding_backward_clears_the_table_and_adds_rows():
    layer = nn.Embedding(ROWS, WIDTH)
    ledger = ledger_of(lambda: layer(ids(3)).backward(torch.ones(3, WIDTH)))
    kernel = next(k for k in ledger.kernels if k.name == "embedding_dense_backward")
    assert sum(kernel.cost.read.values()) == 3 * (ROW + I64)
    assert sum(kernel.cost.write.values()) == TABLE + 3 * ROW
    assert kernel.cost.vector_flops == 3 * WIDTH


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_add_up_their_rows(mode):
    bags = nn.EmbeddingBag(ROWS, WIDTH, mode=mode)
    ledger = ledger_of(bags, ids(4, 5))
    kernel = next(k for k in ledger.kernels if "embedding_bag" in k.name)
    divided = 4 * WIDTH if mode == "mean" else 0
    assert kernel.cost.vector_flops == 4 * 5 * WIDTH + divided
    # Rows, ids and offsets of four bags.
    assert sum(kernel.cost.read.values()) == 20 * ROW + 20 * I64 + 4 * I64


def test_broadcast_inputs_are_read_once():
    x, bias = torch.zeros(64, 32), torch.zeros(32)
    assert moved(torch.add, x, bias) == (F32 * (64 * 32 + 32), F32 * 64 * 32)
    expanded = bias.expand(64, 32)
    assert moved(torch.add, x, expanded) == (F32 * (64 * 32 + 32), F32 * 64 * 32)
    assert moved(torch.clone, expanded) == (F32 * 32, F32 * 32 * 64)


def test_strided_inputs_move_their_elements():
    x = torch.zeros(64, 32)
    assert moved(torch.neg, x[::2]) == (F32 * 32 * 32, F32 * 32 * 32)
    assert moved(lambda: x.t().contiguous()) == (F32 * 64 * 32, F32 * 64 * 32)


def test_a_change_of_type_reads_one_and_writes_the_other():
    x = torch.zeros(64, 32)
    assert moved(x.to, torch.bfloat16) == (F32 * 2048, BF16 * 2048)
    assert moved(x.to, torch.float64) == (F32 * 2048, 8 * 2048)
    assert moved(lambda: x > 0) == (F32 * 2048, 2048)


def test_in_place_reads_and_writes():
    x, y = torch.zeros(64), torch.zeros(64)
    assert moved(x.add_, y) == (2 * F32 * 64, F32 * 64)
    assert moved(x.copy_, y) == (F32 * 64, F32 * 64)
    assert moved(x.zero_) == (0, F32 * 64)
    assert moved(x.normal_) == (0, F32 * 64)
    assert moved(torch.zeros_like, x) == (0, F32 * 64)
    assert moved(torch.rand_like, x) == (0, F32 * 64)
    assert moved(torch.bernoulli, x, 0.5) == (0, F32 * 64)
    assert moved(x.bernoulli_, y) == (F32 * 64, F32 * 64)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t_(),
        lambda x: x.transpose_(0, 1),
        lambda x: x.unsqueeze_(0),
        lambda x: x.squeeze_(),
        lambda x: x.as_strided_((8, 4), (1, 8)),
        lambda x: x.resize_(2, 16),
        lambda x: x.view(-1),
        lambda x: x.permute(1, 0)[1:].unfold(0, 2, 1),
        lambda x: torch.ops.aten.unsafe_split(x, 2),
        lambda x: x.detach().is_set_to(x),
        torch.empty_like,
    ],
)
def test_views_also_in_place_are_free(view):
    x = torch.zeros(4, 8)
    assert ledger_of(view, x).kernels == ()


OUT = {
    "elementwise": (torch.add, (torch.zeros(8), torch.zeros(8)), (64, 32), 8),
    "product": (torch.mm, (torch.zeros(4, 8), torch.zeros(8, 2)), (192, 32), 0),
    "reduction": (torch.sum, (torch.zeros(8, 4), 1), (128, 32), 32),
    "cat": (torch.cat, ([torch.zeros(4), torch.zeros(4)],), (32, 32), 0),
    "softmax": (torch.softmax, (torch.zeros(2, 8), 1), (64, 64), 80),
}


@pytest.mark.parametrize("name", OUT)
def test_results_into_a_given_tensor_are_written_not_read(name):
    function, args, bytes_moved, steps = OUT[name]
    target = torch.empty_like(function(*args))
    assert moved(function, *args, out=target) == bytes_moved
    assert ledger_of(function, *args, out=target).total().vector_flops == steps


def test_results_in_two_tensors():
    values, places = torch.empty(4), torch.empty(4, dtype=torch.long)
    assert moved(torch.max, torch.zeros(4, 8), 1, out=(values, places)) == (128, 16 + 32)
    values, places = torch.empty(4, 2), torch.empty(4, 2, dtype=torch.long)
    assert moved(torch.topk, torch.zeros(4, 8), 2, out=(values, places)) == (128, 32 + 64)


def test_max_unpool_clears_then_places():
    x, where, y = ref(1, 1, 2, 2), ref(1, 1, 2, 2, dtype="int64"), ref(1, 1, 4, 4)
    op = record(aten.max_unpool2d.default, y, self=x, indices=where, output_size=(4, 4))
    assert (read_bytes(op), written_bytes(op)) == (4 * (F32 + I64), F32 * (16 + 4))


def test_scaled_product_reads_one_byte_an_element():
    x, w = ref(16, 32, dtype="float8_e4m3fn"), ref(32, 16, dtype="float8_e4m3fn")
    op = record(
        aten._scaled_mm.default, ref(16, 16, dtype="bfloat16"), self=x, mat2=w, scale_a=ref(),
        scale_b=ref(),
    )  # fmt: skip
    assert read_bytes(op) == 16 * 32 + 32 * 16 + 2 * F32
    assert written_bytes(op) == BF16 * 256
    assert work(op).flops == 2 * 16 * 32 * 16
