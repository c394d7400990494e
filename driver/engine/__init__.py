"""The numerical core: models, neighbour lists, batched evaluation, batched molecular dynamics."""
