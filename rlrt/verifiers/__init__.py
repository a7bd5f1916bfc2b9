"""Verifiers decide whether a response's final answer is correct. A verifier that fails reports an error, never a wrong
answer."""
