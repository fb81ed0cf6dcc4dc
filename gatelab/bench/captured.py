"""A step as one CUDA graph."""

from collections.abc import Callable

import torch


def captured(step: Callable[[], object]) -> Callable[[object], None]:
    """The step's replay, captured when it is first run; what it is given is not looked at."""
    graphs: list[torch.cuda.CUDAGraph] = []

    def replay(_: object) -> None:
        if not graphs:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            graphs.append(graph)
        graphs[0].replay()

    return replay
