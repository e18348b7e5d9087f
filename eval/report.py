"""One page that shows runs: what was run, the table, curves, classes, diagnosis and timelines
(``python -m eval.report --help``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence

if __name__ == "__main__":  # python eval/report.py finds the project as python -m eval.report does
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from eval import report_sections as sections
from eval.report_data import Data, Run, diagnosed, groups_of, name_runs, open_data, runs_of, video_ap
from eval.report_page import Raw, join, page, tag
from options import Parser
from utils.errors import InputError, run_command, some
from utils.files import write_text
from utils.run.report import headline, log
from utils.segments import Segments

MOST_SHOWN = 4  # groups of runs whose diagnosis and timelines are drawn, one run each
MOST_BYTES = 5_000_000
ABOUT = """Show runs on one page: RUN_DIR/report.html, or --out. It needs no network, and reads on a phone, too.

What was run, the table with its protocol, curves of losses, weights and mAP, AP of each class, the diagnosis of
eval.diagnose, and timelines of the best, the median and the worst video: instances, detections, and under them what
the network says of the proposals over time. RUN_DIR: what a training or a test left (--exp_dir), or the folder of
--seeds. Of several runs, those that differ in the seed alone are one group; the others are compared with the first.
What cannot be found (features, annotations) is named, and the rest is shown.
"""


def chosen(
    runs: Sequence[Run], data: Mapping[str, Data], found: Mapping[str, Segments], names: Sequence[str]
) -> Dict[str, str]:
    """The videos to show, and why: the named ones, then the best, the median and the worst of the first run that can
    tell. Raises InputError for a name that no run has detections for."""
    videos = list(dict.fromkeys(video for segments in found.values() for video in segments.videos))
    unknown = [name for name in names if name not in videos]
    if unknown:
        where = f"detections.json of {runs[0].name}"
        raise InputError(f"no video {some(unknown)}", where, f"--videos takes names such as {some(videos, 3) or '-'}")
    why = dict.fromkeys(names, "")
    judge = next((run for run in runs if run.name in data), None)
    ap = video_ap(data[judge.name], judge.result["protocol"]) if judge else ()
    if not len(ap):
        return why or dict.fromkeys(videos[:3], "")
    of = f" in {judge.name}" if len(runs) > 1 else ""
    for place, i in (("best", 0), ("median", len(ap) // 2), ("worst", len(ap) - 1)):
        line = f"the {place} of {len(ap)} videos{of}, AP {100 * ap.iloc[i]:.2f}"
        why[ap.index[i]] = ", ".join(filter(None, [why.get(ap.index[i]), line]))
    return why


def report(
    runs: Sequence[Run], videos: Sequence[str] = (), root: Optional[str] = None, proposals_root: Optional[str] = None
) -> str:
    """The page as HTML. videos: to show beside those it chooses. root, proposals_root: instead of the folders that the
    runs name. Raises InputError."""
    name_runs(runs)
    groups = groups_of(runs)
    shown = [group[0] for group in groups.values()][:MOST_SHOWN]
    data: Dict[str, Data] = {}
    numbers: Dict[str, Dict] = {}
    found: Dict[str, Segments] = {}
    for run in tqdm(runs, "reading runs", leave=False, disable=None):
        known = None
        if run.options["run_type"] != "predict":
            known = run.attempt("no counts, no diagnosis, no instances", open_data, run, root)
        if known and run.results and run.document:
            data[run.name], found[run.name] = known, known.found
            numbers[run.name] = diagnosed(run, known, proposals_root)
        elif run.document:
            read = run.attempt("no timelines", Segments.from_json, run.document, None, "detections.json")
            found.update({run.name: read[0]} if read else {})
    wanted = chosen(runs, data, found, videos)
    makers = {
        "What was run": lambda: sections.what_was_run(runs),
        "Results": lambda: sections.results(groups),
        "Over the epochs": lambda: sections.over_epochs(groups),
        "Classes": lambda: sections.classes(groups, data),
        "Diagnosis": lambda: sections.diagnosis(shown, numbers),
        "Timelines": lambda: sections.timelines(shown, data, found, wanted, proposals_root),
    }
    parts = {name: make() for name, make in tqdm(makers.items(), "sections", leave=False, disable=None)}
    names = list(groups)
    head = [sections.soft(", ".join(names[:6]) + f" and {len(names) - 6} more" * (len(names) > 6))]
    if any(run.simulated for run in runs):
        head.append(tag("p", tag("span", sections.SIMULATED, class_="simulated")))
    if len(runs) == 1 and runs[0].results:
        head.append(_glance(runs[0]))
    if len(groups) > MOST_SHOWN:
        head.append(sections.soft(f"Diagnosis and timelines are drawn of the first {MOST_SHOWN} groups."))
    notes = [(f"{run.name}: " if len(runs) > 1 else "") + note for run in runs for note in dict.fromkeys(run.notes)]
    if notes:
        items = Raw("".join(tag("li", note) for note in notes))
        head.append(tag("div", Raw(f"{tag('b', 'What is missing')}{tag('ul', items)}"), class_="notes"))
    title = f"SEAL report: {some(sorted({run.options['dataset_name'] for run in runs}), 3)}"
    return page(title, head, {name: part for name, part in parts.items() if part})


def _glance(run: Run) -> Raw:
    """The numbers to see first."""
    result = run.result
    span = list(result["average"])[-1]
    values = {f"mAP {span}, {kind}": headline(m) for kind, m in run.results.items()}
    found = {name: "-" if value < 0 else f"{100 * value:.2f}" for name, value in values.items()}
    for key, name in (("classification_mAP", "classification mAP"), ("classification_accuracy", "cls-acc")):
        if result.get(key) is not None:
            found[f"{name}, {next(iter(run.results))}"] = f"{100 * result[key]:.2f}"
    found[f"videos, protocol {result['protocol']}"] = f"{result['videos']:,}"
    tiles = (tag("div", join([tag("b", number), tag("span", name)])) for name, number in found.items())
    return tag("div", join(tiles), class_="tiles")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; raises InputError for bad input."""
    parser = Parser("python -m eval.report", description=ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder of a run, or of --seeds")
    parser.add_argument("--out", metavar="FILE.html", help="default: report.html in the first RUN_DIR")
    parser.add_argument("--videos", nargs="+", default=[], metavar="NAME", help="show these videos, too")
    parser.add_argument("--dataset_root", metavar="DIR", help="folder of the dataset (default: as the run had it)")
    parser.add_argument("--proposals_root", metavar="DIR", help="folder of its proposals (default: likewise)")
    args = parser.parse_args(arguments)
    folders = list(dict.fromkeys(Path(folder) for folder in args.runs))
    runs = {run.folder.resolve(): run for folder in folders for run in runs_of(folder)}
    text = report(list(runs.values()), args.videos, args.dataset_root, args.proposals_root)
    out = Path(args.out) if args.out else folders[0] / "report.html"
    write_text(out, text)
    if len(text.encode()) > MOST_BYTES:
        log("a large page: fewer runs or --videos make it smaller")
    print(f"report of {len(runs)} run{'s' * (len(runs) > 1)}, {len(text.encode()) / 1e6:.1f} MB: {out}")
    return 0


if __name__ == "__main__":
    run_command(main)
