"""`ansn-train PRESET`: parse, train, draw the pictures."""

from __future__ import annotations

import os
import sys

import tyro

from ansn.cli.common import guarded, parsed
from ansn.config import TrainConfig
from ansn.errors import InputError
from ansn.presets import PRESETS
from ansn.training import train
from ansn.training.data import load, same_share
from ansn.training.pictures import write_pictures

_DESCRIPTION = (
    "Train a score model whose noise has a covariance learned online. Without a preset it is `digits`;"
    " `ansn-train PRESET --help` lists every option. Rerun a command to go on from its last checkpoint."
    " Exit codes: 0 done, 1 the loss diverged, 2 bad arguments or input, or a disk, a right or a lock that refuses, 130"
    " interrupted (a checkpoint was written, if there was a step)."
)


def parse(arguments: list[str]) -> TrainConfig:
    """The settings that a command line asks for; argparse's way of ending with code 2 for a wrong one."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["digits", *arguments]
    if not arguments[0].startswith("-") and arguments[0] not in PRESETS:
        print(f"PRESET: got {arguments[0]!r}, expected one of {', '.join(PRESETS)}", file=sys.stderr)
        raise SystemExit(2)
    presets = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        descriptions={name: summary for name, (summary, _) in PRESETS.items()}, sort_subcommands=False,
    )  # fmt: skip
    config: TrainConfig = tyro.cli(
        presets, default=PRESETS["digits"][1], args=arguments, prog="ansn-train", description=_DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip
    return config


def main() -> int:
    """Entry point."""
    config = parsed("ansn-train", lambda: parse(sys.argv[1:]), "ansn-train digits")

    def command() -> None:
        folder = train(config)
        if int(os.environ.get("RANK", "0")) == 0:
            try:
                data = load(same_share(config))
                written = write_pictures(folder, config.run.device, progress=sys.stderr.isatty(), data=data)
            except ValueError as error:
                raise InputError(f"{folder}: got a trained run but no pictures ({error}), expected both") from None
            print(*written, sep="\n")

    return guarded("ansn-train", command)


if __name__ == "__main__":
    sys.exit(main())
