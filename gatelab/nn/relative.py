"""RelativeBias: T5's learned bias on attention logits, one value a head and a bucket of distances (arXiv 1910.10683).

Notable: near distances have buckets of their own and far ones share buckets that grow geometrically. Which distance
falls where is counted in whole numbers when the module is built, since a logarithm in float32 may fall on either side
of an edge, as the device likes.
"""

from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """bias[h, t, s] = table[bucket(s − t), h], added to the logits before the softmax.

    Args:
        n_heads: query heads H; with grouped queries the heads of a group have each their own bias.
        n_buckets: rows of the table. Half of them hold one distance each, the rest grow up to max_distance.
        max_distance: in tokens; it and everything farther share the last bucket.
        is_causal: True: keys before the query have all buckets, and those after it share bucket 0 with the query's own
            position. False: each side has half of the buckets, keys before the query the first half.

    One module serves all layers of a T5 stack. `table` gets its values where every embedding does.

    Raises:
        ValueError: for fewer than two buckets a side, an odd number for two sides, a max_distance within the near ones.
    """

    def __init__(self, n_heads: int, *, n_buckets: int = 32, max_distance: int = 128, is_causal: bool):
        super().__init__()
        sides = 1 if is_causal else 2
        if n_buckets < 2 * sides or n_buckets % sides:
            allowed = "2 or more" if is_causal else "an even number from 4, half of them for each side"
            raise ValueError(f"n_buckets={n_buckets} with is_causal={is_causal}: take {allowed}")
        self.n_a_side, self.max_distance, self.is_causal = n_buckets // sides, max_distance, is_causal
        if max_distance <= self.n_a_side // 2:
            raise ValueError(
                f"max_distance={max_distance}: distances below {self.n_a_side // 2} have a bucket each with "
                f"n_buckets={n_buckets}, and the others reach to max_distance; take more than {self.n_a_side // 2}"
            )
        self.table = nn.Embedding(n_buckets, n_heads)
        self.register_buffer(
            "bucket_of_distance", torch.tensor(distance_buckets(self.n_a_side, max_distance)), persistent=False
        )

    def forward(self, n_queries: int, n_keys: int, start: int = 0) -> Tensor:
        """bias_1HTS in the table's type, for queries at positions start … start + n_queries − 1 and keys from 0.

        Rows start … of the full square, so a cached step asks for `forward(1, length + 1, start=length)`.

        Raises:
            ValueError: for a negative start or count.
        """
        if min(n_queries, n_keys, start) < 0:
            raise ValueError(
                f"n_queries={n_queries}, n_keys={n_keys}, start={start}: counts and positions are 0 or more"
            )
        device = self.table.weight.device
        if self.bucket_of_distance.is_meta and device.type != "meta":
            self._count(device)
        query_T1 = torch.arange(start, start + n_queries, device=device)[:, None]
        bias_TSH = self.table(self.buckets(torch.arange(n_keys, device=device) - query_T1))
        # Attention kernels read the keys of a row side by side.
        return bias_TSH.permute(2, 0, 1)[None].contiguous()

    def buckets(self, offset: Tensor) -> Tensor:
        """The row of the table for every offset s − t (whole numbers, any shape): int64, same shape."""
        distance = (-offset).clamp(min=0) if self.is_causal else offset.abs()
        bucket = self.bucket_of_distance[distance.clamp(max=self.max_distance)]
        return bucket if self.is_causal else bucket + self.n_a_side * (offset > 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RelativeBias":
        """A module's way to another type or device; what the meta device left without values is counted anew."""
        was_meta = self.bucket_of_distance.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.bucket_of_distance.is_meta:
            self._count(self.bucket_of_distance.device)
        return self

    def _count(self, device: torch.device) -> None:
        self.bucket_of_distance = torch.tensor(distance_buckets(self.n_a_side, self.max_distance), device=device)

    def extra_repr(self) -> str:
        """Buckets of a side and the distance of the last one."""
        return f"n_a_side={self.n_a_side}, max_distance={self.max_distance}, is_causal={self.is_causal}"


def distance_buckets(n_buckets: int, max_distance: int) -> list[int]:
    """The bucket of every distance 0 … max_distance, to one side.

    With m = n_buckets // 2 near ones and k = n_buckets − m far ones: d below m has bucket d; any other has
    m + ⌊k · log(d/m) / log(max_distance/m)⌋, at most n_buckets − 1.
    """
    near = n_buckets // 2
    far = n_buckets - near
    # d is at or past the start of far bucket j when (d / near)^far ≥ (max_distance / near)^j, here without fractions.
    edges = [max_distance**j * near ** (far - j) for j in range(1, far)]
    return [d if d < near else near + bisect_right(edges, d**far) for d in range(max_distance + 1)]
