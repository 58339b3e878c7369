"""The forward of a network as a row of steps: one tensor in, one tensor out, and no other between them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import vision_transformer
from torch import Tensor, fx, nn
from torch.fx import Node

ROOT = "model"
MOST = 50  # conditions that are decided in tracing


class Piece(nn.Module):
    """A part of `owner`'s forward that is no module of its own: functions, and the modules called among them.

    It shares the modules and, by the very dictionaries, the parameters and buffers of its owner: what
    `load_state_dict(assign=True)` or `torch.func.functional_call` put in the owner's place is what runs here.
    """

    def __init__(self, owner: nn.Module, graph: fx.Graph, calls: dict[str, str], tensors: set[str]):
        super().__init__()
        self.graph, self.tensors = graph, tensors
        if tensors:
            self._parameters, self._buffers = owner._parameters, owner._buffers
            self._non_persistent_buffers_set = owner._non_persistent_buffers_set
        for name, path in calls.items():
            self._modules[name] = owner.get_submodule(path)

    def forward(self, x: Tensor) -> Tensor:
        return fx.Interpreter(self, graph=self.graph).run(x)

    def __prepare_scriptable__(self) -> nn.Module:
        return fx.GraphModule(self, self.graph)  # an interpreter is no code that torch.jit.script compiles


@dataclass(frozen=True)
class Step:
    """Nodes of the traced forward of `owner`, which the whole network knows as `prefix`."""

    owner: nn.Module
    prefix: str
    nodes: tuple[Node, ...]
    entry: Node
    exit: Node
    calls: tuple[str, ...] = ()  # the modules that it calls, named from the owner
    tensors: frozenset[str] = frozenset()  # parameters and buffers of the owner itself
    residual: bool = False  # two tensors pass side by side, one of them through something that learns

    @property
    def whole(self) -> str | None:
        """The module that this step is."""
        node = self.nodes[0]
        alone = len(self.nodes) == 1 and node.op == "call_module" and node.args == (self.entry,) and not node.kwargs
        return self.calls[0] if alone else None

    @property
    def paths(self) -> list[str]:
        return [self.prefix + path for path in self.calls]

    @property
    def name(self) -> str:
        return self.prefix + (self.calls[0] if self.calls else self.nodes[-1].name)

    @cached_property
    def module(self) -> nn.Module:
        return self._piece() if self.whole is None else self.owner.get_submodule(self.whole)

    @cached_property
    def learns(self) -> bool:
        named = dict(self.owner.named_parameters(recurse=False))
        return not self.tensors.isdisjoint(named) or any(
            True for path in self.calls for _ in self.owner.get_submodule(path).parameters()
        )

    @property
    def holds_layers(self) -> bool:
        """A residual block, or a module with layers inside."""
        return self.residual or any(is_block(self.owner.get_submodule(path)) for path in self.calls[:1])

    def _piece(self) -> Piece:
        graph = fx.Graph()
        copies = {self.entry: graph.placeholder("x")}
        calls: dict[str, str] = {}

        def copied(node: Node) -> Node:
            if node not in copies:
                copies[node] = new = graph.node_copy(node, copied)
                path, attribute = _target(node)
                flat = path.replace(".", "_")
                if path:
                    calls[flat] = path
                if path or attribute:
                    new.target = ".".join(part for part in (flat, attribute) if part)
            return copies[node]

        for node in self.nodes:
            copied(node)
        graph.output(copies[self.exit])
        return Piece(self.owner, graph, calls, set(self.tensors))


def is_block(module: nn.Module) -> bool:
    """Layers within; what is left of these after unfolding is a residual block."""
    return any(True for child in module.children() for _ in child.parameters())


def row(owner: nn.Module, prefix: str, x: Tensor) -> list[Step]:
    """The steps of `owner`'s forward for `x`; raises whatever tracing or running it raises.

    A step ends where one tensor, and nothing else that depends on `x`, is needed later. Modules are not looked into,
    `nn.Sequential` excepted. Steps that share something with parameters are one step, with all that lies between them;
    the owner's own parameters belong to its first: a position belongs to the patches.
    """
    graph, values = _traced(owner, x)
    start = next(node for node in graph.nodes if node.op == "placeholder")
    live = [start]  # what depends on the images; the rest, such as an expanded class token, is made where it is needed
    for node in graph.nodes:
        if node.op != "output" and not set(live).isdisjoint(node.all_input_nodes):
            live.append(node)
    place = {node: i for i, node in enumerate(live)}
    last = {node: max((place.get(user, len(live)) for user in node.users), default=-1) for node in live}
    steps: list[Step] = []
    entry, begin, two = start, 1, False
    for i in range(1, len(live)):
        crossing = [node for node in live[: i + 1] if last[node] > i]
        if len(crossing) == 1 and _is_batch(values[crossing[0]], len(x)):
            steps.append(_step(owner, prefix, live[begin : i + 1], entry, crossing[0], set(live), two))
            entry, begin, two = crossing[0], i + 1, False
        else:
            two |= sum(isinstance(values[node], Tensor) for node in crossing) > 1
    if not steps or begin != len(live):
        raise ValueError("its output is not one tensor, image by image")
    return _shared_joined(steps)


def joined(a: Step, b: Step) -> Step:
    return Step(
        *(a.owner, a.prefix, a.nodes + b.nodes, a.entry, b.exit),
        calls=a.calls + b.calls,
        tensors=a.tensors | b.tensors,
        residual=a.residual or b.residual,
    )


def functions_joined(steps: Sequence[Step]) -> list[Step]:
    """Functions, and modules without parameters that come again, belong to the step before them, or else after."""
    out: list[Step] = []
    names: set[str] = set()
    for step in steps:
        again = step.name in names and not step.learns
        names |= set(step.paths)
        before = out[-1] if out else None
        if before is not None and before.owner is step.owner and (not step.calls or again or not before.calls):
            out[-1] = joined(before, step)
        else:
            out.append(step)
    return out


class _Undecided(Exception):
    """Tracing came to a condition on a value that it does not know."""


_tracing = threading.Lock()  # tracing changes how all modules are called, and puts that back at its end


class _Tracer(fx.Tracer):
    """Conditions take the `decisions` in order; the next is a condition on the last node of the graph.

    Modules of other threads, as of a training beside this one, go on as if nothing was traced.
    """

    proxy_buffer_attributes = True

    def __init__(self, decisions: Sequence[bool]):
        # one function to the trace, or positions would be those of the size of image that is traced
        super().__init__(autowrap_functions=(resample_abs_pos_embed,))
        self._autowrap_search.append(vision_transformer)
        self.decisions, self.thread = iter(decisions), threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        for decision in self.decisions:
            return decision
        raise _Undecided(obj.node)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name != ROOT and type(m).forward is not nn.Sequential.forward


class _Root(nn.Module):
    """So that the arguments of a network other than its images have their defaults."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def _traced(owner: nn.Module, x: Tensor) -> tuple[fx.Graph, dict[Node, Any]]:
    """The graph, and the value of each node; functions may have worked in place on these."""
    root = _Root(owner)
    root.training = owner.training
    decisions: list[bool] = []
    while True:
        tracer = _Tracer(decisions)
        try:
            with _tracing:
                graph = tracer.trace(root)
            break
        except _Undecided as condition:  # it is decided as it is for these images, which all others resemble in size
            if len(decisions) == MOST:
                raise ValueError(f"its forward has more than {MOST} conditions on its input") from None
            run = fx.Interpreter(root, garbage_collect_values=False, graph=tracer.graph)
            run.args_iter = iter([x.clone()])
            for node in tracer.graph.nodes:
                run.env[node] = run.run_node(node)
            decisions.append(bool(run.env[condition.args[0]]))
    run = fx.Interpreter(root, garbage_collect_values=False, graph=graph)
    run.extra_traceback = False
    run.run(x.clone())
    return graph, run.env


def _is_batch(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and len(value) == count and value.is_floating_point()


def _step(
    owner: nn.Module, prefix: str, nodes: Sequence[Node], entry: Node, exit: Node, live: set[Node], two: bool
) -> Step:
    calls: dict[str, None] = {}
    tensors: set[str] = set()
    todo, seen = list(nodes), set(nodes)
    while todo:
        node = todo.pop(0)
        path, attribute = _target(node)
        if path:
            calls[path] = None
        elif attribute:
            tensors.add(attribute)
        constants = [other for other in node.all_input_nodes if other not in live and other not in seen]
        todo += constants
        seen.update(constants)
    step = Step(owner, prefix, tuple(nodes), entry, exit, tuple(calls), frozenset(tensors))
    return replace(step, residual=two and bool(calls) and step.learns)


def _target(node: Node) -> tuple[str, str]:
    """The module that a node is about, named from the owner, and the tensor of it that the node gets."""
    target = str(node.target).removeprefix(ROOT).removeprefix(".")
    if node.op == "call_module":
        return target, ""
    path, _, attribute = target.rpartition(".")
    return (path, attribute) if node.op == "get_attr" else ("", "")


def _shared_joined(steps: list[Step]) -> list[Step]:
    """Joins the steps that use one parameter or module that learns, and the owner's own ones from the start."""
    places: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for path in step.calls:
            if any(True for _ in step.owner.get_submodule(path).parameters()):
                places.setdefault(path, []).append(i)
        if step.tensors:
            places.setdefault("", [0]).append(i)
    spans = [(where[0], where[-1]) for where in places.values()]
    out: list[Step] = []
    for i, step in enumerate(steps):
        if any(first < i <= last for first, last in spans):
            out[-1] = joined(out[-1], step)
        else:
            out.append(step)
    return out
