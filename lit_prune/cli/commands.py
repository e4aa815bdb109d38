"""The commands of `lit-prune` that need no Trainer, and the way to those that do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lit_prune.cli.studies import STUDIES, run_study
from lit_prune.cli.trainer_commands import ENVIRONMENT, TRAINER_COMMANDS, run_trainer
from lit_prune.common.choices import nearest
from lit_prune.errors import LitPruneError

_EPILOG = """\
commands of the Trainer (each has its own --help, and reads YAML by --config):
{trainer}
  Their arguments are also read from environment variables, such as {environment}_FIT__TRAINER__MAX_EPOCHS=24, or
  {environment}_FIT__CONFIG=train.yaml; the command line goes before them. --help names the variable of each argument.

commands that take the arguments of fit, and some of their own (see their --help):
{studies}

examples:
  lit-prune demo --out demo
  lit-prune inspect yolov8n.yaml
  lit-prune fit --trainer.max_epochs 24 --trainer.callbacks+=lit_prune.ChannelPruning \\
      --trainer.callbacks.amount 0.3 --trainer.callbacks.epochs "[6, 9, 12]"
  lit-prune plan train.yaml
  lit-prune sweep train.yaml --ckpt_path dense.ckpt --amounts 0.2 0.4 0.6 --metric val/map
  lit-prune export lightning_logs/version_0/checkpoints/last.ckpt --format onnx --out pruned.onnx
  lit-prune profile yolov8n.yaml --runtime onnxruntime --image-size 320 --out device.json
  lit-prune compare yolov8n.pt pruned.pt --data data.yaml
"""


# As of a shell that was sent SIGINT.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lit-prune` and return its exit status: 0, 2 where the user has to change something, or 130 at Ctrl-C.

    Args:
        arguments: Those of the command line, without the program's name; by default this process's.
    """
    own = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments:
            _parser().print_help()
        elif arguments[0] in TRAINER_COMMANDS:
            # The process's arguments stay as they are: Lightning starts further processes by them.
            run_trainer(None if own else arguments)
        elif arguments[0] in STUDIES:
            run_study(arguments)
        else:
            if not arguments[0].startswith("-") and arguments[0] not in _OWN:
                known = (*_OWN, *TRAINER_COMMANDS, *STUDIES)
                _parser().error(f"there is no command {arguments[0]!r}. {nearest(arguments[0], known)}")
            options = _parser().parse_args(arguments)
            command: Callable[[argparse.Namespace], None] = options.command
            command(options)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return _INTERRUPTED
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(mistake))}", highlight=False, soft_wrap=True)
        return 2
    return 0


def run_demo(options: argparse.Namespace) -> None:
    """Run the demo."""
    from lit_prune.demo import Recipe, run_demo

    names = ("model", "epochs", "scenes", "cut", "amount", "fine_tuning", "seed")
    run_demo(options.out, Recipe(**{name: getattr(options, name) for name in names}))


def run_inspect(options: argparse.Namespace) -> None:
    """Print what of a network can be pruned."""
    from lit_prune.cli.networks import load_network
    from lit_prune.graph import ChannelGraph
    from lit_prune.report.inspection import inspection

    network, images = load_network(options.model, options.image_size)
    console = Console()
    with console.status(f"tracing {options.model}"):
        graph = ChannelGraph.trace(network, images)
    size = "×".join(str(side) for side in images.shape[2:])
    console.print(inspection(graph, network, f"{options.model} at {size}"))


def run_export(options: argparse.Namespace) -> None:
    """Write the network of a checkpoint to a file of another format."""
    from lit_prune.yolo.export import export_detector, load_detector

    network = load_detector(options.checkpoint)
    path = export_detector(network, options.out, options.format, options.image_size)
    Console().print(f"Written: {path} ({options.format})", highlight=False, soft_wrap=True)


def run_profile(options: argparse.Namespace) -> None:
    """Measure how long a network's layers take."""
    from lit_prune.cli.profile import run_profile

    run_profile(options)


def run_compare(options: argparse.Namespace) -> None:
    """Compare two networks on the validation images of a data set."""
    from lit_prune.yolo import YOLODataModule
    from lit_prune.yolo.comparison import compare_networks, comparison_table

    data = YOLODataModule(options.data, options.image_size, options.batch_size, options.workers)
    report = compare_networks(options.dense, options.pruned, data, options.out)
    console = Console()
    console.print(comparison_table(report))
    console.print(f"Written: report.json and detections.png in {options.out}", highlight=False, soft_wrap=True)


def run_digits(options: argparse.Namespace) -> None:
    """Write DigitScenes as an Ultralytics data set."""
    from lit_prune.data import write_digits

    sizes = (options.scenes, options.val_scenes, options.image_size)
    path = write_digits(options.folder, *sizes, seed=options.seed, task=options.task)
    Console().print(f"Written: {path}", highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, (*TRAINER_COMMANDS, *STUDIES))) + 2
    trainer, studies = (
        "\n".join(f"  {name:<{width}}{text}" for name, text in commands.items())
        for commands in (TRAINER_COMMANDS, STUDIES)
    )
    parser = _Parser(
        prog="lit-prune",
        description="Remove the channels of a network while it trains.",
        epilog=_EPILOG.format(trainer=trainer, studies=studies, environment=ENVIRONMENT),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lit-prune {version('lit-prune')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _OWN.values():
        add(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Tells the defaults of arguments that have one."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        if options.get("default") not in (None, argparse.SUPPRESS):
            options["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **options)


def _add_demo(commands: Any) -> None:
    demo = _add(
        commands, "demo", run_demo, "train, cut, fine-tune and compare on data that comes with the package; minutes"
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where report and figures go")
    demo.add_argument("--model", default="yolov8n.yaml", help="configuration of an Ultralytics detection network")
    demo.add_argument("--epochs", type=int, default=24, help="how long the dense network is trained")
    demo.add_argument("--scenes", type=int, default=2000, help="number of training scenes")
    demo.add_argument(
        "--cut", type=float, default=0.3, help="ratio of its MACs that one cut removes, to see what is left"
    )
    demo.add_argument("--amount", type=float, default=0.5, help="ratio of its MACs that is gone after fine-tuning")
    demo.add_argument("--fine-tuning", type=int, default=3, metavar="EPOCHS", help="how long what is left is trained")
    demo.add_argument("--seed", type=int, default=0, help="of weights, order and scenes")


def _add_inspect(commands: Any) -> None:
    inspect = _add(commands, "inspect", run_inspect, "tell which channels can be pruned, and why others cannot")
    inspect.add_argument(
        "model",
        metavar="MODEL",
        help="yolov8n.yaml, a .pt file of Ultralytics, a checkpoint of LitYOLO (.ckpt), torchvision:NAME or timm:NAME",
    )
    inspect.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="height and width of the example images; by default 640 for Ultralytics, else what the model is made for",
    )


def _add_export(commands: Any) -> None:
    export = _add(commands, "export", run_export, "write a network for use without lit_prune")
    export.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of LitYOLO (.ckpt), or a .pt file")
    export.add_argument(
        "--format", default="pt", metavar="F", help="pt, onnx, torchscript, or another of Ultralytics' exporter"
    )
    export.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the file to write; for some formats a folder, whose name gets the end that Ultralytics knows it by",
    )
    export.add_argument(
        "--image-size", type=int, default=640, metavar="PIXELS", help="height and width that the export takes"
    )


def _add_profile(commands: Any) -> None:
    profile = _add(
        commands, "profile", run_profile, "measure how long each layer takes at each width, for LatencyBudget; minutes"
    )
    profile.add_argument("model", metavar="MODEL", help="as for inspect")
    profile.add_argument("--runtime", default="onnxruntime", help="onnxruntime, openvino, torch or cudagraphs")
    profile.add_argument("--threads", type=int, default=1, help="of the CPU")
    profile.add_argument("--device", help="of torch: cpu, which is the default, or cuda, which is that of cudagraphs")
    profile.add_argument("--precision", default="float32", help="of torch and cudagraphs: float32, float16 or bfloat16")
    profile.add_argument("--channels-last", action="store_true", help="of torch and cudagraphs: the memory format")
    profile.add_argument("--batch", type=int, default=1, help="images that are computed at once")
    profile.add_argument("--image-size", type=int, metavar="PIXELS", help="as for inspect")
    profile.add_argument("--round-to", type=int, default=8, help="widths to look at are multiples of it")
    profile.add_argument("--networks", type=int, default=32, help="how many networks of other widths are timed")
    profile.add_argument("--out", type=Path, default=Path("device.json"), metavar="FILE", help="the table to write")
    profile.add_argument("--again", action="store_true", help="measure also where the table is there already")
    profile.add_argument(
        "--script", type=Path, metavar="FILE", help="measure nothing, but write a script that does so on another device"
    )
    profile.add_argument("--measured", type=Path, metavar="FILE", help="what that script has written")


def _add_compare(commands: Any) -> None:
    compare = _add(commands, "compare", run_compare, "measure and draw a dense and a pruned network on your own data")
    compare.add_argument("dense", metavar="DENSE", help="a .pt file, or a checkpoint of LitYOLO (.ckpt)")
    compare.add_argument("pruned", metavar="PRUNED", help="another one, of the same task and classes")
    compare.add_argument("--data", required=True, metavar="YAML", help="data.yaml; a folder of classes to classify")
    compare.add_argument("--out", type=Path, default=Path("comparison"), metavar="DIR", help="where the report goes")
    compare.add_argument("--image-size", type=int, metavar="PIXELS", help="by default 640, or 224 for classification")
    compare.add_argument("--batch-size", type=int, default=16, help="images in a batch of validation")
    compare.add_argument("--workers", type=int, default=4, help="processes that read images")


def _add_digits(commands: Any) -> None:
    digits = _add(commands, "digits", run_digits, "write scenes of handwritten digits as an Ultralytics data set")
    digits.add_argument("folder", type=Path, metavar="DIR", help="where to; it must not hold a data set")
    digits.add_argument("--scenes", type=int, default=2000, help="number of training scenes")
    digits.add_argument("--val-scenes", type=int, default=400, help="number of validation scenes")
    digits.add_argument("--image-size", type=int, default=96, metavar="PIXELS", help="height and width; 32 divides it")
    digits.add_argument("--seed", type=int, default=0, help="which scenes")
    digits.add_argument("--task", default="detect", help="detect, segment, pose, obb or classify: what labels say")


_OWN: dict[str, Callable[[Any], None]] = {
    "demo": _add_demo,
    "inspect": _add_inspect,
    "export": _add_export,
    "profile": _add_profile,
    "compare": _add_compare,
    "digits": _add_digits,
}
"""The commands that need no Trainer, each with what adds it to a parser."""


def _add(commands: Any, name: str, command: Callable[[argparse.Namespace], None], text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=command)
    return parser


def _user_error(error: BaseException | None) -> LitPruneError | None:
    """The error that lit_prune raised on purpose, if any: its message says what to do, which a traceback would hide."""
    while error is not None and not isinstance(error, LitPruneError):
        # Lightning's command line wraps what the classes that it builds raise.
        error = error.__cause__
    return error
