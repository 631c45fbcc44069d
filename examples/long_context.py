"""Five attentions in the same small language model: what they learn in a given time, and what length costs.

python examples/long_context.py [--minutes M] [--quick]
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import torch
from byte_model import KINDS, LAYERS, RECURRENT, ByteModel
from context_cost import costs
from op_calls import OpCalls
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

OUTPUT = Path(__file__).resolve().parent.parent / "demo_output"
LENGTH, BATCH = 1024, 2
LENGTHS = [1024 << i for i in range(7)]  # to 65,536
RATE = 3e-3
EVALUATIONS = 25
PROMPT = "The value of an expression is "
CONTINUATION = 200  # bytes
ALLOWED = 1e-4  # of logits of a size of 10
BAR = {"ncols": 88, "bar_format": "{l_bar}{bar}| {n:.0f}/{total:.0f}{postfix}"}


@dataclass
class Run:
    """A model in training: its own seconds and the loss at some of them."""

    kind: str
    model: ByteModel
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.01)


def text() -> tuple[Tensor, Tensor]:
    """The language reference that `help()` shows, as bytes: for training, and the last tenth to test on."""
    data = torch.frombuffer(bytearray("\n".join(topics.values()).encode()), dtype=torch.uint8).long()
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def batch(data: Tensor, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(data) - length, (BATCH,), generator=generator)
    return torch.stack([data[s : s + length + 1] for s in starts.tolist()])


def loss(model: ByteModel, data: Tensor) -> Tensor:
    return F.cross_entropy(model(data[:, :-1])[0].flatten(0, 1), data[:, 1:].flatten())


def train_step(run: Run, data: Tensor, budget: float) -> None:
    start = time.perf_counter()
    done = run.seconds / budget
    rate = RATE * min(1.0, 0.1 + 10 * done) * max(0.05, 1 - done)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad()
    loss(run.model, data).backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.seconds += time.perf_counter() - start
    run.steps += 1


def train(seconds: float, length: int) -> list[Run]:
    """A model of each kind, the same seconds for each, in turns: a busy machine disturbs all alike."""
    runs = []
    for kind in KINDS:
        torch.manual_seed(0)
        runs.append(Run(kind, ByteModel(kind)))
    training, testing = text()
    generators = {run.kind: torch.Generator().manual_seed(1) for run in runs}
    test = batch(testing, length, torch.Generator().manual_seed(2))
    bar = tqdm(total=seconds * len(runs), desc="  training, seconds", **BAR)
    while (run := min(runs, key=lambda run: run.seconds)).seconds < seconds:
        if run.seconds >= len(run.curve) / EVALUATIONS * seconds:
            evaluate(run, test)
            bar.set_postfix_str(f"{run.kind}: {run.curve[-1][1]:.2f}")
        before = run.seconds
        train_step(run, batch(training, length, generators[run.kind]), seconds)
        bar.update(min(run.seconds, seconds) - before)
    for run in runs:
        evaluate(run, test)
    bar.close()
    return runs


@torch.no_grad()
def evaluate(run: Run, test: Tensor) -> None:
    run.curve.append((run.seconds, loss(run.model, test).item()))


@torch.no_grad()
def continued(model: ByteModel, prompt: str, count: int) -> tuple[str, float]:
    """The prompt and `count` bytes more, drawn step by step, and by how much the logits of the steps differ
    from those of the whole text at once."""
    generator = torch.Generator().manual_seed(3)
    data = list(prompt.encode())
    logits, states = model(torch.tensor([data]))
    logits, stepped = logits[:, -1], []
    for _ in range(count):
        stepped.append(logits)
        chosen = torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator)[:, 0]
        logits = model.step(chosen, states)
        data.append(int(chosen))
    whole, _ = model(torch.tensor([data]))
    difference = (torch.stack(stepped, 1) - whole[:, -count - 1 : -1]).abs().max().item()
    return bytes(data).decode(errors="replace"), difference


def calls_per_step(model: ByteModel) -> int:
    with OpCalls() as counter:
        loss(model, torch.zeros(1, 65, dtype=torch.int64)).backward()
    return sum(counter.calls.values())


def measure(lengths: list[int], least_seconds: float) -> dict[str, list[tuple[float, int]]]:
    measured: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
    bar = tqdm(total=len(KINDS) * len(lengths), desc="  lengths", **BAR)
    for kind, found in measured.items():
        for cost in costs(kind, lengths, torch.get_num_threads(), least_seconds):
            found.append(cost)
            bar.set_postfix_str(f"{kind}, {lengths[len(found) - 1]:,} tokens: {cost[0]:.2f} s")
            bar.update()
    bar.close()
    return measured


def draw(runs: list[Run], lengths: list[int], measured: dict[str, list[tuple[float, int]]], path: Path):
    import matplotlib  # not above: the processes that measure import this module too

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    for run in runs:
        axes[0].plot(*zip(*run.curve, strict=True), label=f"{run.kind} ({run.steps} steps)")
        seconds, sizes = zip(*measured[run.kind], strict=True)
        axes[1].loglog(lengths, seconds, "o-", label=run.kind)
        axes[2].loglog(lengths, [size / 2**20 for size in sizes], "o-", label=run.kind)
    axes[0].set(title="Test loss of a byte-level model", xlabel="seconds of training", ylabel="nats per byte")
    axes[1].set(title="Time of a training step of one layer", xlabel="tokens", ylabel="seconds")
    axes[2].set(title="Its peak memory", xlabel="tokens", ylabel="MiB")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes[1:]:
        axis.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
        axis.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def report(runs: list[Run], lengths: list[int], measured: dict[str, list[tuple[float, int]]]) -> bool:
    """Print what came out; whether every check holds."""
    shortest, longest = lengths[0], lengths[-1]
    head = f"{f'{longest:,} tokens':>17}{'memory':>12}{f'time / {shortest:,} tokens':>22}"
    print(f"\n  {'attention':<16}{'steps':>7}{'test loss':>11}{head}")
    ok = True
    for run in runs:
        (first, _), (seconds, size) = measured[run.kind][0], measured[run.kind][-1]
        cost = f"{seconds:>15.2f} s{size / 2**20:>8.0f} MiB{seconds / first:>20.0f} x"
        print(f"  {run.kind:<16}{run.steps:>7}{run.curve[-1][1]:>11.3f}{cost}")
        ran = calls_per_step(run.model) == 2 * LAYERS
        learned = run.curve[-1][1] < run.curve[0][1]
        if not (ran and learned):
            print(f"    {'our kernels did not run' if not ran else 'the loss did not fall'}")
        ok = ok and ran and learned
    for run in runs:
        if run.kind not in RECURRENT:
            continue
        written, difference = continued(run.model, PROMPT, CONTINUATION)
        within = difference <= ALLOWED
        print(f"\n  {run.kind}, continued a byte at a time with a state of constant size:")
        print(f"    {written!r}")
        print(
            f"    largest difference of its logits to those of the whole text at once: {difference:.1e}"
            f" ({'within' if within else 'ABOVE'} the allowed {ALLOWED:.0e})"
        )
        ok = ok and within
    return ok


def main(arguments: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, all models together")
    parser.add_argument("--quick", action="store_true", help="seconds of training, short lengths")
    parser.add_argument("--output", type=Path, default=OUTPUT / "long_context.png", help="the picture")
    options = parser.parse_args(arguments)
    seconds = 1.0 if options.quick else options.minutes * 60 / len(KINDS)
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    runs = train(seconds, LENGTH // 8 if options.quick else LENGTH)
    measured = measure(lengths, 0.02 if options.quick else 0.5)
    draw(runs, lengths, measured, options.output)
    ok = report(runs, lengths, measured)
    print(f"\n  picture: {options.output}")
    return ok


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
