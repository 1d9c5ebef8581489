"""The modules of the base model that an adapter can change."""

import enum


class Module(enum.StrEnum):
    """One kind of linear (or embedding) module; the value is its last path segment in the base model."""

    Q_PROJ = "q_proj"
    K_PROJ = "k_proj"
    V_PROJ = "v_proj"
    O_PROJ = "o_proj"
    GATE_PROJ = "gate_proj"
    UP_PROJ = "up_proj"
    DOWN_PROJ = "down_proj"
    EMBED_TOKENS = "embed_tokens"
    LM_HEAD = "lm_head"


ATTENTION_MODULES = (Module.Q_PROJ, Module.K_PROJ, Module.V_PROJ, Module.O_PROJ)
MLP_MODULES = (Module.GATE_PROJ, Module.UP_PROJ, Module.DOWN_PROJ)
LAYER_MODULES = ATTENTION_MODULES + MLP_MODULES
"""Found once in every decoder layer."""
GLOBAL_MODULES = (Module.EMBED_TOKENS, Module.LM_HEAD)
"""Found once in the model; a site of these has ``layer=None``."""
