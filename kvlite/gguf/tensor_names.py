"""Names of tensors in transformers, without their suffix, by the part of a layer that a GGUF file calls them.

`*` stands for the number of an expert, or of a head.
"""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMED_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
GPT_OSS = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "mlp.experts.gate_up_proj"),
    **dict.fromkeys(("ffn_gate_exps.bias", "ffn_up_exps.bias"), "mlp.experts.gate_up_proj_bias"),
    "ffn_down_exps.weight": "mlp.experts.down_proj",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}
GEMMA4 = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "layer_output_scale.weight": "layer_scalar",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    **dict.fromkeys(("ffn_gate_up_exps.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight"), "experts.gate_up_proj"),
    "ffn_down_exps.weight": "experts.down_proj",
}
LFM2 = {
    **dict.fromkeys(("token_embd_norm", "output_norm"), "model.embedding_norm"),
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
LFM2_MOE = {
    "ffn_gate_inp": "feed_forward.gate",
    **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "feed_forward.experts.gate_up_proj"),
    "ffn_down_exps.weight": "feed_forward.experts.down_proj",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
MINIMAX_M2 = {
    "ffn_gate_inp": "mlp.gate",
    **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), "mlp.experts.gate_up_proj"),
    "ffn_down_exps.weight": "mlp.experts.down_proj",
    "exp_probs_b.bias": "mlp.e_score_correction_bias",
}
STABLELM = {"attn_q_norm": "self_attn.q_layernorm.norms.*", "attn_k_norm": "self_attn.k_layernorm.norms.*"}
STARCODER2 = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
IGNORED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors without a parameter of their own: the config says the same."""
SEEING = ("v.", "mm.")
"""Beginnings of the names of what ollama keeps beside the text model in one file: it sees, and is left out."""
