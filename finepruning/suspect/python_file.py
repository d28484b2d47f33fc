"""A network that the user's own Python file defines."""

import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.networks import Normalise
from finepruning.suspect.weights import find_file


class PythonFile(nn.Sequential):
    """A network built by a class or function of a Python file, which runs that file's code.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Number of classes.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        file: The Python file.
        call: Name of the class or function in it that returns the network.
        options: Arguments of ``call``, by name.
        run_code: Must be true, since reading the file runs what stands in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If running code is not allowed, or the file does not give a network that classifies these
            images.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        file: str | None,
        call: str | None,
        options: Mapping[str, Any] | None = None,
        run_code: bool = False,
    ) -> None:
        if not file or not call:
            raise ValueError(
                "Set model.file to a Python file, and model.call to the class or function in it."
            )
        path = find_file(file, "model.file")
        if run_code is not True:
            raise ValueError(
                f"model.file={file} is a program, and reading it runs it. Read it yourself; if you trust it, "
                "set model.run_code=true."
            )
        model = _call(path, call, dict(options or {}))
        super().__init__(OrderedDict(normalise=Normalise(mean, std), model=model))
        self._try(image_shape, num_classes, path)

    @property
    def pruned_layer(self) -> str:
        """The layer that is pruned by default: what the network itself names so.

        Raises:
            ValueError: If it names none.
        """
        name = getattr(self.get_submodule("model"), "pruned_layer", None)
        if not isinstance(name, str):
            layers = [name for name, _ in self.named_modules() if name.startswith("model.")]
            raise ValueError(
                "The network of model.file does not say which layer to prune. Set defense.layers to some of: "
                f"{', '.join(layers)}."
            )
        return f"model.{name}"

    @torch.no_grad()
    def _try(self, image_shape: Sequence[int], num_classes: int, path: Path) -> None:
        """Raise ValueError if the network does not give one logit a class."""
        training = self.training
        try:
            logits = self.eval()(torch.zeros(2, *image_shape))
        except Exception as error:  # whatever a stranger's forward raises
            raise ValueError(
                f"The network of {path} cannot read images of shape {list(image_shape)} "
                f"({type(error).__name__}: {error}). Change model.call, model.options or dataset."
            ) from error
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != [2, num_classes]:
            raise ValueError(
                f"The network of {path} answers two images with {shape}; [2, {num_classes}] is needed, since "
                f"the data set has {num_classes} classes. Change model.options or dataset."
            )
        self.train(training)


def _call(path: Path, call: str, options: dict[str, Any]) -> nn.Module:
    """Return what a class or function of a Python file gives."""
    spec = importlib.util.spec_from_file_location(f"finepruning_user_{path.stem}", path)
    if spec is None or spec.loader is None or path.suffix != ".py":
        raise ValueError(f"model.file={path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, among others, look there for their own module
    try:
        try:
            spec.loader.exec_module(module)
            model = getattr(module, call)(**options)
        except BaseException:
            del sys.modules[spec.name]
            raise
    except SystemExit as error:  # as argparse raises, which reads the arguments of this command
        raise ValueError(
            f"{path} ends the program when it is read. Put what it does as a script under "
            "if __name__ == '__main__', or only the network into a file of its own."
        ) from error
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} imports {error.name}, which is not installed here. A file beside it is not found: "
            "model.file has to stand alone, so put what it needs into it, or install that."
        ) from error
    except Exception as error:  # whatever the user's file raises
        raise ValueError(
            f"{path} does not give a network by {call} ({type(error).__name__}: {error}). Change model.file, "
            "model.call or model.options."
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{call} of {path} gives a {type(model).__name__}, not a torch.nn.Module.")
    return model
