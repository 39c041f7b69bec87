"""Experiments that wait for their turn: who may start when, and what becomes of them."""
