"""The licences that model and dataset cards name, each with the one key by which rules know it: a table, no more.

A key is an SPDX id where one exists, else scancode's ``LicenseRef-scancode-...``, else a ``LicenseRef-rbl-...`` of ours
for licences that neither lists (Llama 3, several RAILs), and for names that stand for a family and leave open which of
it. ``gpl`` and ``lgpl`` without a version are any version: the licences themselves say so.
"""

from __future__ import annotations

from typing import Final

NOASSERTION: Final = "NOASSERTION"
"""SPDX's word for: nobody says."""

OF_OURS: Final = "LicenseRef-rbl-"
"""How keys begin that only rblstore knows: of this table, of a name in a card, of a text by its SHA-256."""

FAMILIES: Final = {"LicenseRef-rbl-bsd": "BSD-", "LicenseRef-rbl-cc": "CC", "LicenseRef-rbl-gfdl": "GFDL-"}
"""Keys that leave open which licence of a family it is -> how the keys of that family begin."""

HUB_LICENSES: Final[dict[str, str]] = {
    # Ids of the Hugging Face hub that are no SPDX id, or leave out its version.
    "apple-amlr": "LicenseRef-rbl-apple-amlr",
    "apple-ascl": "LicenseRef-scancode-apple-sscl",
    "bigcode-openrail-m": "LicenseRef-scancode-bigcode-open-rail-m-v1",
    "bigscience-bloom-rail-1.0": "LicenseRef-scancode-bigscience-rail-1.0",
    "bigscience-openrail-m": "LicenseRef-scancode-bigscience-open-rail-m",
    "bsd": "LicenseRef-rbl-bsd",
    "c-uda": "C-UDA-1.0",
    "cc": "LicenseRef-rbl-cc",
    "creativeml-openrail-m": "LicenseRef-scancode-stable-diffusion-2022-08-22",
    "deepfloyd-if-license": "LicenseRef-rbl-deepfloyd-if-license",
    "fair-noncommercial-research-license": "LicenseRef-rbl-fair-noncommercial-research-license",
    "gemma": "LicenseRef-scancode-gemma-tou-2024-04-01",
    "gfdl": "LicenseRef-rbl-gfdl",
    "gpl": "GPL-1.0-or-later",
    "grok2-community": "LicenseRef-rbl-grok2-community",
    "h-research": "LicenseRef-rbl-h-research",
    "intel-research": "LicenseRef-rbl-intel-research",
    "lgpl": "LGPL-2.0-or-later",
    "lgpl-lr": "LGPLLR",
    "llama2": "LicenseRef-scancode-llama-2-license-2023",
    "llama3": "LicenseRef-rbl-llama3",
    "llama3.1": "LicenseRef-scancode-llama-3.1-license-2024",
    "llama3.2": "LicenseRef-scancode-llama-3.2-license-2024",
    "llama3.3": "LicenseRef-scancode-llama-3.3-license-2024",
    "llama4": "LicenseRef-scancode-llama-4-license-2025",
    "odbl": "ODbL-1.0",
    "odc-by": "ODC-By-1.0",
    "openmdw": "LicenseRef-scancode-openmdw-1.0",
    "openmdw-1.0": "LicenseRef-scancode-openmdw-1.0",
    "openrail": "LicenseRef-rbl-openrail",
    "openrail++": "LicenseRef-rbl-openrail-plus-plus",
    "other": NOASSERTION,
    "pddl": "PDDL-1.0",
    "unknown": NOASSERTION,
    # What cards of widely used models write in license_name.
    "deepseek": "LicenseRef-scancode-deepseek-la-1.0",
    "exaone": "LicenseRef-rbl-exaone",
    "falcon-llm-license": "LicenseRef-rbl-falcon-llm-license",
    "flux-1-dev-non-commercial-license": "LicenseRef-scancode-flux-1-nc",
    "health-ai-developer-foundations": "LicenseRef-rbl-health-ai-developer-foundations",
    "mrl": "LicenseRef-rbl-mistral-research",
    "nvidia-open-model-license": "LicenseRef-scancode-nvidia-open-model-2025-04-28",
    "qwen": "LicenseRef-rbl-qwen",
    "qwen-research": "LicenseRef-rbl-qwen-research",
    "stabilityai-ai-community": "LicenseRef-scancode-stability-ai-community-2024",
    "tongyi-qianwen": "LicenseRef-scancode-tongyi-qianwen-2023",
    # How people write what has an SPDX id.
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache2": "Apache-2.0",
    "apache2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "mit license": "MIT",
}
"""Name as a card writes it, in lower case -> key."""
