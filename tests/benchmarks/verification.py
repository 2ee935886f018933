"""What verifying outputs costs beside the bare forward passes that it cannot do without, in one process.

    python tests/benchmarks/verification.py --model path/to/model --prompts prompts.json \\
        --out docs/benchmarks/verification.json

A baseline is recorded; then forward passes alone, verification of outputs that are equal bit for bit, verification of
outputs that all differ (the last norm scaled by 1.1 meanwhile), and a plain implementation of the same divergences
take turns. Each is divided by the mean of the bare passes before and after it, so that a machine that others use as
well slows both. Memory is the peak above the loaded model, which is reset before each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import MB, digits, markdown_table, median
from machine import machine, package_versions
from measuring import add_common, find_rblstore, measure_and_report
from targets import Target, verdict_table, verdicts

BARE, EQUAL, DIFFERING, PLAIN = "bare", "equal", "differing", "plain"
TITLES = {
    BARE: "forward passes alone",
    EQUAL: "verification, outputs bit-equal",
    DIFFERING: "verification, all outputs differ",
    PLAIN: "plain KL and JS, all outputs differ",
}
TOKENS, PROMPTS = 15, 10
PEAK_BYTES = 300 * MB


class Subject:
    """A model, its probe and its recorded baseline.

    Args:
        base: The model's checkpoint.
        prompts: A file of prompts, or token ids.
        folder: Where the repository is made.
    """

    def __init__(self, base: Path, prompts: Path | list[dict[str, Any]], folder: Path) -> None:
        import rblstore
        from rblstore.objects.evidence_records import Baseline, Probe

        self._repo = rblstore.init(folder / "store")
        self._repo.commit("base", identity=base, author="benchmark")
        self._repo.add_probe("probe", prompts)
        recorded = self._repo.baseline()
        self._store = self._repo._store
        self.probe = self._store.record(recorded.probe, Probe)
        self.baseline = self._store.record(recorded.baseline, Baseline)
        self.model = self._repo.load()
        self.theirs: list[Any] = []

    def bare(self) -> None:
        """Forward passes alone, batch by batch as the probe has them; every output is dropped at once."""
        import torch

        with torch.no_grad():
            for batch in self.probe.batches:
                assert len(batch) == 1
                self.model(input_ids=torch.tensor([self.probe.prompts[batch[0]].tokens]), use_cache=False)

    def verify(self, equal: bool) -> Any:
        """What ``rbl verify`` does once the model is loaded, short of storing a few hundred bytes."""
        from rblstore.divergence.compare import compare
        from rblstore.divergence.measure import measure
        from rblstore.operations.baseline import references

        measured = measure(self.model, self.probe)
        found = compare(references(self._store, self.baseline), measured, output=self.baseline.output)
        assert found.bit_equal == equal
        return found

    def remember(self) -> None:
        """Keeps the reference's logits in memory, which the plain implementation is spared to read."""
        import torch

        with torch.no_grad():
            self.theirs = [self.model(input_ids=torch.tensor([prompt.tokens])).logits[0].clone()
                           for prompt in self.probe.prompts]  # fmt: skip

    def plain(self) -> float:
        """Forward passes, and KL and JS as one writes them down, a position at a time; the mean KL."""
        import torch

        total, half = [], torch.tensor(0.5, dtype=torch.float64).log()
        with torch.no_grad():
            for prompt, theirs in zip(self.probe.prompts, self.theirs, strict=True):
                ours = self.model(input_ids=torch.tensor([prompt.tokens]), use_cache=False).logits[0]
                each = []
                for row, other in zip(theirs, ours, strict=True):
                    log_p = torch.log_softmax(row.double(), dim=-1)
                    log_q = torch.log_softmax(other.double(), dim=-1)
                    log_m = torch.logaddexp(log_p, log_q) + half
                    p, q = log_p.exp(), log_q.exp()
                    each.append(float((p * (log_p - log_q)).sum()))
                    (p * (log_p - log_m)).sum().add_((q * (log_q - log_m)).sum()).mul_(0.5)
                total.append(sum(each) / len(each))
        return sum(total) / len(total)

    def changed(self, factor: float) -> Callable[[], None]:
        """Scales the last norm's weights in place; what is returned puts them back, by copy."""
        import torch

        weight = [one for name, one in self.model.named_parameters() if "norm" in name][-1]
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(factor)

        def back() -> None:
            with torch.no_grad():
                weight.copy_(before)

        return back


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds, those of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_over(work: Callable[[], Any]) -> int | None:
    """Bytes of resident memory at the peak of a piece of work above those before it; None where Linux is not."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def field(name: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))

    try:
        reset.write_text("5")
        before = field("VmRSS:")
        work()
        return max(0, field("VmHWM:") - before)
    except OSError:
        return None


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The document of a run.

    Args:
        options: The arguments.
        folder: Where the repository is made.
    """
    import live_models
    import torch

    torch.set_num_threads(options.threads)
    base = options.model
    if base is None:
        base = live_models.write_random_model(folder / "random", options.random_gb * 1e9)
    made = [{"tokens": [(7 * at + 31 * place) % 1000 + 3 for at in range(TOKENS)]} for place in range(PROMPTS)]
    subject = Subject(base.resolve(), options.prompts or made, folder)
    subject.bare()
    document: dict[str, Any] = {
        "benchmark": "verification",
        "name": "verification" if options.out is None else options.out.stem,
        "machine": machine(folder),
        "versions": package_versions(),
        "threads": options.threads,
        "rounds": options.rounds,
        "model": base.name,
        "parameters": sum(one.numel() for one in subject.model.parameters()),
        "dtype": subject.baseline.dtype,
        "prompts": len(subject.probe.prompts),
        "positions": subject.probe.measured_positions(),
        "vocabulary": subject.baseline.prompts[0].shape[1],
        "memory_over_model_bytes": _memory(subject),
        "wall_s": {name: [] for name in TITLES},
        "cpu_s": {name: [] for name in TITLES},
        "ratios": {name: [] for name in TITLES if name != BARE},
        "cpu_ratios": {name: [] for name in TITLES if name != BARE},
    }
    subject.remember()
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        before = _take(document, BARE, subject.bare)
        for name in (EQUAL, DIFFERING, PLAIN):
            back = (lambda: None) if name == EQUAL else subject.changed(1.1)
            works = {
                EQUAL: lambda: subject.verify(True),
                DIFFERING: lambda: subject.verify(False),
                PLAIN: subject.plain,
            }
            taken = _take(document, name, works[name])
            back()
            after = _take(document, BARE, subject.bare)
            document["ratios"][name].append(2 * taken[0] / (before[0] + after[0]))
            document["cpu_ratios"][name].append(2 * taken[1] / (before[1] + after[1]))
            before = after
    document["targets"] = [one.as_json() for one in verdicts(document, TARGETS)]
    return document


def _memory(subject: Subject) -> dict[str, int | None]:
    found = {BARE: peak_over(subject.bare), EQUAL: peak_over(lambda: subject.verify(True))}
    back = subject.changed(1.1)
    found[DIFFERING] = peak_over(lambda: subject.verify(False))
    back()
    return found


def _take(document: dict[str, Any], name: str, work: Callable[[], Any]) -> tuple[float, float]:
    taken = timed(work)
    document["wall_s"][name].append(taken[0])
    document["cpu_s"][name].append(taken[1])
    return taken


def _ratio(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda document: median(document["ratios"][name]) if document["ratios"].get(name) else None


def _peak(document: Mapping[str, Any]) -> float | None:
    found = [document["memory_over_model_bytes"].get(name) for name in (EQUAL, DIFFERING)]
    known = [value for value in found if value is not None]
    return max(known) / MB if known else None


TARGETS = (
    Target("verify outputs that are bit-equal", "x the forward passes", 1.1, _ratio(EQUAL)),
    Target("verify outputs that differ", "x the forward passes", 1.5, _ratio(DIFFERING)),
    Target("memory over the model", "MB", PEAK_BYTES / MB, _peak),
)


def page(document: Mapping[str, Any]) -> str:
    """The page of a run, in Markdown."""
    on = document["machine"]
    rows = []
    for name, title in TITLES.items():
        ratios, peak = document["ratios"].get(name, []), document["memory_over_model_bytes"].get(name)
        rows.append((
            title, _spread(document["wall_s"][name]), _spread(document["cpu_s"][name]), _spread(ratios),
            _spread(document["cpu_ratios"].get(name, [])), "" if peak is None else f"{peak / MB:.0f}",
        ))  # fmt: skip
    header = ("", "seconds", "CPU seconds", "x forward passes", "x their CPU", "peak over the model, MB")
    parts = [
        "# Verification",
        f"Written by `tests/benchmarks/verification.py`; raw figures are in `{document['name']}.json`.",
        (
            f"{document['model']}: {document['parameters'] / 1e6:.0f} M parameters, outputs in {document['dtype']}; "
            f"{document['prompts']} prompts, {document['positions']} positions x {document['vocabulary']:,}. "
            f"{on['processor']}, {on['cores']} cores, {on['kernel']}, {document['threads']} threads of torch. Medians "
            f"of {document['rounds']} rounds (least to most), which take turns. A ratio is to the mean of the bare "
            f"passes before and after. Load average at the start: {on['load_average'][0]}."
        ),
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".",
        "## Targets",
        verdict_table(verdicts(document, TARGETS)),
        "## Figures",
        markdown_table(header, rows),
        (
            "Equal outputs cost a SHA-256 a prompt and no reading. Where outputs differ the recorded logits are read "
            "from the store, two prompts at once, and verified; KL and JS are computed in float64, whole rows at a "
            "time, by torch's threads. The plain implementation has the reference in memory already, and does in "
            "float64 what one writes down first."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{digits(median(values), 3)} ({digits(min(values), 3)} to {digits(max(values), 3)})" if values else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common(parser)
    parser.add_argument("--random-gb", type=float, default=0.02, metavar="GB", help="else a random one, that large")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="the probe's prompts; else made-up token ids")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="(7)")
    options = parser.parse_args(arguments)
    find_rblstore()
    measure_and_report(options, measure, page)


if __name__ == "__main__":
    main()
