"""ax.visualize: recording, rollout, bertviz's form, pictures."""

import io
import subprocess
import sys

import pytest
import torch
from transformers_models import DECODERS, ENCODERS

import attention_ext as ax
from attention_ext import masks, visualize

F64 = torch.float64


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def encoder(layers=3, **options):
    """A stack of torch's layers with our attention inside."""
    layer = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, **options)
    model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    ax.replace_attention(model)
    return model


# recording


@pytest.mark.parametrize("name", ["bert", "llama", "mistral", "gpt_oss", "gemma2"])
def test_records_what_transformers_computes(name):
    ax.integrations.transformers.register()
    model = ({**DECODERS, **ENCODERS}[name])().eval()
    ids, keep = torch.randint(3, 64, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    keep[1, 9:] = 0
    given = {"input_ids": ids, "attention_mask": keep}
    with torch.no_grad():
        expected = model(**given, output_attentions=True).attentions
        model.set_attn_implementation("attention_ext")
        with visualize.record(model, rows="all", bins=4) as recording:
            model(**given)
    assert len(recording) == len(expected) == 2
    assert all("attn" in n or "attention" in n for n in recording.names)
    assert all(f".{layer}." in n for layer, n in enumerate(recording.names))
    for b, length in enumerate((12, 9)):
        for found, theirs in zip(recording.weights(b), expected, strict=True):
            torch.testing.assert_close(found[:, :length], theirs[b, :, :length], rtol=1e-4, atol=1e-5)
    assert recording[0].binned.shape == (2, 4, 4, 4)


def test_records_our_layers_under_their_names():
    model = encoder().eval()
    x = torch.randn(2, 10, 32)
    with torch.no_grad(), visualize.record(model, rows="all", bins=(2, 5)) as recording:
        out = model(x, is_causal=True, mask=torch.ones(10, 10, dtype=torch.bool).triu(1))
        assert torch.equal(out, model(x, is_causal=True, mask=torch.ones(10, 10, dtype=torch.bool).triu(1)))
    assert recording.names == 2 * [f"layers.{n}.self_attn" for n in range(3)]
    attention = model.layers[0].self_attn
    _, expected = attention(
        x, x, x, attn_mask=torch.ones(10, 10, dtype=torch.bool).triu(1), average_attn_weights=False
    )
    torch.testing.assert_close(recording[0].weights, expected)
    torch.testing.assert_close(
        recording[0].binned, expected.unflatten(-1, (5, 2)).unflatten(2, (2, 5)).mean((3, 5))
    )


def test_recording_changes_neither_outputs_nor_gradients():
    model = encoder(dropout=0.3)
    x = torch.randn(2, 10, 32)

    def step():
        torch.manual_seed(5)
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = step()
    with visualize.record(model, bins=3) as recording:
        found = step()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(recording) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    step()
    assert len(recording) == 3


def test_records_calls_without_a_model():
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    mask = masks.SlidingWindow(2, 0) | masks.Global(1)
    with visualize.record(rows=[4]) as recording:
        ax.attention(q, k, v, mask=mask, softcap=2.0)
        torch.ops.attention_ext.attention(
            q, k, v, *mask.lower(1, 2, 9, 9, q.device), None, None, None, None, 2.0, 0.0, None
        )
    assert recording.names == ["", ""]
    expected = ax.attention_map(q, k, mask, rows=[4], softcap=2.0)
    for map_ in recording:
        assert map_.binned is None
        assert torch.equal(map_.weights, expected.weights)
        assert torch.equal(map_.column_sums, expected.column_sums)
    with pytest.raises(ValueError, match="weights: expected a recording with rows"):
        recording.weights()


def test_nothing_to_record_is_an_error():
    with pytest.raises(RuntimeError, match="record: no attention of attention_ext ran"):  # noqa: SIM117
        with visualize.record(torch.nn.Linear(2, 2)):
            pass


def test_an_error_inside_comes_out_and_leaves_nothing_behind():
    model = encoder()
    wrong = torch.randn(2, 10, 31)
    with pytest.raises(ValueError, match="query: expected"):  # noqa: SIM117
        with visualize.record(model):
            model(wrong)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with visualize.record(model) as recording:
        with pytest.raises(ValueError, match="query: expected"):
            model(wrong)
        ax.attention(*(torch.randn(1, 1, 2, 4) for _ in range(3)))
    assert recording.names == [""]


# rollout


def random_weights(*sizes):
    return torch.rand(*sizes, dtype=F64).softmax(-1)


def test_rollout_is_the_product_of_the_layers():
    layers = [random_weights(2, 4, 6, 6) for _ in range(3)]
    layers[1][0, :, 2] = 0.0  # sees nothing
    layers[2] *= 0.7  # what a sink leaves
    found = visualize.rollout(layers, residual=0.3)
    assert found.shape == (3, 2, 6, 6)
    for b in range(2):
        product = torch.eye(6, dtype=F64)
        for n, layer in enumerate(layers):
            A = 0.7 * layer[b].mean(0) + 0.3 * torch.eye(6, dtype=F64)
            product = A / A.sum(-1, keepdim=True) @ product
            torch.testing.assert_close(found[n, b], product)
    torch.testing.assert_close(visualize.rollout([torch.zeros(1, 4, 4)], residual=0.0)[0], torch.eye(4))


def test_rollout_in_bins_is_that_of_the_weights():
    model = encoder(dropout=0.2)
    with visualize.record(model, rows="all", rollout_bins=4) as recording:
        model(torch.randn(2, 10, 32))
    assert [r.shape for r in recording.rollout] == 3 * [(2, 10, 4)]
    for b in range(2):
        whole = visualize.rollout(recording.weights(b))
        binned = torch.stack([part.sum(-1) for part in whole.tensor_split([2, 5, 7], -1)], -1)
        torch.testing.assert_close(torch.stack(recording.rollout)[:, b], binned)


def test_rollout_needs_self_attention():
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 5, 4)
    with pytest.raises(ValueError, match="rollout_bins: expected self-attention"):  # noqa: SIM117
        with visualize.record(rollout_bins=2):
            ax.attention(q, k, k)


@pytest.mark.parametrize(
    ("weights", "residual", "message"),
    [
        ([], 0.5, "weights: expected those of one layer at least"),
        ([torch.rand(2, 3, 4)], 0.5, r"weights: expected \(..., H, L, L\) for layer 0, got \(2, 3, 4\)"),
        ([torch.rand(4, 4)], 0.5, "weights: expected"),
        ([torch.rand(2, 3, 3), torch.rand(2, 4, 4)], 0.5, r"\(..., H, 3, 3\) for layer 1, got \(2, 4, 4\)"),
        ([torch.rand(2, 3, 3)], 1.5, "residual: expected 0 to 1, got 1.5"),
    ],
)
def test_bad_input_of_rollout(weights, residual, message):
    with pytest.raises(ValueError, match=message):
        visualize.rollout(weights, residual=residual)


# bertviz


def test_the_form_that_bertviz_takes():
    tokens = ["[CLS]", "a", "b", "[SEP]"]
    weights = [random_weights(3, 4, 4).requires_grad_() for _ in range(2)]
    given = visualize.for_bertviz(weights, tuple(tokens))
    assert set(given) == {"attention", "tokens"}  # arguments of head_view and model_view
    assert given["tokens"] == tokens
    assert isinstance(given["tokens"], list)  # written as JSON
    assert isinstance(given["attention"], tuple)
    # What bertviz does with it: num_heads, then one tensor of layers, heads, queries, keys, as JSON.
    assert given["attention"][0][0].size(0) == 3
    assert all(layer.dim() == 4 for layer in given["attention"])
    stacked = torch.stack([layer.squeeze(0) for layer in given["attention"]])
    assert stacked.tolist() == torch.stack(weights).tolist()
    for bad, message in (([], "at least"), ([weights[0][:, :3]], r"got \(3, 3, 4\)")):
        with pytest.raises(ValueError, match=message):
            visualize.for_bertviz(bad, tokens)


# pictures


def test_matplotlib_is_imported_when_something_is_drawn():
    program = "import sys, attention_ext; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def assert_shown(axes, map_):
    (image,) = axes.images
    torch.testing.assert_close(torch.as_tensor(image.get_array().data), map_, check_dtype=False)


def test_plot_map(pyplot):
    weights, queries, keys = torch.rand(3, 5), ["a", "$b$", "c"], list("vwxyz")
    axes = visualize.plot_map(weights, queries=queries, keys=keys, title="a map", label="share")
    assert_shown(axes, weights)
    assert [t.get_text() for t in axes.get_xticklabels()] == keys
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", r"\$b\$", "c"]
    assert axes.get_title() == "a map"
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert [a.get_ylabel() for a in axes.figure.axes if a is not axes] == ["share"]
    axes.figure.savefig(io.BytesIO(), format="png")


def test_plot_map_of_tiles_has_the_positions_on_its_axes(pyplot):
    axes = visualize.plot_map(torch.rand(4, 8), lengths=(100, 300), vmax=0.5, colorbar=False)
    assert axes.get_xlim() == (-0.5, 299.5)
    assert axes.get_ylim() == (99.5, -0.5)
    assert axes.images[0].norm.vmax == 0.5
    assert visualize.plot_map(torch.zeros(2, 2), ax=axes) is axes


def test_many_tokens_are_written_where_there_is_room(pyplot):
    tokens = [f"t{n}" for n in range(130)]
    axes = visualize.plot_map(torch.rand(130, 130), queries=tokens, keys=tokens)
    assert [t.get_text() for t in axes.get_xticklabels()] == tokens[::4]


def test_plot_heads(pyplot):
    maps, tokens = torch.rand(5, 3, 3), ["a", "b", "c"]
    figure = visualize.plot_heads(maps, tokens=tokens, title="a layer", columns=3)
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == [f"head {n + 1}" for n in range(5)]
    assert {axes.images[0].norm.vmax for axes in drawn} == {float(maps.max())}
    for n, axes in enumerate(drawn):
        torch.testing.assert_close(
            torch.as_tensor(axes.images[0].get_array().data), maps[n], check_dtype=False
        )
        labels = [t.label1.get_visible() for t in axes.xaxis.get_major_ticks()]
        assert any(labels) == (n >= 2)  # nothing hangs below these
    assert figure.get_suptitle() == "a layer"
    figure.savefig(io.BytesIO(), format="png")


def test_plot_column_sums(pyplot):
    sums = torch.rand(6)
    axes = visualize.plot_column_sums(sums, tokens=list("abcdef"), title="received")
    torch.testing.assert_close(
        torch.tensor([bar.get_height() for bar in axes.patches], dtype=F64), sums.double()
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == list("abcdef")
    many = torch.rand(100)
    axes = visualize.plot_column_sums(many, tokens=[str(n) for n in range(100)], named=3)
    assert [t.get_text() for t in axes.texts] == [str(n) for n in many.topk(3).indices.tolist()]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: visualize.plot_map(torch.rand(2, 3, 3)),
            r"map_: expected \(Lq, Lk\), got shape \(2, 3, 3\)",
        ),
        (lambda: visualize.plot_map(torch.rand(2, 3), keys=["a"]), "keys: expected 3, got 1"),
        (lambda: visualize.plot_map(torch.rand(2, 3), queries=["a"]), "queries: expected 2, got 1"),
        (lambda: visualize.plot_heads([]), "maps: expected at least one"),
        (lambda: visualize.plot_heads(torch.rand(2, 3, 3), titles=["one"]), "titles: expected 2"),
        (lambda: visualize.plot_column_sums(torch.rand(2, 3)), r"sums: expected \(Lk,\)"),
        (lambda: visualize.plot_column_sums(torch.rand(2), tokens=["a"]), "tokens: expected 2, got 1"),
    ],
)
def test_bad_input_of_the_plots(pyplot, draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
