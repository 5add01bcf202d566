"""The bounded KV cache: fixed slots, the policies that choose what stays in them."""
