"""The paper's Tables 3 to 6 by one command, with seeds and paired intervals (``python -m eval.tables --help``)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import nullcontext, suppress
from itertools import takewhile
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

if __name__ == "__main__":  # python eval/tables.py finds the project as python -m eval.tables does
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from dataset import load_dataset
from eval.comparison import Row, Table, write
from eval.detection import default_protocol
from eval.inference import confidences, inputs_of
from losses import TERMS
from options import COUNT, SEED, Options, Parser, parse
from utils.errors import InputError, run_command, some
from utils.files import load_json
from utils.run.experiment import Stop, plain, unchanged
from utils.run.report import headline, log

MAIN = Path(__file__).resolve().parent.parent / "main.py"
LOG = "console.log"  # what a cell said


BASE = Row("none", "base", ("--losses", "none"), None, (54.0, 36.8, 14.6, 43.1))
SME = Row("sme", "base + L_SME", ("--losses", "sme"), "none", (64.2, 43.0, 17.2, 50.9))
FULL = Row("sme+pc+sc", "full: all three", ("--losses", "sme,pc,sc"), "none", (66.0, 44.5, 19.9, 52.8))
SEGMENT = Row("sme-segment", "segment level", (*SME.options, "--descriptor_level", "segment"), None,
              (64.3, 42.2, 18.0, 50.8))  # fmt: skip
TABLES = (
    Table("3", "losses", (
        BASE,
        SME,
        Row("pc", "base + L_pc", ("--losses", "pc"), "none", (64.5, 43.1, 18.4, 51.2)),
        Row("sc", "base + L_sc", ("--losses", "sc"), "none", (59.6, 40.6, 16.0, 47.2)),
        Row("sme+pc", "base + L_SME + L_pc", ("--losses", "sme,pc"), "none", (65.3, 44.4, 18.9, 52.1)),
        Row("pc+sc", "base + L_pc + L_sc", ("--losses", "pc,sc"), "none", (64.9, 44.2, 18.7, 51.7)),
        FULL,
        Row("none-with-s_pc", "control: base, s_pc in the score", (*BASE.options, "--score_s_pc", "always"), "none"),
        Row("sme+pc+sc-without-s_pc", "control: full, no s_pc", (*FULL.options, "--score_s_pc", "never"), FULL.name),
    )),
    Table("4", "descriptors, L_SME alone", (SEGMENT, SME._replace(title="video level", against=SEGMENT.name))),
    Table("5", "pseudo-labels, L_SME alone", (
        BASE,
        Row("sme-high", "base + high", (*SME.options, "--sme_labels", "high"), "none", (61.3, 41.0, 17.1, 48.7)),
        SME._replace(title="base + high + moderate"),
    )),
)  # fmt: skip
PAPER_6 = {  # base and full, by proposals
    "P_pw": (BASE.paper, FULL.paper),
    "P_w": ((49.5, 33.8, 11.4, 39.7), (59.6, 39.8, 16.2, 47.1)),
}
OWNED = ("run_type", "losses", "sme_labels", "descriptor_level", "score_s_pc", "seed", "exp_dir", "resume")


def table_6(proposals: Mapping[str, str], own: Optional[str] = None) -> Table:
    """Table 6: base and full on each set of proposals, name -> folder; without any, on the runs' own alone.
    own: folder of the runs' proposals; a set in it shares the cells of the other tables."""
    rows: List[Row] = []
    for name, folder in proposals.items():
        where, paper = ("--proposals_root", folder), PAPER_6.get(name, (None, None))
        end = "" if folder == own else f"-{name}"
        base = Row(BASE.name + end, f"base, {name}", (*BASE.options, *where), None, paper[0])
        rows += [base, Row(FULL.name + end, f"full, {name}", (*FULL.options, *where), base.name, paper[1])]
    alone = (BASE._replace(title="base, own", paper=None), FULL._replace(title="full, own", paper=None))
    return Table("6", "proposals", tuple(rows) or alone)


# ---- cells


class Cell(NamedTuple):
    """One run of a row: its folder, the options it has, and the command that makes it."""

    row: str
    seed: int
    folder: Path
    options: Options
    command: Tuple[str, ...]


def cells(tables: Sequence[Table], seeds: Sequence[int], out: Path, training: Sequence[str]) -> List[Cell]:
    """Every cell of these tables, each once; training: what the runs share, as a command line."""
    found = {}
    for seed in seeds:  # so that all rows grow together
        for row in (row for table in tables for row in table.rows):
            folder = out / row.name / f"seed{seed}"
            argv = [*training, *row.options, "--seed", str(seed), "--exp_dir", str(folder), "--resume"]
            command = (sys.executable, str(MAIN), *argv)
            found[row.name, seed] = Cell(row.name, seed, folder, parse(argv, tuple(TERMS)), command)
    return list(found.values())


def results_of(cell: Cell, protocol: str, inputs: Mapping[str, str]) -> Optional[Dict]:
    """What a finished cell leaves, {"last": metrics, "best": metrics}; None where it has not run to its end.

    protocol: that its options name, or the dataset's. inputs: hashes of what it reads. Raises InputError where the cell
    was made with other options or inputs; the device may be another.
    """
    if not (cell.folder / "options.json").exists():
        return None
    try:
        environment = load_json(cell.folder / "environment.json")
        old = {"options": load_json(cell.folder / "options.json"), "inputs": environment["inputs"]}
        wanted = {"options": {**plain(cell.options), "protocol": protocol}, "inputs": inputs}
        wanted["options"].pop("device")
        for name, new in wanted.items():
            unchanged(cell.folder, name, {k: v for k, v in old[name].items() if k in new}, new)
    except (AttributeError, InputError, KeyError, TypeError) as error:
        what = error.what if isinstance(error, InputError) else "not a run"
        raise InputError(what, cell.folder, "name another --out, or delete this folder") from None
    with suppress(InputError, KeyError, TypeError):
        found = load_json(cell.folder / "results.json")
        if found["last"]["epoch"] == cell.options.max_epoch:
            return found
    return None


def run_cell(command: Sequence[str], folder: str, log_file: str, threads: Optional[int]) -> Tuple[int, str]:
    """Run a cell where this is called, here or on a worker: exit status, and the last line that it said.

    folder: the one that its relative paths are of. threads: of the processor; None, as the worker's environment says.
    """
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(log_file, "ab") as console:
            how = {"stdin": subprocess.DEVNULL, "stdout": console, "stderr": console}
            status = subprocess.run(command, cwd=folder, env=environment, **how).returncode
        said = last_line(log_file)
        if status != 2 or "another run is writing here" not in said:
            return status, said
        time.sleep(5)  # a table that was killed left it running: it goes on where that one ends


def last_line(path: str) -> str:
    """The last line of a text file."""
    return next(reversed(Path(path).read_text(encoding="utf-8", errors="replace").splitlines()), "")


def run_cells(missing: Sequence[Cell], done: int, jobs: int, dask: Optional[str]) -> Iterator[Tuple[Cell, int, str]]:
    """Run cells side by side under a progress bar: each with its exit status and last line, as it ends.

    done: how many there were before. A stop (Ctrl-C) reaches the runs too: they save their state, and none is started.
    """
    where = parallel_config("dask", client=_client(dask)) if dask else nullcontext()
    how = {} if dask else {"n_jobs": jobs, "prefer": "threads", "pre_dispatch": "n_jobs"}
    threads = None if dask else max(1, torch.get_num_threads() // jobs)
    bar = tqdm(total=done + len(missing), initial=done, desc=dask or f"{jobs} side by side", unit="cell", disable=None)
    with Stop() as stop, where, bar:
        left = takewhile(lambda _: not stop.asked, range(len(missing)))
        logs = [str(Path.cwd() / cell.folder / LOG) for cell in missing]
        each = (delayed(_numbered)(i, missing[i].command, str(Path.cwd()), logs[i], threads) for i in left)
        for i, status, said in Parallel(return_as="generator_unordered", **how)(each):
            yield missing[i], status, said
            bar.update()


def _numbered(i: int, *cell: object) -> Tuple[int, int, str]:
    return (i, *run_cell(*cell))


def _client(address: str) -> object:
    try:
        from distributed import Client
    except ImportError:
        todo = "pip install -r requirements-cluster.txt"
        raise InputError("--dask needs the package distributed", None, todo) from None
    try:
        return Client(address, timeout=20)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers: {error}", address, "start one with: dask scheduler") from None


# ---- the command


def _parser() -> Parser:
    text = """Run the paper's Tables 3 to 6: every row with every seed, as ordinary runs, and compare.

Each cell is a training in OUT/ROW/seedN: look at it, resume it, or make it elsewhere and copy it in. Cells that are
there, made with the same options and inputs, and finished are not run again, so a table that was stopped goes on with
the same command. Options that are not below go to every run: any of main.py's but those that the rows set.
OUT gets tables.md, tables.csv (every cell, last and best) and tables.png.
"""
    every = [*TABLES, table_6({})]
    names = ", ".join(dict.fromkeys(row.name for table in every for row in table.rows))
    parser = Parser("python -m eval.tables", description=text, epilog="Example:  python -m eval.tables --table 3 "
                    "--dataset_name Demo --seeds 0 1 2 --jobs 2 --max_epoch 100")  # fmt: skip
    add = parser.add_argument
    about = ", ".join(f"{table.number} {table.title}" for table in every)
    add("--table", choices=[*(t.number for t in every), "all"], default="all", help=f"{about} (default: %(default)s)")
    add("--dataset_name", default="Thumos14reduced", metavar="NAME", help="default: %(default)s, the paper's main set")
    add("--proposals", nargs="+", default=[], metavar="NAME=DIR", help="Table 6: sets of proposals, as P_w=FOLDER "
        "P_pw=FOLDER (default: base and full on the dataset's own)")  # fmt: skip
    add("--rows", nargs="+", metavar="ROW", help=f"these rows alone, and what they are compared with: {names}")
    add("--seeds", nargs="+", type=SEED, default=[0, 1, 2, 3, 4], metavar="SEED", help="default: %(default)s")
    add("--out", metavar="DIR", help="default: output/NAME-tables")
    add("--jobs", type=COUNT, default=1, metavar="X", help="cells side by side, which share the processor's threads "
        "(default: %(default)s)")  # fmt: skip
    add("--dask", metavar="ADDRESS", help="run the cells on a Dask cluster instead, tcp://HOST:8786, whose workers see "
        "the same folders (needs requirements-cluster.txt)")  # fmt: skip
    return parser


def chosen(parser: Parser, args: Namespace, own: Optional[str]) -> List[Table]:
    """The tables and rows that are asked for; a wrong name ends the command. own: folder of the runs' proposals."""
    sets, names = dict(pair.partition("=")[::2] for pair in args.proposals), args.rows
    if not all(name.isidentifier() and folder for name, folder in sets.items()) or len(sets) < len(args.proposals):
        parser.error("argument --proposals: NAME=DIR NAME=DIR, each name once, of letters, digits and _")
    tables = [table for table in (*TABLES, table_6(sets, own)) if args.table in (table.number, "all")]
    known = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    names = known if names is None else names
    if not set(names) <= set(known):
        parser.error(f"argument --rows: {some(sorted(set(names) - set(known)))} is none of {', '.join(known)}")
    found = []
    for table in tables:
        wanted = {name for row in table.rows if row.name in names for name in (row.name, row.against)}
        found.append(table._replace(rows=tuple(row for row in table.rows if row.name in wanted)))
    return [table for table in found if table.rows]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; returns the exit status. Raises InputError for bad input."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if taken := [name for name in OWNED if any(word.split("=")[0] == f"--{name}" for word in rest)]:
        parser.error(f"--{taken[0]} is what the rows and --seeds set")
    training = ["--run_type", "train", "--dataset_name", args.dataset_name, *rest]
    tables = chosen(parser, args, parse(training, tuple(TERMS)).proposals_root)
    out = Path(args.out or Path("output") / f"{args.dataset_name}-tables")
    every = cells(tables, args.seeds, out, training)

    def reads(cell: Cell) -> Tuple[Optional[str], str]:
        return cell.options.proposals_root, cell.options.descriptor_level

    expected, data = {}, None
    for key, options in sorted({reads(cell): cell.options for cell in every}.items(), key=str):
        data = load_dataset(options)  # so that a wrong file is said once, and the cache is built once
        if not data.test:
            raise InputError("no test videos", args.dataset_name, "tables compare mAP on test videos")
        expected[key] = inputs_of(data, confidences(data, options))

    def finished(cell: Cell) -> Optional[Dict]:
        return results_of(cell, cell.options.protocol or default_protocol(data.profile), expected[reads(cell)])

    results = {(cell.row, cell.seed): found for cell in every if (found := finished(cell))}
    missing, failed = [cell for cell in every if (cell.row, cell.seed) not in results], []
    log(f"{len(every)} cells in {out}, {len(results)} finished")
    for cell, status, said in run_cells(missing, len(results), args.jobs, args.dask) if missing else ():
        if found := finished(cell) if status == 0 else None:
            results[cell.row, cell.seed] = found
            log(
                f"{cell.row}/seed{cell.seed}: {100 * headline(found['last']):.2f}, {len(results)} of {len(every)} cells"
            )
        elif status != 130:
            failed.append(cell)
            log(f"{cell.row}/seed{cell.seed} failed: {said}")
    if results:
        first, seeds = next(iter(results.values()))["last"], len({seed for _, seed in results})
        title = f"{args.dataset_name}, recipe {every[0].options.recipe}, protocol {first['protocol']}"
        title += f", {seeds} seed{'s' * (seeds > 1)}"
        title += "; SIMULATED features: these numbers say nothing about real videos" * bool(first.get("simulated"))
        grey = args.dataset_name != "Thumos14reduced" or "simulated" in first
        print(write(out, tables, results, title, grey))
        log(f"tables.md, tables.csv and tables.png are in {out}")
    if failed:
        what = f"{len(failed)} of {len(every)} cells failed, the first with: {last_line(failed[0].folder / LOG)}"
        raise InputError(what, failed[0].folder / LOG, "mend it, and repeat the command: it goes on where it was")
    if len(results) < len(every):
        log("stopped; the same command goes on")
        return 130
    return 0


if __name__ == "__main__":
    run_command(main)  # as __main__, whose functions reach a cluster's workers by value: they need not find this file
