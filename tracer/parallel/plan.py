"""How a model is cut over many GPUs: a plan, what it asks of a model, and which rank is where.

A *stage* is one part of the pipeline. Its `tp * cp * dp` ranks are numbered with TP fastest, then
CP, then DP, and the stages follow one another:

    rank = ((pp * DP + dp) * CP + cp) * TP + tp

Expert parallelism adds no ranks: the experts of a layer are spread over `ep` consecutive ranks of
its stage, whatever these do to attention, and held again by the next `ep` ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..capture.configs import why_no_mtp
from ..errors import UserError
from .sizes import Sizes
from .words import values_in

RECOMPUTE = ("none", "latent", "selective", "full")
MOMENTS = ("fp32", "bf16")

TURNS = ("zbv", "dualpipe", "dualpipev")  # schedules with the first and last stage on one rank

_CHOICES = {"recompute": RECOMPUTE, "moments": MOMENTS}


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a model on `world` GPUs.

    Attributes:
        tp: ranks that cut heads, feed-forward widths and the vocabulary among them.
        ep: ranks of a stage among which the routed experts are spread. With `ep` 1 and `tp` above
            1 every expert is cut by its width instead.
        pp: pipeline stages, each with layers of its own.
        dp: replicas that see different sequences.
        cp: ranks that share the tokens of one sequence, in training and prefill: each has two of
            2·cp chunks, one from each end, so that all see equally many (query, key) pairs.
        sequence_parallel: between the parts that `tp` cuts, each rank has 1/tp of the tokens.
        attention_dp: the `tp` ranks hold attention whole and have sequences of their own; only
            dense feed-forwards (and, with `ep` 1, experts) are cut.
        zero: what data-parallel ranks do not repeat: 1 optimizer state, 2 gradients as well,
            3 parameters as well (FSDP). 0 repeats all.
        micro_batch: sequences that a data rank runs at once.
        micro_batches: how many of those make a step.
        schedule: the name of the pipeline schedule.
        chunks: parts of the model that one rank holds under an interleaved schedule; stage s is on
            pipeline rank s mod pp.
        redundant_experts: further copies of experts, for serving.
        recompute: what the backward computes again: "none", "latent" (RMSNorm and MLA's
            up-projections, as DeepSeek-V3 was trained), "selective" (everything but products,
            attention and collectives) or "full" (whole layers).
        moments: how AdamW keeps its two moments, "fp32" or "bf16".
        mtp: the model is trained with its module of multi-token prediction, in the last stage.
    """

    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    attention_dp: bool = False
    zero: int = 0
    micro_batch: int = 1
    micro_batches: int = 1
    schedule: str = "1f1b"
    chunks: int = 1
    redundant_experts: int = 0
    recompute: str = "none"
    moments: str = "fp32"
    mtp: bool = False

    def __post_init__(self) -> None:
        for name in ("tp", "ep", "pp", "dp", "cp", "micro_batch", "micro_batches", "chunks"):
            _whole(name, getattr(self, name), 1)
        _whole("redundant_experts", self.redundant_experts, 0)
        if self.zero not in (0, 1, 2, 3) or isinstance(self.zero, bool):
            raise UserError(f"zero={self.zero!r}: choose 0, 1, 2 or 3 (3 is FSDP)")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r}: choose {', '.join(allowed)}")

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def world(self) -> int:
        """GPUs."""
        return self.pp * self.ranks_per_stage

    @property
    def ranks_per_stage(self) -> int:
        """Ranks that hold the same layers, or parts of them."""
        return self.tp * self.cp * self.dp

    @property
    def stages(self) -> int:
        """Parts into which the layers are cut: one a pipeline rank and chunk."""
        return self.pp * self.chunks

    @property
    def data_ranks(self) -> int:
        """How many ranks, or groups of ranks, have sequences of their own."""
        return self.dp * (self.tp if self.attention_dp else 1)

    @property
    def cuts_tokens(self) -> bool:
        """Whether TP ranks that share sequences have tokens of their own, which must divide."""
        return self.tp > 1 and not self.attention_dp and (self.sequence_parallel or self.ep > 1)

    @property
    def global_batch(self) -> int:
        """Sequences of one step."""
        return self.data_ranks * self.micro_batch * self.micro_batches

    @property
    def copies_embedding(self) -> bool:
        """Whether the last stage needs an embedding of its own: its GPUs have no first stage."""
        return self.mtp and self.pp > 1 and self.schedule not in TURNS

    def layers_of(self, stage: int, layers: int) -> range:
        """The layers of a stage, as even as they divide; the first stages have one more.

        The last stage also has the output head, so it is never among the longer ones. With `mtp`
        its range has one more, number `layers`: the MTP module. That, and its pass through the
        head, count as a layer each (in DeepSeek-V3 either takes about as long as one): the last
        stage has two others fewer, as in NVIDIA's recipes (Megatron-Bridge, `deepseek_v3.py`).

        Raises:
            UserError: there is no such stage.
        """
        if not 0 <= stage < self.stages:
            raise UserError(f"stage={stage}: the plan has stages 0 to {self.stages - 1}")
        stages = self.stages
        if self.mtp:
            last = layers if stages == 1 else max((layers + 2) // stages - 2, 0)
            if stage == stages - 1:
                return range(layers - last, layers + 1)
            layers, stages = layers - last, stages - 1
        each, more = divmod(layers, stages)
        start = stage * each + min(stage, more)
        return range(start, start + each + (stage < more))

    def groups(self, rank: int) -> dict[str, range]:
        """The process groups of `rank`, by axis, as ranges of ranks.

        "tp", "cp", "ep" and "pp" are what they say. Gradients are summed over "dp" (ranks with the
        same slices of attention and feed-forwards), "edp" (with the same experts) or "stage" (all
        ranks of the stage). All three hold CP ranks too: they see different tokens. "embedding" is
        there where the first and the last stage both have the embedding.

        Raises:
            UserError: there is no such rank.
        """
        if not 0 <= rank < self.world:
            raise UserError(f"rank={rank}: the plan has ranks 0 to {self.world - 1}")
        size = self.ranks_per_stage
        base, local = rank - rank % size, rank % size
        tp, cp_place = local % self.tp, local % (self.tp * self.cp)
        ep = local - local % self.ep
        found = {
            "tp": range(rank - tp, rank - tp + self.tp),
            "cp": range(rank - cp_place + tp, rank - cp_place + self.tp * self.cp, self.tp),
            "ep": range(base + ep, base + ep + self.ep),
            "dp": range(base + tp, base + size, self.tp),
            "edp": range(base + local % self.ep, base + size, self.ep),
            "stage": range(base, base + size),
            "pp": range(local, self.world, size),
        }
        far = self.world - size  # from the first stage to the last
        if self.copies_embedding and base in (0, far):
            found["embedding"] = range(local, local + far + 1, far)
        return found

    # -- what does not work -----------------------------------------------------------------------

    def illegal(
        self, sizes: Sizes, *, training: bool = False, seq: int | None = None
    ) -> list[str]:  # fmt: skip
        """Why this plan cannot run a model of these sizes; empty if it can. A line each.

        `seq` is new tokens of a sequence, 1 in decode; None leaves it open.
        """
        found = [] if seq is None else self.illegal_chunks(seq)

        def divides(what: str, number: int, name: str, by: int) -> None:
            if number % by:
                found.append(f"{number} {what} do not divide by {name}={by}")

        if self.mtp:
            if not training:
                found.append("mtp trains: serving with it, speculative decoding, is not modelled")
            elif reason := why_no_mtp(sizes.mtp):
                found.append(reason)
        layers = f"{sizes.layers} layers" + (" and the MTP module" if self.mtp else "")
        if self.pp > sizes.layers + self.mtp:
            found.append(f"{layers} over PP={self.pp} leaves stages empty")
        elif self.stages > sizes.layers + self.mtp:
            found.append(
                f"{layers} over PP={self.pp} with {self.chunks} chunks a rank leaves stages empty"
            )
        if self.chunks > 1 and self.pp == 1:
            found.append(f"{self.chunks} chunks a rank need a pipeline: PP is 1")
        if self.pp > 1 and sizes.tied:
            found.append(
                f"the embedding is the output head, which PP={self.pp} puts on other ranks"
            )
        if self.tp > 1:
            if not self.attention_dp:
                divides("heads", sizes.heads, "TP", self.tp)
                if not sizes.latent and sizes.kv_heads % self.tp and self.tp % sizes.kv_heads:
                    found.append(
                        f"{sizes.kv_heads} KV heads neither divide by TP={self.tp} nor into it"
                    )
                divides("vocabulary entries", sizes.vocab, "TP", self.tp)
            divides("feed-forward columns", sizes.width, "TP", self.tp)
            if sizes.experts and self.ep == 1:
                divides("columns of an expert", sizes.expert_width, "TP", self.tp)
        found += self._illegal_experts(sizes, training)
        if self.attention_dp and self.sequence_parallel:
            found.append(
                "attention_dp gives every TP rank its own tokens: sequence_parallel cannot cut them"
            )
        if self.attention_dp and self.cp > 1:
            found.append(f"attention_dp and CP={self.cp} both divide the tokens of a rank")
        if self.sequence_parallel and self.tp == 1:
            found.append("sequence_parallel divides tokens by TP, which is 1")
        if training and self.zero >= 2 and self.recompute == "latent" and self.ranks_per_stage > 1:
            found.append(
                f"recompute=latent needs a layer's parameters when its backward runs, where "
                f"zero={self.zero} has them no more: take zero=1, or recompute=selective or full"
            )
        return found

    def illegal_chunks(self, seq: int) -> list[str]:
        """Why CP ranks cannot have two chunks of every sequence of so many new tokens."""
        cp = self.cp
        if cp == 1:
            return []
        if seq == 1:
            return [
                f"CP={cp} cuts the tokens of a sequence, decode has one at a time: use TP or DP"
            ]
        if seq % (2 * cp):
            return [
                f"{seq} tokens of a sequence do not divide into the {2 * cp} chunks of CP={cp}, "
                "two a rank"
            ]
        return []

    def _illegal_experts(self, sizes: Sizes, training: bool) -> list[str]:
        ep, redundant = self.ep, self.redundant_experts
        found = []
        if not sizes.experts:
            if ep > 1:
                found.append(f"EP={ep}: the model has no routed experts")
            if redundant:
                found.append(f"{redundant} redundant experts: the model has no routed experts")
            return found
        if redundant > sizes.experts:
            found.append(
                f"{redundant} redundant experts are more than the {sizes.experts} there are"
            )
        if (sizes.experts + redundant) % ep:
            also = f" and {redundant} redundant ones" if redundant else ""
            found.append(f"{sizes.experts} experts{also} do not divide by EP={ep}")
        if redundant and ep == 1:
            found.append(f"{redundant} redundant experts need EP above 1")
        if redundant and training:
            found.append(f"{redundant} redundant experts are copies for serving, not for training")
        if self.ranks_per_stage % ep:
            found.append(
                f"EP={ep} does not divide the {self.ranks_per_stage} ranks of a stage "
                f"(DP={self.dp} * CP={self.cp} * TP={self.tp})"
            )
        return found

    def notes(self, sizes: Sizes, *, domain: int | None = None) -> list[str]:
        """What runs, but may not be what was meant. `domain` is GPUs that share a fast network."""
        found = []
        cut = self.tp > 1 and not self.attention_dp
        if cut and sizes.latent:
            found.append(f"each of the {self.tp} TP ranks caches the whole latent of every token")
        elif cut and sizes.kv_heads < self.tp:
            found.append(
                f"{sizes.kv_heads} KV heads over TP={self.tp}: each is held by "
                f"{self.tp // sizes.kv_heads} ranks"
            )
        counts = [len(self.layers_of(stage, sizes.layers)) for stage in range(self.stages)]
        if self.mtp:
            found.append(
                f"{sizes.layers} layers over {self.stages} stages: the last has "
                f"{counts[-1] - 1}, the MTP module and both passes through the output head"
            )
        elif max(counts) > min(counts):
            found.append(
                f"{sizes.layers} layers over {self.stages} stages: {counts.count(max(counts))} of "
                f"them have {max(counts)}, the others {min(counts)}"
            )
        if domain:
            for name in ("tp", "ep"):
                size = getattr(self, name)
                if size > domain:
                    found.append(
                        f"{name.upper()}={size} spans {-(-size // domain)} domains of {domain} GPUs"
                    )
                elif size > 1 and domain % size:
                    found.append(
                        f"{name.upper()}={size} does not divide the domain of {domain} GPUs: some "
                        "groups cross it"
                    )
        return found

    # -- text -------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str) -> Plan:
        """From words such as "tp=4 ep=32 dp=8 sp zero=1" or "tp4,pp16,fsdp"; commas are spaces.

        Raises:
            UserError: a word is not understood, or a name is given twice.
        """
        return cls(**values_in(text, {item.name: type(item.default) for item in fields(cls)}))

    def __str__(self) -> str:
        """The words that `parse` reads, without what is at its default."""
        words = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                words.append(item.name if value is True else f"{item.name}={value}")
        return " ".join(words) or "tp=1"


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}={value!r}: give a whole number of at least {least}")
