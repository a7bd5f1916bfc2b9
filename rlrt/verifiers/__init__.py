"""Whether a response's final answer is the right one. A verifier that fails says so: an error is never a wrong answer."""
