"""Exercise 1: what MLA costs in FLOPs, and from which length on it pays."""

from __future__ import annotations

from .case import Case
from .claim import Answer, Section, holds, wrong

ONE = Section("Exercise 1: MLA Trade-off")
ROOM = 60e9  # bytes that the exercise leaves for the cache


@ONE.claim(833, r"= 32768 \text{ bytes (FP16)}", "32768", "B a token, layer")
def standard(case: Case) -> Answer:
    """Cache that a traced standard attention with as many heads writes for one token."""
    return wrong(case.mha_cache(), "elements, not bytes")


@ONE.claim(836, r"512 \text{ bytes (FP16 = 1024 bytes)}", "1024", "B a token, layer")
def latent(case: Case) -> Answer:
    """Cache that the traced model writes for one token and layer."""
    return wrong(case.cache(), "the rotary key is left out")


@ONE.claim(839, r"\frac{32768}{1024} = 32\times \text{ reduction}", "32", "×")
def ratio(case: Case) -> Answer:
    """Traced standard cache over the traced model's."""
    return wrong(case.mha_cache() / case.cache(), "elements over bytes")


@ONE.claim(844, r"2 \times 16384 \times 512 = 16.8\text{M FLOPs}", "16.8", "M FLOP a token")
def compress(case: Case) -> Answer:
    """2 × elements of the traced kv_a_proj_with_mqa."""
    rows, columns = case.shapes("kv_a_proj_with_mqa.weight")
    return wrong(
        2 * rows * columns / 1e6,
        "the latent is made of the hidden state of 7,168, not of "
        "16,384 head columns; and the rotary key with it",
    )


def expand(case: Case) -> float:
    """FLOPs to make keys and values of one cached latent."""
    rows, columns = case.shapes("kv_b_proj.weight")
    return 2.0 * rows * columns


@ONE.claim(847, r"= 16.8S \text{M FLOPs}", "16.8", "M FLOP a cached token")
def decompress(case: Case) -> Answer:
    """2 × elements of the traced kv_b_proj."""
    _, slope = case.attention()
    return wrong(
        expand(case) / 1e6,
        "keys or values, not both; and no server does it: absorbed, "
        f"decode attends the latents at {slope / 1e6:.3f} M FLOP a cached token",
    )


@ONE.claim(850, r"4 \times S \times 16384 = 65.5S \text{M FLOPs}", "65.5", "M FLOP a cached token")
def core(case: Case) -> Answer:
    """Slope in the context of a traced standard attention's decode."""
    return wrong(case.attention(standard=True)[1] / 1e6, "65.5 thousand, not million")


@ONE.claim(861, r"= 30.5K$ tokens", "30.5", "K tokens")
def standard_fits(case: Case) -> Answer:
    """60 GB over the traced standard cache of all layers."""
    each = case.mha_cache() * case.model.num_hidden_layers
    return wrong(ROOM / each / 1e3, "twice the bytes, and 61 layers")


@ONE.claim(862, r"= 976K$ tokens", "976", "K tokens")
def latent_fits(case: Case) -> Answer:
    """60 GB over the traced cache of all layers."""
    return wrong(ROOM / case.inventory().kv_bytes_per_token / 1e3, "rotary key, and 61 layers")


@ONE.claim(865, r"\approx \frac{16.8S}{65.5S} = 25.6\%", "25.6", "% of the core's FLOPs")
def overhead(case: Case) -> Answer:
    """Traced FLOPs a cached token: expansion over a standard core."""
    (_, ours), (_, plain) = case.attention(), case.attention(standard=True)
    return wrong(
        100 * expand(case) / plain,
        "expanding the cache would be hundreds of times the "
        f"core, for 65.5 S is thousands; absorbed, the core is {ours / plain:.2f} times a "
        "standard one",
    )


def break_even(case: Case) -> float:
    """Tokens at which the absorbed form computes as much as standard attention, from two lines."""
    (fixed, slope), (plain_fixed, plain_slope) = case.attention(), case.attention(standard=True)
    return (plain_fixed - fixed) / (slope - plain_slope)


@ONE.claim(867, r"\boxed{\text{MLA justified when } S > 30K", "30", "K tokens")
def justified(case: Case) -> Answer:
    """Context at which two traced decodes, the model's and a standard one's, have equal FLOPs."""
    return wrong(
        break_even(case) / 1e3,
        "below it MLA computes less and reads less, above it it "
        "computes more and still reads 57 times less: a decoded token waits for bytes, so "
        "there is no length from which on it has to be justified",
    )


@ONE.claim(869, "For S < 30K, MHA is computationally cheaper.", None, "× the FLOPs of MLA")
def cheaper(case: Case) -> Answer:
    """FLOPs of one layer's traced decode after 1,000 tokens, standard over the model's."""
    (fixed, slope), (plain_fixed, plain_slope) = case.attention(), case.attention(standard=True)
    at = 1000
    return wrong(
        (plain_fixed + at * plain_slope) / (fixed + at * slope),
        "MLA's projections are smaller than those of 128 full "
        f"heads; standard attention is cheaper from {break_even(case):,.0f} tokens on",
    )


@ONE.claim(869, "For S > 30K, MLA is the only option.", None, "GB")
def only_option(case: Case) -> Answer:
    """Traced standard cache of all layers for 30,000 tokens."""
    gb = 30_000 * case.mha_cache() * case.model.num_hidden_layers / 1e9
    return holds(
        gb,
        "more than a GPU has. Grouped queries would be another option, with 8 KV "
        "heads a sixteenth of it",
    )
