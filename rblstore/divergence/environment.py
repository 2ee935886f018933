"""The circumstances that decide the bits of a model's outputs, as flat text that a baseline records."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from rblstore.objects.canonical import Json, encode_json, sha256_hex
from rblstore.objects.evidence_records import Probe


def current_environment(model: torch.nn.Module, probe: Probe) -> dict[str, str]:
    """Where and how this model is measured now.

    Bit equality is demanded only between equal environments. The dtype is that of most of the parameters, so that a
    composition and its base in one dtype share an environment although adapters are attached in another.

    Args:
        model: A transformers model, peft-wrapped or not, or any module.
        probe: Its batch plan counts: padding and batch sizes change bits.

    Returns:
        Names and values as text, sorted by name.
    """
    device = _device(model)
    found = {
        "attention": _attention(model),
        "batch_plan": _batch_plan(probe),
        "device": device.type,
        "dtype": _dtype(model),
        "machine": platform.machine(),
        "matmul_precision": _matmul_precision(),
        "deterministic": _flag(torch.are_deterministic_algorithms_enabled()),
        "mkldnn": _flag(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
        "mkldnn_deterministic": _flag(getattr(torch.backends.mkldnn, "deterministic", False)),
        "sdp": _scaled_dot_product(),
        "cpu_capability": str(torch.backends.cpu.get_cpu_capability()),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "transformers": _version("transformers"),
        "peft": _version("peft"),
    }
    if device.type == "cuda":
        found.update(_cuda(device))
    return dict(sorted(found.items()))


def environment_differences(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What differs between two environments: name to (value in ``a``, value in ``b``), None where one lacks it."""
    names = sorted(set(a) | set(b))
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def _flag(value: Any) -> str:
    return "on" if value else "off"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _device(model: torch.nn.Module) -> torch.device:
    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def _dtype(model: torch.nn.Module) -> str:
    elements: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        elements[name] = elements.get(name, 0) + parameter.numel()
    return max(sorted(elements), key=lambda name: elements[name]) if elements else "none"


def _attention(model: torch.nn.Module) -> str:
    config = getattr(model, "config", None)
    return str(getattr(config, "_attn_implementation", None) or "none")


def _batch_plan(probe: Probe) -> str:
    plan: dict[str, Json] = {"batches": [list(batch) for batch in probe.batches], "positions": probe.positions}
    return sha256_hex(encode_json(plan))


def _precision(backend: Any) -> str | None:
    precision = getattr(backend, "fp32_precision", None)
    return "ieee" if precision == "none" else precision


def _matmul_precision() -> str:
    # Newer versions of torch keep one setting a backend, and refuse the older, common one once those were used.
    backends = {"cuda": torch.backends.cuda.matmul, "mkldnn": getattr(torch.backends.mkldnn, "matmul", None)}
    found = {name: _precision(backend) for name, backend in backends.items()}
    settings = [f"{name}={precision}" for name, precision in found.items() if precision is not None]
    return " ".join(settings) or str(torch.get_float32_matmul_precision())


def _scaled_dot_product() -> str:
    kernels = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "mem_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
    }
    return " ".join(name for name, enabled in kernels.items() if enabled) or "none"


def _cuda(device: torch.device) -> dict[str, str]:
    major, minor = torch.cuda.get_device_capability(device)
    matmul = torch.backends.cuda.matmul
    return {
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cuda_capability": f"{major}.{minor}",
        "cuda_device": str(torch.cuda.get_device_name(device)),
        "cuda_reduced_precision": " ".join(
            (
                f"fp16={_flag(matmul.allow_fp16_reduced_precision_reduction)}",
                f"bf16={_flag(matmul.allow_bf16_reduced_precision_reduction)}",
            )
        ),
        "cudnn": str(torch.backends.cudnn.version()),
        "cudnn_benchmark": _flag(torch.backends.cudnn.benchmark),
        "cudnn_deterministic": _flag(torch.backends.cudnn.deterministic),
        "cudnn_precision": _precision(getattr(torch.backends.cudnn, "conv", None))
        or f"tf32 {_flag(torch.backends.cudnn.allow_tf32)}",
    }
