"""One training step of a sliding-window attention layer over a long sequence, on the CPU."""

import resource
import sys
import time

import torch
from op_calls import OpCalls
from tqdm import tqdm

import attention_ext as ax

TOKENS = 65_536
EMBED, HEADS, WINDOW = 512, 8, 256
ALLOWED = 1e-5


def peak_memory() -> int:
    """The largest resident memory so far of this process, in bytes."""
    try:
        with open("/proc/self/status") as status:  # ru_maxrss may start at what the parent process had
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def agrees(layer, x, out) -> float:
    """The largest difference to torch's own layer, on a stretch that it can hold."""
    theirs = torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True)
    theirs.load_state_dict(layer.state_dict())
    end = TOKENS // 2 + WINDOW
    stretch = x[:, end - 2 * WINDOW : end].detach()
    i, j = torch.arange(2 * WINDOW)[:, None], torch.arange(2 * WINDOW)
    masked = (j > i) | (i - j >= WINDOW)
    expected = theirs(stretch, stretch, stretch, attn_mask=masked, need_weights=False)[0]
    return (expected[:, WINDOW:] - out[:, end - WINDOW : end]).abs().max().item()


def main() -> bool:
    torch.manual_seed(0)
    layer = ax.MultiheadAttention(EMBED, HEADS, batch_first=True)
    window = ax.masks.SlidingWindow(WINDOW - 1, 0)
    warm = torch.randn(1, 512, EMBED, requires_grad=True)
    layer(warm, warm, warm, attn_mask=window, need_weights=False)[0].sum().backward()
    layer.zero_grad()
    x = torch.randn(1, TOKENS, EMBED, requires_grad=True)
    print(f"  layer     ax.MultiheadAttention({EMBED}, {HEADS}), each token sees {WINDOW}: {window}")
    print(f"  sequence  {TOKENS:,} tokens, {torch.get_num_threads()} threads, float32")

    before, seconds = peak_memory(), []
    bar = tqdm(total=2, desc="  forward", ncols=88, bar_format="{l_bar}{bar}| {n}/{total}")
    with OpCalls() as counter:
        start = time.perf_counter()
        out = layer(x, x, x, attn_mask=window, need_weights=False)[0]
        seconds.append(time.perf_counter() - start)
        bar.update()
        bar.set_description("  backward")
        out.square().mean().backward()
        seconds.append(time.perf_counter() - start - seconds[0])
        bar.update()
    bar.close()
    grown = peak_memory() - before

    calls = counter.calls["_attention_forward"], counter.calls["_attention_backward"]
    ran = calls == (1, 1)
    difference = agrees(layer, x, out.detach())
    right = difference <= ALLOWED and x.grad.isfinite().all().item()
    scores = TOKENS * TOKENS * HEADS * 4
    print(f"\n  {'forward':<34}{seconds[0]:>12.1f} s")
    print(f"  {'backward':<34}{seconds[1]:>12.1f} s")
    print(f"  {'peak memory of the step':<34}{grown / 2**30:>12.2f} GiB")
    print(f"  {'the Lq x Lk matrix alone':<34}{scores / 2**30:>12.0f} GiB  (float32, {HEADS} heads)")
    print(f"\n  our kernels ran: {calls[0]} forward, {calls[1]} backward")
    print(
        f"  largest difference to torch.nn.MultiheadAttention on a stretch: {difference:.1e}"
        f" ({'within' if right else 'ABOVE'} the allowed {ALLOWED:.0e})"
    )
    return ran and right


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
