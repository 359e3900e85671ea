"""Training with the weights shared out over the processes: PyTorch's FSDP2, block by block, as the strategy `fsdp2`."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import Block

__all__ = ["FullyShardedStrategy", "blocks", "refuse_flat_parameters", "shard"]


class FullyShardedStrategy(ModelParallelStrategy):
    """``--trainer.strategy fsdp2``: each process keeps a share of the weights, the gradients and the optimiser's state.

    All processes of all machines see different data, as with ``ddp``. Parameters keep their names and shapes, so the
    optimiser's groups are those of one process; they stay in float32 and ``bf16-mixed`` is autocast, as with ``ddp``.
    A checkpoint is one ordinary file.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @override
    def setup_environment(self) -> None:
        module = self.lightning_module
        assert module is not None
        refuse: Any = module.refuse_sharding  # of `BaseModule`, which stands above
        refuse()
        # Known only now; Lightning's "auto" shares out over machines and cuts matrices over the devices of each.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | os.PathLike, weights_only: bool | None = None) -> dict[str, Any]:
        """Read an ordinary checkpoint, whichever strategy wrote it.

        Lightning's version takes the numbers in the optimiser's state for positions in the network. Where parameters
        come in several groups, a checkpoint of ``ddp`` or of one process numbers them group by group.
        """
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True)
        model = self.model
        assert model is not None
        set_model_state_dict(model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            set_optimizer_state_dict(model, optimizer, _by_name(state, optimizer, model), options=options)
        return checkpoint


StrategyRegistry.register("fsdp2", FullyShardedStrategy, override=True)


def _by_name(state: dict, optimizer: Optimizer, model: nn.Module) -> dict:
    """An optimiser's state with the parameters' names in place of their numbers; groups are matched by their place."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    name_of: dict[int, str] = {}
    for group, ours in zip(state["param_groups"], optimizer.param_groups, strict=True):
        members = [names[parameter] for parameter in ours["params"]]
        name_of |= zip(group["params"], members, strict=True)
        groups.append({**group, "params": members})
    return {"state": {name_of[number]: values for number, values in state["state"].items()}, "param_groups": groups}


def blocks(net: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network, which are compiled and gathered one by one."""
    return [module for module in net.modules() if isinstance(module, Block)]


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Share out a network over the processes of a one-dimensional mesh: a unit per block and one for the rest."""
    if isinstance(net, FSDPModule):
        return
    # A warning for networks that add to a block's output in place, which ours do not.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # gloo adds up what NCCL averages, in torch 2.7 without a word; sums in float64 are divided by torch itself.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float64 if mesh.device_type == "cpu" else None)
    for part in (*blocks(net), net):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for method in ("forward_tokens", "forward_features", "forward_with_tokens"):
        if hasattr(net, method):  # called in place of forward, they gather the weights too
            register_fsdp_forward_method(net, method)


def refuse_flat_parameters(strategy: Strategy) -> None:
    """Raise `ModelError` for Lightning's ``fsdp``, which makes every parameter a vector: none would be decayed."""
    if isinstance(strategy, FSDPStrategy):
        raise ModelError(
            "Lightning's strategy 'fsdp' flattens the weights, so that weight decay cannot tell matrices from biases; "
            "set trainer.strategy to fsdp2."
        )
