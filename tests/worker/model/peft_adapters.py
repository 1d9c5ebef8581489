"""PEFT adapters with random weights on a tiny model, and the same adapters as loraplex stores them."""

import copy
import dataclasses
import re
import warnings
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.module import GLOBAL_MODULES, Module
from loraplex_adapters.spec import AdapterSpec, LoraSite, saved_name, site_key, site_order
from loraplex_worker.model.lora_weights import LoraWeights, StoredTensor
from loraplex_worker.model.model_config import ModelConfig

_PATH = re.compile(r"(?:layers\.(\d+)\..*\.)?(\w+)$")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeftAdapter:
    """One adapter: PEFT's own model of it (the oracle), and our stored form."""

    model: Any
    spec: AdapterSpec
    tensors: dict[str, StoredTensor]

    def weights(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> LoraWeights:
        return LoraWeights.from_tensors(self.spec, self.tensors, dtype=dtype, config=config)

    def logits(self, tokens: list[int]) -> Tensor:
        """[len(tokens), vocab] float32."""
        with torch.no_grad():
            result: Tensor = self.model(input_ids=torch.tensor([tokens])).logits[0]
        return result.float()


def make_adapter(base: Any, seed: int, **options: Any) -> PeftAdapter:
    """A PEFT LoRA on a copy of ``base``; ``options`` go to ``LoraConfig``. Both A and B are random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + torch.randn(parameter.shape, generator=generator) * 0.2)
            elif "modules_to_save" in name:
                parameter.mul_(1 + torch.randn(parameter.shape, generator=generator) * 0.5)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    sites, tensors = _extract(model)
    spec = AdapterSpec(
        digest=f"{seed:064x}",
        kind=sites[0].kind,
        sites=tuple(sorted(sites, key=site_order)),
        dtype="F32",
        num_bytes=sum(len(data) for _, _, data in tensors.values()),
        max_rank=max(site.rank for site in sites),
        base_model_name="tiny",
        saved=tuple(module for module in GLOBAL_MODULES if saved_name(module) in tensors),
    )
    return PeftAdapter(model=model, spec=spec, tensors=tensors)


def _extract(model: Any) -> tuple[list[LoraSite], dict[str, StoredTensor]]:
    sites: list[LoraSite] = []
    tensors: dict[str, StoredTensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            weight = module.modules_to_save["default"].weight
            tensors[saved_name(Module(name.rpartition(".")[2]))] = _stored(weight)
        if not hasattr(module, "lora_A"):
            continue
        found = _PATH.search(name)
        assert found is not None, name
        layer = None if found[1] is None else int(found[1])
        embedding = "default" in module.lora_embedding_A
        down = module.lora_embedding_A["default"] if embedding else module.lora_A["default"].weight
        up = module.lora_embedding_B["default"] if embedding else module.lora_B["default"].weight
        kind = _kind(module)
        scale = module.scaling["default"]
        site = LoraSite(layer=layer, module=Module(found[2]), rank=down.shape[0], scale=scale, kind=kind)
        sites.append(site)
        tensors[site_key(site) + ".A"] = _stored(down)
        tensors[site_key(site) + ".B"] = _stored(up)
        if kind is AdapterKind.LORA_BIAS:
            tensors[site_key(site) + ".bias"] = _stored(module.lora_B["default"].bias)
        if kind is AdapterKind.DORA:
            tensors[site_key(site) + ".magnitude"] = _stored(module.lora_magnitude_vector["default"].weight)
    assert sites
    return sites, tensors


def _kind(module: Any) -> AdapterKind:
    if "default" in module.lora_magnitude_vector:
        return AdapterKind.DORA
    return AdapterKind.LORA_BIAS if module.lora_bias["default"] else AdapterKind.LORA


def _stored(tensor: Tensor) -> StoredTensor:
    values = tensor.detach().float().contiguous()
    return "F32", tuple(values.shape), values.numpy().tobytes()
