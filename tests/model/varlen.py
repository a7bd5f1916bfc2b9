"""``varlen_attn`` on the CPU: plain softmax, sequence by sequence, with causality aligned to the bottom right.

It keeps for the backward pass what torch's operation keeps, and refuses what the flash kernel would refuse.
"""

from __future__ import annotations

import torch


def checked(query, key, value, starts, longest, window):
    """Refuse what the kernel on a card would."""
    (query_start, key_start), (longest_query, longest_key) = starts, longest
    for x in (query, key, value):
        assert x.dim() == 3
        assert x.stride(-1) == 1
        assert x.dtype == query.dtype
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    assert query.shape[2] == key.shape[2]
    for start, longest_one, x in ((query_start, longest_query, query), (key_start, longest_key, key)):
        assert start.dtype == torch.int32
        assert isinstance(longest_one, int)
        assert start[0] == 0
        assert start[-1] == len(x)
        assert longest_one == int(start.diff().max())
    assert len(query_start) == len(key_start)
    assert tuple(window) == (-1, 0), "causal"


def sequences(query, key, value, query_start, key_start):
    """Queries, keys and values of each sequence with key heads repeated, (heads, tokens, size), and which keys are hidden."""
    shared = query.shape[1] // key.shape[1]
    bounds = [list(zip(s.tolist()[:-1], s.tolist()[1:], strict=True)) for s in (query_start, key_start)]
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        q = query[q0:q1].transpose(0, 1)
        k, v = (x[k0:k1].transpose(0, 1).repeat_interleave(shared, 0) for x in (key, value))
        hidden = torch.arange(k1 - k0)[None] > torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        yield slice(q0, q1), slice(k0, k1), q, k, v, hidden


def forward(query, key, value, query_start, key_start, scale):
    """Output of (tokens, heads, size), and the log-sum-exp of (heads, tokens)."""
    output, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for rows, _, q, k, v, hidden in sequences(query, key, value, query_start, key_start):
        score = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        output[rows] = (score.softmax(-1) @ v).transpose(0, 1)
        lse[:, rows] = score.logsumexp(-1).float()
    return output, lse


def backward(upstream, query, key, value, output, query_start, key_start, scale):
    """Gradients of query, key and value."""
    grads = [torch.zeros_like(x) for x in (query, key, value)]
    shared = query.shape[1] // key.shape[1]
    for rows, keys, q, k, v, hidden in sequences(query, key, value, query_start, key_start):
        p = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf).softmax(-1)
        up, out = upstream[rows].transpose(0, 1), output[rows].transpose(0, 1)
        in_score = p * (up @ v.transpose(1, 2) - (up * out).sum(-1, keepdim=True)) * scale
        grads[0][rows] = (in_score @ k).transpose(0, 1)
        for grad, whole in ((grads[1], in_score.transpose(1, 2) @ q), (grads[2], p.transpose(1, 2) @ up)):
            grad[keys] = whole.unflatten(0, (-1, shared)).sum(1).transpose(0, 1)
    return grads


class Varlen(torch.autograd.Function):
    """The operation with its gradient."""

    @staticmethod
    def forward(ctx, query, key, value, query_start, key_start, scale):
        output, lse = forward(query, key, value, query_start, key_start, scale)
        ctx.save_for_backward(query, key, value, query_start, key_start, output, lse)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx, upstream):
        query, key, value, query_start, key_start, output, _ = ctx.saved_tensors
        return (*backward(upstream, query, key, value, output, query_start, key_start, ctx.scale), None, None, None)


def varlen_attn(
    query, key, value, query_start, key_start, longest_query, longest_key, *, scale=None, window_size, enable_gqa
):
    """The call of ``rlrt.model.packed.by_varlen``."""
    checked(query, key, value, (query_start, key_start), (longest_query, longest_key), window_size)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return Varlen.apply(query, key, value, query_start, key_start, query.shape[2] ** -0.5 if scale is None else scale)
