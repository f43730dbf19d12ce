"""Operators that make tensors from sizes, and those whose result says nothing about labels."""

from __future__ import annotations

from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.registry import rule


@rule(
    "aten.arange.default",
    "aten.arange.start",
    "aten.arange.start_step",
    "aten.zeros.default",
    "aten.ones.default",
    "aten.full.default",
    "aten.empty.memory_format",
    "aten.eye.default",
    "aten.eye.m",
    "aten.linspace.default",
    "aten.scalar_tensor.default",
    "aten.tril_indices.default",
    "aten.triu_indices.default",
    "aten.rand.default",
    "aten.randn.default",
    "aten.randint.default",
    "aten.randint.low",
    "aten.randperm.default",
    "aten.promote_types.default",
)
def create(call: Call) -> Arrays:
    """No tensor goes in."""
    return ()


@rule(
    "aten.new_ones.default",
    "aten.new_zeros.default",
    "aten.new_full.default",
    "aten.new_empty.default",
    "aten._assert_async.msg",
    "aten._assert_scalar.default",
)
def ignore(call: Call) -> Arrays:
    """Only the type of the input is used."""
    return ()


@rule("aten.sym_size.int")
def size(call: Call) -> Arrays:
    """The number that comes out is the dense one."""
    call.pin(call.value("self").on(call.axis()), "its size is used as a number")
    return ()


@rule(
    "aten.sym_stride.int",
    "aten.sym_numel.default",
    "aten._assert_tensor_metadata.default",
    "aten.is_nonzero.default",
)
def whole_size(call: Call) -> Arrays:
    """The number that comes out depends on every axis."""
    return call.refuse("its size is used as a number")
