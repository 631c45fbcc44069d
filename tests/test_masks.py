"""Masks: what they allow, what the operators are told, and that they are values."""

import copy
import io
import pickle

import pytest
import torch
from helpers import EMPTY_SHAPES, MASKS, SHAPES

import attention_ext as ax
from attention_ext.masks import NO_MASK, Causal, Dense, KeyLengths, KeyPadding, SlidingWindow

pytestmark = pytest.mark.cpu_only("masks are lowered on the CPU")

CPU = torch.device("cpu")
KEEP = torch.tensor([[True, False, True], [False, True, True]])


# what they allow


def allowed_pairs(rule, Lq, Lk):
    return torch.tensor([[rule(i, j) for j in range(Lk)] for i in range(Lq)], dtype=torch.bool).reshape(
        Lq, Lk
    )


# By (i, j, Lk - Lq), as DESIGN's table reads.
BANDS = [
    (Causal(), lambda i, j, shift: j <= i + shift),
    (Causal(alignment="top_left"), lambda i, j, shift: j <= i),
    (SlidingWindow(2, 1), lambda i, j, shift: i + shift - 2 <= j <= i + shift + 1),
    (SlidingWindow(0, 0), lambda i, j, shift: i + shift == j),
    (SlidingWindow(None, 1), lambda i, j, shift: j <= i + shift + 1),
    (SlidingWindow(1, None, alignment="top_left"), lambda i, j, shift: i - 1 <= j),
    (SlidingWindow(None, None), lambda i, j, shift: True),
    (SlidingWindow(2**70, 2**62), lambda i, j, shift: True),
]


@pytest.mark.parametrize(
    ("mask", "rule"), BANDS, ids=lambda x: repr(x) if isinstance(x, ax.masks.Mask) else ""
)
@pytest.mark.parametrize(("Lq", "Lk"), [(5, 5), (3, 8), (8, 3), (1, 4), (4, 1), (0, 3), (3, 0)])
def test_bands(mask, rule, Lq, Lk):
    dense = mask.dense(Lq, Lk)
    assert dense.dtype == torch.bool
    assert dense.shape == (1, 1, Lq, Lk)
    assert torch.equal(dense[0, 0], allowed_pairs(lambda i, j: rule(i, j, Lk - Lq), Lq, Lk))


def test_key_lengths():
    for lengths in (
        [0, 2, 9],
        torch.tensor([0, 2, 9], dtype=torch.int32),
        torch.tensor([0, 2, 9]).to(torch.uint8),
    ):
        dense = KeyLengths(lengths).dense(4, 3)
        assert dense.shape == (3, 1, 1, 3)
        assert dense[:, 0, 0].tolist() == [[False, False, False], [True, True, False], [True, True, True]]


def test_key_padding():
    assert torch.equal(KeyPadding(KEEP).dense(5, 3), KEEP[:, None, None, :])


@pytest.mark.parametrize(
    ("own", "shown"),
    [((), (1, 1, 1, 7)), ((7,), (1, 1, 1, 7)), ((5, 1), (1, 1, 5, 7)), ((3, 1, 7), (1, 3, 1, 7)),
     ((2, 1, 5, 7), (2, 1, 5, 7)), ((2, 3, 1, 1), (2, 3, 1, 7))],
)  # fmt: skip
def test_dense_stays_broadcast(own, shown):
    tensor = torch.rand(own) > 0.5
    dense = Dense(tensor).dense(5, 7)
    assert dense.shape == shown
    assert torch.equal(dense.expand(2, 3, 5, 7), tensor.expand(2, 3, 5, 7))
    bits = Dense(tensor).lower(2, 3, 5, 7, CPU).mask_bits
    assert bits.shape == (*shown[:3], 1)


def test_intersection_allows_what_all_parts_allow():
    mask = Causal() & KeyPadding(KEEP) & Dense(torch.rand(4, 2, 3) > 0.3)
    parts = [part.dense(2, 3) for part in mask.parts]
    assert torch.equal(mask.dense(2, 3), parts[0] & parts[1] & parts[2])
    assert mask.dense(2, 3).shape == (2, 4, 2, 3)
    assert (Causal() & (SlidingWindow(1, 1) & Causal())).parts == (Causal(), SlidingWindow(1, 1), Causal())
    with pytest.raises(TypeError, match="unsupported operand"):
        Causal() & KEEP
    with pytest.raises(ValueError, match="expected parts of one batch size"):
        (KeyLengths([1, 2, 3]) & KeyPadding(KEEP)).dense(2, 3)


@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["more_queries"], *EMPTY_SHAPES.values()], ids=str)
def test_density_is_the_share_of_allowed_pairs(shape):
    for name, make in MASKS.items():
        mask = make(shape)
        if mask is None:
            continue
        dense = mask.dense(shape.Lq, shape.Lk)
        share = float(dense.double().mean()) if dense.numel() and shape.Lq else 0.0
        assert mask.density(shape.Lq, shape.Lk) == pytest.approx(share), name


def test_density_looks_at_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(ax.masks._base, "_DENSITY_CHUNK", 50)
    mask = Causal() & Dense(torch.rand(2, 1, 23, 19) > 0.4)
    assert mask.density(23, 19) == pytest.approx(float(mask.dense(23, 19).double().mean()))


# what the operators are told


def lowered_dense(lowered, B, Hq, Lq, Lk):
    """The allowed pairs of a lowered mask, read as the schema says."""
    i, j = torch.arange(Lq)[:, None], torch.arange(Lk)
    allowed = torch.ones(B, Hq, Lq, Lk, dtype=torch.bool)
    if lowered.band:
        lower, upper, dilation, phase, *reserved = lowered.band
        assert reserved == [0, 0]
        assert -(2**62) <= lower <= 2**62
        assert -(2**62) <= upper <= 2**62
        allowed &= (j - i >= lower) & (j - i <= upper) & ((j - i - phase) % dilation == 0)
    if lowered.key_lengths is not None:
        assert lowered.key_lengths.dtype == torch.int64
        assert bool(((lowered.key_lengths >= 0) & (lowered.key_lengths <= Lk)).all())
        allowed &= (j < lowered.key_lengths[:, None])[:, None, None]
    if lowered.mask_bits is not None:
        assert lowered.mask_bits.dtype == torch.int64
        assert lowered.mask_bits.shape[3] == (Lk + 63) // 64
        assert all(
            own in (1, full) for own, full in zip(lowered.mask_bits.shape[:3], (B, Hq, Lq), strict=True)
        )
        allowed &= ((lowered.mask_bits[..., j // 64] >> (j % 64)) & 1).bool()
    assert lowered.band_offset is None
    assert lowered.row_bounds is None
    if lowered.block_table:
        allowed &= torch.ops.attention_ext._dense_block_table(lowered.block_table, B, Hq, Lq, Lk)
    return allowed


@pytest.mark.parametrize("shape", [*SHAPES.values(), *EMPTY_SHAPES.values()], ids=[*SHAPES, *EMPTY_SHAPES])
def test_lowering_means_the_same_as_dense(shape):
    sizes = shape.B, shape.Hq, shape.Lq, shape.Lk
    for name, make in MASKS.items():
        mask = make(shape)
        if mask is None:
            continue
        lowered = mask.lower(*sizes, CPU)
        assert torch.equal(lowered_dense(lowered, *sizes), mask.dense(shape.Lq, shape.Lk).expand(sizes)), name


def test_bands_meet_in_one_band():
    mask = (
        Causal() & SlidingWindow(5, None, alignment="top_left") & SlidingWindow(3, 9) & SlidingWindow(None, 2)
    )
    for Lq, Lk in [(6, 9), (9, 6)]:
        lowered = mask.lower(1, 1, Lq, Lk, CPU)
        assert lowered[1:] == NO_MASK[1:]
        assert torch.equal(lowered_dense(lowered, 1, 1, Lq, Lk), mask.dense(Lq, Lk))


def test_dense_masks_meet_as_words():
    mask = KeyPadding(torch.rand(2, 130) > 0.3) & Dense(torch.rand(3, 1, 130) > 0.3)
    assert mask.lower(2, 3, 5, 130, CPU).mask_bits.shape == (2, 3, 1, 3)


TENSOR_MASKS = [
    lambda: KeyLengths(torch.tensor([1, 7])),
    lambda: KeyPadding(torch.rand(2, 5) > 0.5),
    lambda: Dense(torch.rand(2, 1, 4, 5) > 0.5),
    lambda: Causal() & KeyLengths(torch.tensor([1, 7])) & Dense(torch.rand(2, 1, 4, 5) > 0.5),
]


@pytest.mark.parametrize("make", TENSOR_MASKS)
def test_lowering_is_done_once_until_a_tensor_changes(make):
    mask = make()
    first = mask.lower(2, 3, 4, 5, CPU)
    assert mask.lower(2, 3, 4, 5, CPU) is first
    for tensor in mask._tensors():
        tensor.zero_()
    assert not lowered_dense(mask.lower(2, 3, 4, 5, CPU), 2, 3, 4, 5).any()
    assert first is not mask.lower(2, 3, 4, 5, CPU)


@pytest.mark.parametrize("make", TENSOR_MASKS)
def test_what_inference_mode_lowers_serves_in_training(make):
    mask = make()
    query = torch.randn(2, 3, 4, 8, requires_grad=True)
    key = torch.randn(2, 3, 5, 8)
    with torch.inference_mode():
        ax.attention(query, key, key, mask=mask)
        made_inside = make()
        ax.attention(query, key, key, mask=made_inside)
        for tensor in made_inside._tensors():
            tensor.zero_()
        assert not lowered_dense(made_inside.lower(2, 3, 4, 5, CPU), 2, 3, 4, 5).any()
    ax.attention(query, key, key, mask=mask).sum().backward()
    assert query.grad is not None


# values


VALUES = [
    lambda: Causal(),
    lambda: Causal("top_left"),
    lambda: SlidingWindow(3, None),
    lambda: Causal() & SlidingWindow(3, 0),
]


@pytest.mark.parametrize("make", VALUES)
def test_masks_without_tensors_are_equal_by_value(make):
    assert make() == make()
    assert hash(make()) == hash(make())
    assert sum(make() == other() for other in VALUES) == 1
    assert make() != "mask"


def test_tensors_compare_by_identity_and_version():
    for make, tensor in [
        (KeyLengths, torch.tensor([1, 2])),
        (KeyPadding, KEEP.clone()),
        (Dense, KEEP.clone()),
        (lambda t: Causal() & Dense(t), KEEP.clone()),
    ]:
        mask, same, copied = make(tensor), make(tensor), make(tensor.clone())
        assert mask == same
        assert hash(mask) == hash(same)
        assert mask != copied
        found = {mask: "cached"}
        tensor[0] = 0
        assert same not in found, "a cache must not answer for a mask whose tensor changed"
        assert make(tensor) != mask, "made of another version of the tensor"
        assert mask == same


@pytest.mark.parametrize("make", [*VALUES, *TENSOR_MASKS])
def test_masks_travel(make):
    mask = make()
    mask.lower(2, 3, 4, 5, CPU)
    buffer = io.BytesIO()
    torch.save(mask, buffer)
    buffer.seek(0)
    for copied in (
        pickle.loads(pickle.dumps(mask)),
        copy.deepcopy(mask),
        torch.load(buffer, weights_only=True),
    ):
        assert type(copied) is type(mask)
        assert torch.equal(copied.dense(4, 5), mask.dense(4, 5))
        assert copied._cache is None
        assert (copied == mask) == (not mask._tensors())
    assert copy.copy(mask) == mask
    assert type(mask).__module__ == "attention_ext.masks"


@pytest.mark.parametrize("make", [*VALUES, *TENSOR_MASKS])
def test_to_moves_the_tensors(make):
    mask = make()
    assert mask.to("cpu") is mask
    moved = mask.to("meta")
    assert [t.device.type for t in moved._tensors()] == ["meta"] * len(mask._tensors())
    if mask._tensors():
        with pytest.raises(
            ValueError, match=r"expected tensors on the query's device cpu, got meta; mask\.to\(dev"
        ):
            moved.lower(2, 3, 4, 5, CPU)
    else:
        assert moved is mask


def test_masks_are_immutable():
    mask = SlidingWindow(3, 0)
    for name in ("left", "new"):
        with pytest.raises(AttributeError, match=f"SlidingWindow is immutable: cannot set '{name}'"):
            setattr(mask, name, 1)
    with pytest.raises(AttributeError, match="cannot delete 'left'"):
        del mask.left


def test_repr_says_what_was_made():
    assert (
        repr(SlidingWindow(3, None, "top_left")) == "SlidingWindow(left=3, right=None, alignment='top_left')"
    )
    mask = Causal() & SlidingWindow(3, 0) & KeyLengths([1, 2]) & KeyPadding(KEEP) & Dense(KEEP)
    assert repr(mask) == (
        "Causal() & SlidingWindow(left=3, right=0) & KeyLengths(lengths=<int64 (2,)>)"
        " & KeyPadding(keep=<bool (2, 3)>) & Dense(tensor=<bool (2, 3)>)"
    )


# errors

REACH = "expected a non-negative integer or None (unbounded), got "
ALIGNMENT = 'alignment: expected "bottom_right" or "top_left", got '
BOOL = "expected a bool tensor (True = attend), got "
LENGTHS = "lengths: expected an integer tensor, got "
WRONG = [
    (lambda: SlidingWindow(-1, 0), ValueError, f"left: {REACH}-1"),
    (lambda: SlidingWindow(0, -5), ValueError, f"right: {REACH}-5"),
    (lambda: SlidingWindow(1.0, 0), TypeError, f"left: {REACH}float"),
    (lambda: SlidingWindow(0, True), TypeError, f"right: {REACH}bool"),
    (lambda: SlidingWindow(torch.tensor(1), 0), TypeError, f"left: {REACH}Tensor"),
    (lambda: SlidingWindow(1, 0, None), ValueError, f"{ALIGNMENT}None"),
    (lambda: Causal("left"), ValueError, f"{ALIGNMENT}'left'"),
    (lambda: KeyLengths(torch.tensor([1.0])), TypeError, f"{LENGTHS}torch.float32"),
    (lambda: KeyLengths(torch.tensor([True])), TypeError, f"{LENGTHS}torch.bool"),
    (lambda: KeyLengths([1.5]), TypeError, f"{LENGTHS}list"),
    (lambda: KeyLengths(3), TypeError, f"{LENGTHS}int"),
    (lambda: KeyLengths(torch.tensor(3)), ValueError, "lengths: expected shape (B,), got ()"),
    (lambda: KeyLengths(torch.tensor([[1]])), ValueError, "lengths: expected shape (B,), got (1, 1)"),
    (lambda: KeyLengths([3, -2]), ValueError, "lengths: expected no negative length, got -2"),
    (lambda: KeyPadding(KEEP.long()), TypeError, f"keep: {BOOL}torch.int64"),
    (lambda: KeyPadding([[True]]), TypeError, f"keep: {BOOL}list"),
    (lambda: KeyPadding(KEEP[0]), ValueError, "keep: expected shape (B, Lk), got (3,)"),
    (lambda: Dense(KEEP.float()), TypeError, f"tensor: {BOOL}torch.float32"),
    (lambda: Dense(None), TypeError, f"tensor: {BOOL}NoneType"),
    (lambda: Dense(KEEP[None, None, None]), ValueError, "tensor: expected at most 4 dimensions, got shape (1, 1, 1, 2, 3)"),  # noqa: E501
]  # fmt: skip

# For B 2, Hq 4, Lq 5, Lk 7.
MISFITS = [
    (KeyLengths([1]), "KeyLengths of shape (2,), got (1,)"),
    (KeyPadding(KEEP[:1]), "KeyPadding of shape (2, 7), got (1, 3)"),
    (KeyPadding(KEEP[:, :1]), "KeyPadding of shape (2, 7), got (2, 1)"),
    (Dense(KEEP), "Dense broadcastable to (2, 4, 5, 7), got shape (2, 3)"),
    (Dense(KEEP[:, :, None]), "Dense broadcastable to (2, 4, 5, 7), got shape (2, 3, 1)"),
    (Dense(KEEP[0, :0]), "Dense broadcastable to (2, 4, 5, 7), got shape (0,)"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_wrong_arguments(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == message


@pytest.mark.parametrize(("part", "message"), MISFITS, ids=[m[1] for m in MISFITS])
def test_tensors_that_do_not_fit(part, message):
    query = torch.randn(2, 4, 5, 8)
    key = torch.randn(2, 4, 7, 8)
    for mask in (part, part & Causal()):
        with pytest.raises(ValueError, match="mask: expected") as raised:
            mask.lower(2, 4, 5, 7, CPU)
        assert str(raised.value) == f"mask: expected {message}"
        with pytest.raises(ValueError, match="mask: expected"):
            ax.attention(query, key, key, mask=mask)


def test_dense_of_sizes_that_do_not_fit():
    for mask in (KeyPadding(KEEP), Dense(KEEP)):
        with pytest.raises(ValueError, match=r"mask: expected .* got (shape )?\(2, 3\)"):
            mask.dense(4, 5)


def test_a_table_lies_on_the_device_that_asks():
    mask = SlidingWindow(3, 0) | ax.masks.Global(1)
    for device in (torch.device("meta"), CPU, torch.device("meta")):
        program, *arrays = mask.lower(1, 2, 70, 90, device).block_table
        assert program.device == CPU  # the operators read it before a kernel runs
        assert {t.device for t in arrays} == {device}
