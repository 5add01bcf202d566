"""A Llama decoder written to be compiled: a static cache, one step of fixed shapes, captured in a CUDA graph.

It shows what a hand-written decoder over the same weights reaches, in the manner of gpt-fast. One row only, no
sampling, no sliding windows: nothing that a benchmark does not ask for.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from peers.peer import Case, Took

PREFILL_CHUNK = 2048


class Layer(nn.Module):
    """One decoder layer over the weights of transformers', queries, keys and values in one product, as gate and up."""

    def __init__(self, layer: nn.Module, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        self.register_buffer("qkv_bias", bias)
        self.out = attention.o_proj.weight
        self.gate_up = nn.Parameter(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), requires_grad=False)
        self.down = mlp.down_proj.weight
        self.norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
        self.eps = layer.input_layernorm.variance_epsilon

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, at: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x [B, T, H] at positions `at` [T]; mask [T, N] of what they see; k, v [B, H_KV, N, D] take what is new."""
        rows, tokens, _ = x.shape
        normed = functional.rms_norm(x, x.shape[-1:], self.norms[0], self.eps)
        qkv = functional.linear(normed, self.qkv, self.qkv_bias).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
        q, new_k, new_v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        k[:, :, at] = _turned(new_k, cos, sin)
        v[:, :, at] = new_v
        # The heads that share keys stand as queries of one head, so that no key is repeated.
        grouped = _turned(q, cos, sin).reshape(rows, self.kv_heads, -1, self.head_dim)
        shared = mask.repeat(self.heads // self.kv_heads, 1)
        seen = functional.scaled_dot_product_attention(grouped, k, v, attn_mask=shared)
        seen = seen.reshape(rows, self.heads, tokens, self.head_dim)
        x = x + functional.linear(seen.transpose(1, 2).reshape(rows, tokens, -1), self.out)
        normed = functional.rms_norm(x, x.shape[-1:], self.norms[1], self.eps)
        gate, up = functional.linear(normed, self.gate_up).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, self.down)


class Decoder(nn.Module):
    """All layers, the head and the greedy choice; `k` and `v` are [B, H_KV, N, D] of each layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        config = model.config
        self.embedding, self.head = model.model.embed_tokens.weight, model.lm_head.weight
        self.norm, self.eps = model.model.norm.weight, model.model.norm.variance_epsilon
        self.register_buffer("frequencies", model.model.rotary_emb.inv_freq.float())
        self.sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.layers = nn.ModuleList(Layer(layer, *self.sizes) for layer in model.model.layers)

    def forward(self, ids: Tensor, at: Tensor, k: list[Tensor], v: list[Tensor]) -> Tensor:
        """The likeliest next ids [B, 1] behind ids [B, T] at positions `at` [T]."""
        x = functional.embedding(ids, self.embedding)
        angles = at[:, None].float() * self.frequencies
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        mask = torch.arange(k[0].shape[2], device=at.device) <= at[:, None]
        for number, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, at, k[number], v[number])
        last = functional.rms_norm(x[:, -1:], x.shape[-1:], self.norm, self.eps)
        return functional.linear(last, self.head).argmax(-1)


class Compiled:
    """The decoder as a peer: prompts run eagerly in chunks, steps compiled on CUDA."""

    name = "compiled"

    def __init__(self, model: PreTrainedModel) -> None:
        self.decoder, self.config = Decoder(model), model.config
        self.device, self.dtype = model.device, model.dtype
        is_cuda = self.device.type == "cuda"
        self.note = "own decoder, torch.compile in a CUDA graph" if is_cuda else "own decoder, not compiled on a CPU"
        self.step = torch.compile(self.decoder, mode="reduce-overhead", fullgraph=True) if is_cuda else self.decoder
        self._cache: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.inference_mode()
    def answer(self, prompt: list[int], tokens: int, case: Case) -> Took:
        """As `Peer.answer`."""
        ids = torch.tensor([prompt], device=self.device)
        k, v = self._room(case.context + tokens)
        start, used = time.perf_counter(), time.process_time()
        for begin in range(0, case.context, PREFILL_CHUNK):
            chunk = ids[:, begin : begin + PREFILL_CHUNK]
            at = torch.arange(begin, begin + chunk.shape[1], device=self.device)
            token = self.decoder(chunk, at, k, v)
        answers = [token.item()]
        first_s = time.perf_counter() - start
        at = torch.tensor([case.context], device=self.device)
        for _ in range(tokens - 1):
            token = self.step(token.clone(), at, k, v)  # what a graph returned is overwritten by its next replay
            at += 1
            answers.append(token.item())  # a user reads every token
        total_s, used = time.perf_counter() - start, time.process_time() - used
        return Took(first_s, total_s, tokens, answers, used)

    def read_bytes(self, case: Case) -> int | None:
        """Weights once, and the whole static cache, which attention masks but reads."""
        held = {tensor.data_ptr(): tensor.nbytes for tensor in self.decoder.parameters()}
        held |= {tensor.data_ptr(): tensor.nbytes for tensor in self._plain()}
        _, kv_heads, head_dim = self.decoder.sizes
        element = torch.finfo(self.dtype).bits // 8
        return sum(held.values()) + 2 * len(self.decoder.layers) * kv_heads * head_dim * case.context * element

    def close(self) -> None:
        """Let go of the cache."""
        self._cache = None

    def _plain(self) -> list[Tensor]:
        shared = [self.decoder.head]
        return shared + [weight for layer in self.decoder.layers for weight in (layer.out, layer.down)]

    def _room(self, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        _, kv_heads, head_dim = self.decoder.sizes
        wanted = (1, kv_heads, -(-tokens // 256) * 256, head_dim)
        if self._cache is None or self._cache[0][0].shape != wanted:
            self._cache = None
            k, v = ([self._empty(wanted) for _ in self.decoder.layers] for _ in range(2))
            self._cache = (k, v)
        return self._cache

    def _empty(self, sizes: tuple[int, ...]) -> Tensor:
        held = torch.zeros(sizes, dtype=self.dtype, device=self.device)
        if self.device.type == "cuda":
            torch._dynamo.mark_static_address(held)  # or the step, which writes it, could not be captured
        return held


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, D] rotated by angles [T, D], halves paired."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
