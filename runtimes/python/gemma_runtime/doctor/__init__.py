"""`gemma-run --doctor`: what is installed, what starts, what is in the way. Writes nothing, sends nothing."""

from __future__ import annotations

from gemma_runtime.doctor.diagnosis import Diagnosis, diagnose
from gemma_runtime.doctor.text import diagnosis_json, diagnosis_text

__all__ = ["Diagnosis", "diagnose", "diagnosis_json", "diagnosis_text"]
