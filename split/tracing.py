"""What a symbolic trace says of a network: each module's output, the shapes, and where nothing passes a cut."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn


class NotingTracer(fx.Tracer):
    """Notes which node each module's output is; modules that run twice or return no tensor drop out."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, fx.Node | None] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401 - fx's own signature
        """As fx does it, and notes the output."""
        name = self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.made[name] = result.node if isinstance(result, fx.Proxy) and name not in self.made else None
        return result


class Shapes(fx.Interpreter):
    """Runs a graph once and notes the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[int, ...]] = {}
        self.outputs = 0

    def look(self, example: torch.Tensor) -> None:
        """Run on a batch of pictures."""
        with torch.no_grad():
            result = self.run(example)
        self.outputs = 1 if isinstance(result, torch.Tensor) else 0 if result is None else len(result)

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - fx's own signature
        """As fx does it, and notes the shape."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.found[n.name] = tuple(result.shape)
        return result


def cut_nodes(graph: fx.Graph, made: Mapping[str, fx.Node | None]) -> dict[str, fx.Node]:
    """Modules whose output everything behind it depends on alone: no edge from before it passes it."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    reach = -1  # the last reader of any value from before the current node
    clear = set()
    for node, number in order.items():
        if not is_free(node):
            if reach <= number:
                clear.add(node)
            reach = max([reach, *(order[user] for user in node.users if not is_free(user))])
    return {name: node for name, node in made.items() if node is not None and node in clear and name}


def is_batch(node: fx.Node) -> bool:
    """The batch size, read from the input: the same number at every cut."""
    return node.op == "call_method" and node.target == "size" and node.args[1:] == (0,) and _is_input(node.args[0])


def _is_input(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "placeholder"


def is_free(node: fx.Node) -> bool:
    """Nothing of the picture is in it."""
    return node.op == "get_attr" or is_batch(node)
