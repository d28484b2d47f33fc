"""Pruned channels taken out for good: a smaller network with the same logits."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from finepruning.pruning.graph import (
    CONVOLUTIONS,
    NORMS,
    UntraceableError,
    adds,
    find_makers,
    layer_of,
    leaves_channels_apart,
    traced,
)
from finepruning.pruning.masks import mask_of, pruned_channels, remove_mask
from finepruning.pruning.passes import evaluating

TOLERANCE = 1e-5  # of the largest logit, at least of 1


def remove_pruned(network: nn.Module, image_shape: Sequence[int]) -> tuple[nn.Module, dict[str, str]]:
    """Return a smaller copy of a network without any channel that is pruned, as far as that is possible.

    Args:
        network: A network with masks; it stays as it is.
        image_shape: (C, H, W) of the images.

    Returns:
        The copy, and for each layer whose mask has to stay the reason. It is the network itself if all stay.
    """
    smaller, refused = network, {}
    for layer, pruned in pruned_channels(network).items():
        if not pruned:
            continue
        try:
            smaller = remove_channels(smaller, layer, image_shape)
        except ValueError as error:
            try:
                smaller = remove_coupled(smaller, layer, image_shape)
            except ValueError:
                refused[layer] = str(error)
    return smaller, refused


def remove_channels(network: nn.Module, layer: str, image_shape: Sequence[int]) -> nn.Module:
    """Return a smaller copy of a network, without the channels that a layer's mask has pruned.

    The convolution or linear layer that makes the channels loses them, and so does every layer that reads
    them. The copy has no mask there.

    Args:
        network: The network; it stays as it is.
        layer: Name of a masked layer.
        image_shape: (C, H, W) of the images, to check that the copy gives the same logits.

    Raises:
        ValueError: If the mask has no physical twin: residual sums, grouped convolutions, no channel left.
    """
    mask = mask_of(network, layer)
    kept = mask.nonzero().squeeze(1)
    if len(kept) == 0:
        raise _refusal(layer, "no channel is left. Keep at least one")
    smaller = copy.deepcopy(network).eval()
    try:
        tracer = traced(smaller)
    except UntraceableError as error:
        raise _refusal(layer, f"the network cannot be traced ({error})") from error
    nodes = tracer.outputs.get(layer, [])
    if len(nodes) != 1:
        raise _refusal(layer, f"it runs {len(nodes)} times in a pass")
    calls = [node.target for node in tracer.graph.nodes if node.op == "call_module"]
    upstream = _upstream(smaller, nodes[0], layer)
    readers = _readers(smaller, nodes[0], layer)
    for node in (*upstream, *readers):
        if calls.count(node.target) > 1:
            raise _refusal(layer, f"{node.target} runs more than once in a pass")
    try:
        for node in upstream:
            _keep_outputs(layer_of(smaller, node), kept)
        for node in readers:
            _keep_inputs(layer_of(smaller, node), kept, len(mask))
    except (RuntimeError, ValueError) as error:  # of weights that are not by channel, or not parameters
        raise _refusal(layer, f"a layer that makes or reads them has other weights ({error})") from error
    remove_mask(smaller, layer)
    _check(network, smaller, layer, image_shape)
    return smaller.train(network.training)


def remove_coupled(network: nn.Module, layer: str, image_shape: Sequence[int]) -> nn.Module:
    """Do as :func:`remove_channels` with torch-pruning, which can follow coupled groups of channels.

    Args:
        network: The network; it stays as it is.
        layer: Name of a masked layer.
        image_shape: (C, H, W) of the images, to check that the copy gives the same logits.

    Raises:
        ValueError: If torch-pruning is not installed, or the mask has no physical twin.
    """
    try:
        import torch_pruning  # type: ignore[import-untyped] # an extra
    except ImportError as error:
        raise _refusal(layer, 'torch-pruning is missing (pip install -e ".[structural]")') from error
    pruned = (mask_of(network, layer) == 0).nonzero().squeeze(1).tolist()
    smaller = copy.deepcopy(network).eval()
    remove_mask(smaller, layer)
    try:
        maker = find_makers(smaller, traced(smaller).outputs[layer][0])[0]
        image = torch.zeros(1, *image_shape, device=mask_of(network, layer).device)
        graph = torch_pruning.DependencyGraph().build_dependency(smaller, example_inputs=image)
        group = graph.get_pruning_group(maker, torch_pruning.prune_conv_out_channels, idxs=pruned)
        if not graph.check_pruning_group(group):
            raise _refusal(layer, "a layer would lose its last channel")
        group.prune()
    except Exception as error:  # torch-pruning raises anything on what it cannot follow
        raise _refusal(layer, f"torch-pruning cannot follow them ({error})") from error
    _check(network, smaller, layer, image_shape)
    return smaller.train(network.training)


def _refusal(layer: str, reason: str) -> ValueError:
    return ValueError(
        f"The pruned channels of {layer!r} cannot be removed: {reason}. Keep the mask: it is saved with the "
        "network and costs next to nothing."
    )


def _upstream(network: nn.Module, node: fx.Node, layer: str) -> list[fx.Node]:
    """Return the layer that makes the channels, and normalisations between it and the mask."""
    found: list[fx.Node] = []
    while True:
        module = layer_of(network, node)
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            if getattr(module, "groups", 1) != 1:
                raise _refusal(layer, f"{node.target}, which makes them, is a grouped convolution")
            return [*found, node]
        if isinstance(module, NORMS):
            found.append(node)
        elif not leaves_channels_apart(network, node):
            raise _refusal(layer, _why(node))
        node = node.all_input_nodes[0]
        if len(node.users) != 1:
            raise _refusal(
                layer, f"what {node.target} gives is also used without the mask, as in a residual sum"
            )


def _readers(network: nn.Module, node: fx.Node, layer: str) -> list[fx.Node]:
    """Return the layers that read the channels."""
    found: list[fx.Node] = []
    queue = list(node.users)
    while queue:
        user = queue.pop()
        module = layer_of(network, user)
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            if getattr(module, "groups", 1) != 1:
                raise _refusal(layer, f"{user.target}, which reads them, is a grouped convolution")
            found.append(user)
        elif _flattens(module, user) or leaves_channels_apart(network, user):
            queue += user.users
        else:
            raise _refusal(layer, _why(user))
    return list(dict.fromkeys(found))


def _flattens(module: nn.Module | None, node: fx.Node) -> bool:
    """Return whether a node makes (B, C, ...) into (B, features), channel by channel."""
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    function = node.op == "call_function" and node.target is torch.flatten
    method = node.op == "call_method" and node.target in ("flatten", "view", "reshape")
    return (function or method) and len(node.args) > 1  # a fixed size fails the final check


def _why(node: fx.Node) -> str:
    if adds(node):
        return "they are part of a residual sum, whose other branch has the same channels"
    if node.op == "output":
        return "they are the network's output"
    return f"{node.target} stands between them and the layers that make or read them"


def _keep_outputs(layer: nn.Module | None, kept: Tensor) -> None:
    """Keep some output channels of a convolution, linear layer or normalisation, in place."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(layer, name, None)
        if values is not None:
            _replace(layer, name, values[kept])
    for name in ("out_channels", "out_features", "num_features"):
        if hasattr(layer, name):
            setattr(layer, name, len(kept))


def _keep_inputs(layer: nn.Module | None, kept: Tensor, channels: int) -> None:
    """Keep the inputs of a convolution or linear layer that belong to some channels, in place."""
    by_channel = getattr(layer, "weight").unflatten(1, (channels, -1))  # noqa: B009
    weight = by_channel[:, kept].flatten(1, 2)  # a flattened channel is several features
    _replace(layer, "weight", weight)
    for name in ("in_channels", "in_features"):
        if hasattr(layer, name):
            setattr(layer, name, weight.shape[1])


def _replace(layer: nn.Module | None, name: str, values: Tensor) -> None:
    old = getattr(layer, name)
    values = values.detach().clone()
    setattr(layer, name, nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values)


@torch.no_grad()
def _check(network: nn.Module, smaller: nn.Module, layer: str, image_shape: Sequence[int]) -> None:
    """Compare both networks on random images."""
    device = mask_of(network, layer).device
    images = torch.rand(4, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        # TF32 rounds by more than the tolerance
        with evaluating(network), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected, logits = network(images), smaller(images)
    except RuntimeError as error:
        raise _refusal(layer, f"the network counts on their number ({error})") from error
    difference = float((expected - logits).abs().max())
    if difference > TOLERANCE * max(1.0, float(expected.abs().max())):
        raise _refusal(layer, f"the smaller network's logits differ by {difference:.1e}")
