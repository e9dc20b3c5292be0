#!/bin/sh
# Runs a command where pseudo-terminals can be had. A chroot often has /dev without /dev/pts: then the command gets one
# of its own, in a mount namespace that ends with it. Exit code 77, skipped: there are none, and only root can make them.
set -eu
python=$1
has_terminals='import os; os.openpty()'
if "$python" -c "$has_terminals" 2>/dev/null; then exec "$@"; fi
own_terminals='mount --make-private /dev && mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts'
if ! unshare --mount --propagation unchanged sh -c "$own_terminals"' && exec "$@"' sh "$python" -c "$has_terminals" 2>/dev/null; then
  echo "skipped: no pseudo-terminals here; mount /dev/pts"
  exit 77
fi
exec unshare --mount --propagation unchanged sh -c "$own_terminals"' && exec "$@"' sh "$@"
