"""Faults of measures, studies and reports; see :mod:`faults`."""

from __future__ import annotations

from fault import Fault

SCIENCE_FAULTS = (
    Fault(
        "shifts of log-probabilities are not centred",
        "divergence/shifts.py",
        "    s -= (weights * s).sum()\n",
        "",
        "unit/test_divergence_shifts.py",
    ),
    Fault(
        "small principal angles are taken from their cosines",
        "divergence/subspaces.py",
        "torch.where(cosines**2 < 0.5, torch.acos(cosines), torch.asin(sines))",
        "torch.acos(cosines)",
        "unit/test_divergence_subspaces.py",
    ),
    Fault(
        "a delta forgets the weight of its behavior",
        "operations/behavior_deltas.py",
        "lora_scaling(config, update.module, member.weight)",
        "lora_scaling(config, update.module)",
        "unit/test_operations_behavior_deltas.py",
        "factors",
    ),
    Fault(
        "held-out prompts may be those that were measured",
        "operations/study_shift.py",
        "if shared and not allow_shared:",
        "if shared and allow_shared:",
        "integration/test_studies_together.py",
        "shared",
    ),
    Fault(
        "elimination takes all of equal numbers",
        "divergence/elimination.py",
        "                    ties &= ties.cumsum(0) <= left\n",
        "",
        "unit/test_divergence_perturbations.py",
        "takes_the_smallest",
    ),
    Fault(
        "noise does not depend on the tensor's name",
        "divergence/perturbations.py",
        'f"{purpose}\\n{seed}\\n{name}"',
        'f"{purpose}\\n{seed}"',
        "unit/test_divergence_perturbations.py",
        "seed_and_name",
    ),
    Fault(
        "a journal's lines may come from another one",
        "operations/study_journal.py",
        'sha256_hex(self.name.encode() + b"\\n" + body)',
        "sha256_hex(body)",
        "integration/test_studies.py",
        "another_journal",
    ),
    Fault(
        "one state of a study leaks into the next",
        "operations/study_model.py",
        "        if self._touched:\n",
        "        if False:\n",
        "integration/test_studies.py",
        "never_reaches",
    ),
    Fault(
        "a study begins from the start",
        "operations/study_run.py",
        "found = self._journal.find(key)",
        "found = None",
        "integration/test_studies.py",
        "goes_on",
    ),
    Fault(
        "a page believes what it shows",
        "report/markup.py",
        "html.escape(visible(value), quote=True)",
        "visible(value)",
        "integration/test_report.py",
    ),
    Fault(
        "a norm forgets the scale",
        "operations/report_changes.py",
        "abs(delta.scale) * math.sqrt(square)",
        "math.sqrt(square)",
        "integration/test_report.py",
        "norms",
    ),
    Fault(
        "a verdict goes by the mean alone",
        "divergence/verdict.py",
        "upper_end(comparison.prompts)",
        "None",
        "unit/test_divergence_verdict.py",
    ),
)
