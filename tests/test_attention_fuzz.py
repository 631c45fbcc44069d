"""Attention against the oracle over drawn shapes, layouts, masks and options.

ATTENTION_EXT_FUZZ_EXAMPLES=10000 tries more, and other ones each time.
"""

import os

import torch
from attention_cases import BROADCASTS, LAYOUTS, assert_attention_near, broadcast_shape
from helpers import DTYPES, Shape, random_keep
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import attention_ext as ax
from attention_ext import masks

EXAMPLES = os.environ.get("ATTENTION_EXT_FUZZ_EXAMPLES")

# Around the edges of tiles, and one that the backward pass cuts into several chunks.
_lengths = st.one_of(
    st.integers(0, 20), st.sampled_from([31, 47, 48, 49, 63, 64, 65, 96, 127, 129, 191, 193, 257])
)
_many_keys = st.sampled_from([1100])
_widths = st.one_of(st.integers(1, 24), st.sampled_from([31, 32, 33, 63, 64, 65, 72, 128]))


@st.composite
def shapes(draw):
    Hkv = draw(st.integers(1, 3))
    Lk = draw(st.one_of(_lengths, _lengths, _lengths, _many_keys))
    Lq = draw(_lengths if Lk < 1000 else st.integers(1, 70))
    group = draw(st.sampled_from([1, 1, 2, 3, 8]))
    B = draw(st.sampled_from([1, 1, 2, 3, 0]))
    return Shape(B, Hkv * group, Hkv, Lq, Lk, draw(_widths), draw(_widths))


_reach = st.one_of(st.none(), st.integers(0, 12), st.sampled_from([63, 64, 65, 100]))
_alignment = st.sampled_from(["bottom_right", "top_left"])


@st.composite
def mask_parts(draw, s):
    kind = draw(st.sampled_from(["causal", "window", "lengths", "padding", "dense"]))
    if kind == "causal":
        return masks.Causal(draw(_alignment))
    if kind == "window":
        return masks.SlidingWindow(draw(_reach), draw(_reach), draw(_alignment))
    if kind == "lengths":
        return masks.KeyLengths(draw(st.lists(st.integers(0, s.Lk + 5), min_size=s.B, max_size=s.B)))
    if kind == "padding":
        return masks.KeyPadding(random_keep(s.B, s.Lk))
    return masks.Dense(random_keep(*broadcast_shape(s, draw(st.sampled_from(BROADCASTS)))))


@st.composite
def options(draw, s, dtype):
    chosen = {}
    mask = None
    for part in draw(st.lists(mask_parts(s), max_size=3)):
        mask = part if mask is None else mask & part
    chosen["mask"] = mask
    if draw(st.booleans()):
        bias = torch.randn(broadcast_shape(s, draw(st.sampled_from(BROADCASTS))))
        if draw(st.booleans()):
            bias = bias.to(dtype)
        if draw(st.booleans()):
            bias = bias.masked_fill(torch.rand_like(bias) < 0.2, -torch.inf)
        if draw(st.booleans()):
            bias = LAYOUTS["length_last"](bias)
        chosen["bias"] = bias
    chosen["scale"] = draw(st.sampled_from([None, None, 0.0, -0.6, 1.3]))
    chosen["softcap"] = draw(st.sampled_from([None, None, 0.5, 20.0]))
    if draw(st.booleans()):
        chosen["sinks"] = torch.randn(s.Hq, dtype=draw(st.sampled_from([torch.float32, dtype])))
    if draw(st.booleans()):
        sizes = draw(st.sampled_from([(s.Hq,), (s.B, s.Hq)]))
        # Their gradient, a sum of distances, overflows in float16.
        own = torch.float32 if dtype == torch.float16 else dtype
        chosen["alibi_slopes"] = torch.rand(sizes, dtype=draw(st.sampled_from([torch.float32, own])))
    chosen["dropout_p"] = draw(st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0]))
    chosen["dropout_seed"] = draw(st.integers(-(2**63), 2**63 - 1))
    return chosen


@settings(
    max_examples=int(EXAMPLES or 60),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    phases=[Phase.generate] if EXAMPLES is None else [Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_attention_matches_the_formula(data):
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    s = data.draw(shapes(), label="shape")
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    sizes = {
        "query": (s.B, s.Hq, s.Lq, s.D),
        "key": (s.B, s.Hkv, s.Lk, s.D),
        "value": (s.B, s.Hkv, s.Lk, s.Dv),
    }
    layouts = st.sampled_from(list(LAYOUTS))
    qkv = []
    for name, size in sizes.items():
        layout = LAYOUTS[data.draw(layouts, label=f"layout of {name}")]
        qkv.append(layout(torch.randn(size, dtype=torch.float64).to(dtype)))
    grad_out = LAYOUTS[data.draw(layouts, label="layout of grad_out")](
        torch.randn(s.B, s.Hq, s.Lq, s.Dv).to(dtype)
    )
    chosen = data.draw(options(s, dtype), label="options")
    cotangents = [grad_out]
    return_lse = data.draw(st.booleans(), label="return_lse")
    if return_lse:
        lse = ax.attention(*qkv, **chosen, return_lse=True)[1]
        cotangents.append(torch.randn_like(lse).masked_fill(lse.isinf(), 0.0))
    assert_attention_near(*qkv, cotangents=cotangents, return_lse=return_lse, coherent=True, **chosen)
