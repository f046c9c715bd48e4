"""The smallest model of each of timm's families through the export: what works, and what does not, as a table.

    python benchmarks/timm_sweep.py --out table.md [--engine] [--limit 60] [--seconds 60] [--missing]

Each model runs in a process of its own with a limit of time and of memory. timm needs torchvision; beside a torch that
its binary does not fit, ``--shim`` declares its operators (for models alone: they compute nothing).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GIGABYTE = 1 << 30
CLASSES = 1000  # some models are published without a head


def smallest(module: str) -> str | None:
    """The model of one of timm's modules that has the fewest parameters; None: the module has no models."""
    import timm
    import torch

    sizes = []
    for name in timm.list_models(module=module):
        with torch.device("meta"):
            network = timm.create_model(name)
        sizes.append((sum(p.numel() for p in network.parameters()), name))
    return min(sizes)[1] if sizes else None


def work(name: str, engine: bool, memory: int, told: Connection) -> None:
    """Export one model and send what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (memory * GIGABYTE, memory * GIGABYTE))
    import torch

    torch.set_num_threads(1)
    from deploykit.export.engine.build import build_engine
    from deploykit.export.to_onnx import onnx_from_model
    from deploykit.models.timm_models import load_timm
    from deploykit.models.timm_options import TimmOptions

    row: dict[str, Any] = {}
    try:
        model = load_timm(f"timm:{name}", TimmOptions(num_classes=CLASSES))
        height, width = model.spec.input.size
        row.update(size=f"{height} x {width}", parameters=model.parameters)
        told.send(row)
        with tempfile.TemporaryDirectory() as folder:
            report = onnx_from_model(model, out=Path(folder) / "m.onnx")
            assert report.parity is not None
            row.update(nodes=report.nodes, share=max(d.limit_ratio for d in report.parity.differences))
            told.send(row)
            if engine:
                build_engine(report.path, flavour="tensorrt-rtx", check=False)
                row.update(engine="yes")
    except Exception as e:  # whatever a model's own code raises is a row of the table
        row.update(error=f"{type(e).__name__}: {' '.join(str(e).split())[:160]}")
    told.send(row)


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The last that a process told of a model, and how it ended."""
    context = multiprocessing.get_context("fork")  # imports of half a minute are made once
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, args.engine, args.memory, there))
    process.start()
    there.close()
    process.join(args.seconds)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    row: dict[str, Any] = {}
    try:
        while here.poll():
            row = here.recv()
    except EOFError:
        pass
    if late:
        row["error"] = f"not done after {args.seconds} s"
    elif process.exitcode:
        row["error"] = f"its process ended with {process.exitcode}"
    return row


def line(module: str, name: str, row: dict[str, Any], engine: bool) -> str:
    """A row of the table."""
    parameters = f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else ""
    result = f"yes, {row['nodes']} nodes" if "nodes" in row else "no"
    share = f"{100 * row['share']:.2g} %" if "share" in row else ""
    cells = [module, name, row.get("size", ""), parameters, result, share]
    if engine:
        cells.append(row.get("engine", "no"))
    return f"| {' | '.join([*cells, row.get('error', '').replace('|', '/')])} |"


def rows_of(table: Path) -> dict[str, str]:
    """The finished rows of a table, by family; those that ran out of time are none."""
    rows = table.read_text().splitlines()[2:] if table.exists() else []
    return {row.split("|")[1].strip(): row for row in rows if "not done after" not in row}


def main() -> None:
    """Go through the families and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the table, markdown")
    parser.add_argument("--engine", action="store_true", help="build engines of TensorRT for RTX too")
    parser.add_argument("--limit", type=int, default=1000, help="at most so many families")
    parser.add_argument("--only", nargs="+", default=[], help="these families")
    parser.add_argument("--missing", action="store_true", help="keep the rows that the table has, and make the others")
    parser.add_argument("--seconds", type=int, default=60, help="of a model")
    parser.add_argument("--memory", type=int, default=16, help="gigabytes of addresses of a model")
    parser.add_argument("--shim", action="store_true", help="declare torchvision's operators")
    args = parser.parse_args()
    if args.shim:
        import sys

        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from tests.torchvision_shim import install

        install()
    import timm
    import torch

    import deploykit.export.to_onnx  # noqa: F401  # before the processes are forked

    torch.set_num_threads(1)
    head = ["family", "model", "input", "parameters", "exports", "of the limit", *(["engine"] * args.engine), "error"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    made = rows_of(args.out) if args.missing else {}
    for module in [m for m in timm.list_modules() if not args.only or m in args.only][: args.limit]:
        if module in made:
            lines.append(made[module])
            continue
        name = smallest(module)
        if name is None:
            continue
        lines.append(line(module, name, measured(name, args), args.engine))
        print(lines[-1], flush=True)
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
