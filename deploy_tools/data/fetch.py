"""Get Fashion-MNIST onto this machine: `python -m deploy_tools.data.fetch`.

Looks where the resolver looks. Where nothing is found and nothing can be downloaded, prints
the apt command and, as root on a machine that has apt, runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from deploy_tools.data.fashion_mnist import APT_COMMAND, find_folder
from deploy_tools.errors import UserError


def main() -> int:
    """Return 0 where the data is here in the end, 2 where it is not."""
    try:
        print(f"Fashion-MNIST: {find_folder()}")
        return 0
    except UserError as error:
        reason = str(error)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        print(f"deploy-tools: {reason}", file=sys.stderr)
        return 2
    print(f"Fashion-MNIST is not on this machine; running: {APT_COMMAND}", flush=True)
    package = APT_COMMAND.split()[-1]
    subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
    subprocess.run(["apt-get", "install", "-y", "-q", package], check=False)
    try:
        print(f"Fashion-MNIST: {find_folder(download=False)}")
    except UserError as error:
        print(f"deploy-tools: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
