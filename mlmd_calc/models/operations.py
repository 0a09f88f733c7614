"""A function of tensors as the list of operations it consists of.

The list is a Python function without modules, branches and views of views, which halves the time of
small networks. Its operations are those of the function with the same numbers in the same memory
layout, so that the results are the same bit by bit.
"""

from __future__ import annotations

import functools
import operator
import threading
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, fx

_LIBRARY: Final = torch.library.Library("mlmd", "FRAGMENT")

_FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {}
"""What operations made here do; calling it costs less than calling the operation."""

_CONSTANT: Final = "constant"

_ONE_AT_A_TIME: Final = threading.Lock()
"""torch.fx keeps what it is tracing for the whole process, not for a thread."""

_Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and place in the memory."""


def single_operation(
    name: str, arguments: str, results: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """Make a function for the CPU one operation of torch, so that it is recorded as one.

    Parameters
    ----------
    name
        Name of the operation in ``torch.ops.mlmd``.
    arguments, results
        Their types and names, as in a schema of torch.
    function
        What it does; it must not return or change its arguments.
    """
    _LIBRARY.define(f"{name}({arguments}) -> ({results})")
    _LIBRARY.impl(name, function, "CPU")
    made: Callable[..., Any] = getattr(torch.ops.mlmd, name).default
    _FUNCTIONS[made] = function
    return made


def refuse_second_derivative() -> None:
    """Refuse to differentiate a gradient that is computed by other than torch's operations.

    torch.autograd.function.once_differentiable would not do: torch.autograd.grad takes the missing
    second derivative for zero if it can reach its inputs by another way.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this form of the network has a first derivative only, so it cannot be differentiated "
            "with create_graph=True; use the network as it was loaded, MD-ET "
            "with attention=edge_attention_reference"
        )


def trace(function: Callable[..., Any], *arguments: Tensor) -> fx.GraphModule:
    """List the operations of a function, with ``make_fx`` of torch, in any thread."""
    # Takes long to import, and only those who record need it.
    from torch.fx.experimental.proxy_tensor import make_fx

    with _ONE_AT_A_TIME:
        recorded: fx.GraphModule = make_fx(function)(*arguments)
    return recorded


def record_operations(
    function: Callable[..., Any], arguments: Sequence[Tensor], constants: Collection[int] = ()
) -> Callable[..., Any]:
    """List the operations of a function for the shapes and strides of some arguments.

    Parameters
    ----------
    function
        What it does may depend on shapes and strides, not on numbers in tensors; returns a tensor,
        or a tuple or dictionary of tensors. Of other tensors, such as weights, changes of the
        values count, unless there are constants. It must not draw random numbers.
    arguments
        Arguments to record it with.
    constants
        Which arguments have the same values in every call. What follows from them and from other
        tensors alone is computed once, here.

    Returns
    -------
    callable
        The same function for arguments of these shapes and strides, without gradients.
    """
    # A tensor made in a caller's inference mode cannot be used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        # Views of constants are kept, and callers may reuse the memory of theirs.
        arguments = [own.clone() if k in constants else own for k, own in enumerate(arguments)]
        recorded = trace(function, *arguments)
        _shorten(recorded, arguments, constants)
    forward = type(recorded).forward
    names = {str(node.target) for node in recorded.graph.nodes if node.op == "get_attr"}
    # Looking for attributes of a module would take as long as the operations.
    tensors = types.SimpleNamespace(**{name: getattr(recorded, name) for name in names})
    return functools.partial(forward, tensors)


def _shorten(
    recorded: fx.GraphModule, arguments: Sequence[Tensor], constants: Collection[int]
) -> None:
    """Compute what is always the same, make one view of several, and call operations directly."""
    graph = recorded.graph
    values = _values(recorded, arguments)
    changed = {_memory(values[node.args[0]]) for node in graph.nodes if _changes_argument(node)}
    # By memory and type: a complex number and its two parts are at one address, and only views of
    # one type follow from each other by strides.
    origins: dict[tuple[int, torch.dtype], fx.Node] = {}
    views: dict[tuple[tuple[int, torch.dtype], _Layout], fx.Node] = {}
    made: set[int] = set()
    given = [node for node in graph.nodes if node.op == "placeholder"]
    fixed = {given[k] for k in constants if _memory(values[given[k]]) not in changed}
    is_fixed = functools.partial(_is_fixed, fixed, values, bool(constants))
    for node in list(graph.nodes):
        value = values.get(node)
        if not isinstance(value, Tensor):
            if constants and is_fixed(node):
                fixed.add(node)
            continue
        memory = _memory(value)
        place = memory, value.dtype
        if node.op == "get_attr":
            fixed.add(node)
        elif _changes_argument(node):
            # Later views of this memory have to wait for the change.
            for other in [other for other in origins if other[0] == memory]:
                del origins[other]
            for seen in [seen for seen in views if seen[0][0] == memory]:
                del views[seen]
            origins[place] = node
            made.add(memory)
        elif memory not in changed and is_fixed(node):
            fixed.add(node)
        elif place in origins and node.op == "call_function":
            view = _layout(value)
            same = origins[place] if view == _layout(values[origins[place]]) else None
            same = same or views.get((place, view))
            if same is None:
                with graph.inserting_before(node):
                    same = graph.call_function(torch.as_strided, (origins[place], *view))
                values[same] = value
                views[place, view] = same
            node.replace_all_uses_with(same)
        elif node.op == "call_function" and (not _is_view(node, values) or memory in made):
            # Not views of arguments: those may begin elsewhere in their memory next time.
            origins[place] = node
            made.add(memory)
    _keep(recorded, fixed, values)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.target = _direct(node.target)
    recorded.recompile()


def _values(recorded: fx.GraphModule, arguments: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """Results of all operations."""

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    values: dict[fx.Node, Any] = {}
    Observer(recorded, garbage_collect_values=False).run(*arguments)
    return values


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _layout(tensor: Tensor) -> _Layout:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _changes_argument(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _is_view(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether it looks at memory of what it is made from; a part of a tuple may, too."""
    made = node.args[0] if node.target is operator.getitem else node
    assert isinstance(made, fx.Node)  # tuples are results of operations
    memory = _memory(values[node])
    return any(
        isinstance(values[other], Tensor) and _memory(values[other]) == memory
        for other in made.all_input_nodes
    )


def _is_fixed(
    fixed: set[fx.Node], values: dict[fx.Node, Any], folding: bool, node: fx.Node
) -> bool:
    """Whether it is made of nothing, or of what is fixed: a view, whose values may change.

    With constants nothing that is fixed changes, and then it need not be a view.
    """
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        if not node.all_input_nodes:
            return True
    elif not folding:
        return False
    return fixed.issuperset(node.all_input_nodes) and (folding or _is_view(node, values))


def _keep(recorded: fx.GraphModule, fixed: set[fx.Node], values: dict[fx.Node, Any]) -> None:
    """Put fixed tensors in the place of the operations that made them."""
    used = [
        node
        for node in fixed
        if node.op != "get_attr"
        and isinstance(values[node], Tensor)
        and not fixed.issuperset(node.users)
    ]
    for i, node in enumerate(used):
        recorded.register_buffer(f"{_CONSTANT}{i}", values[node])
        with recorded.graph.inserting_before(node):
            constant = recorded.graph.get_attr(f"{_CONSTANT}{i}")
        node.replace_all_uses_with(constant)


def _direct(target: Any) -> Any:
    """Find the function that computes an operation faster than the operation itself."""
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    if isinstance(target, torch._ops.OpOverload):
        function = getattr(torch, target._schema.name.removeprefix("aten::"), None)
        if isinstance(function, types.BuiltinFunctionType):
            return function
    return target
