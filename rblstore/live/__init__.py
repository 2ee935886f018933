"""A composition on an nn.Module: attach, detach, switch, guard."""
