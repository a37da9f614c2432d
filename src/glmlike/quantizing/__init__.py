"""Quantize a checkpoint of any known format, a tensor at a time, to a folder that loads like any other."""

from glmlike.quantizing.methods import METHODS, Method
from glmlike.quantizing.quantize import QuantizationPlan, QuantizationReport, quantize

__all__ = ["METHODS", "Method", "QuantizationPlan", "QuantizationReport", "quantize"]
