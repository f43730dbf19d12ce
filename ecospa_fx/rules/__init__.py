"""The op rules: how labels flow through an op, and how its node is rewritten when they shrink."""
