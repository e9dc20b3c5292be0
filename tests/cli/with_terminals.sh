#!/bin/sh
# Runs a command where pseudo-terminals can be had. A chroot often has /dev without /dev/pts: then the command gets one
# of its own, in a mount namespace that ends with it. Needs root there.
set -eu
python=$1
if "$python" -c 'import os; os.openpty()' 2>/dev/null; then exec "$@"; fi
exec unshare --mount --propagation unchanged sh -c '
  mount --make-private /dev && mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts || {
    echo "no pseudo-terminals here, and none can be made; mount /dev/pts" >&2
    exit 1
  }
  exec "$@"' sh "$@"
