#!/usr/bin/env bash
# qemu-i386 of Debian trixie (10.0), one static program: the one of bookworm (7.2) crashes the Go runtime.
# usage: get-qemu.sh DIR; DIR/qemu-i386 is there afterwards. What is there already is kept.
set -euo pipefail
DIR=$(realpath -m "$1")
if [ "${IPC_LOCKED:-}" != "$DIR" ]; then
  mkdir -p "$(dirname "$DIR")"
  IPC_LOCKED=$DIR exec flock -o "$DIR.lock" "$0" "$@"
fi
[ -x "$DIR/qemu-i386" ] && exit 0
A=$DIR/apt
rm -rf "$A"
mkdir -p "$A/debs"
# shellcheck source=.ci/trixie.sh
. "$(dirname "$0")/trixie.sh"
trixie "$A"
"${APT[@]}" update
(cd "$A/debs" && "${APT[@]}" download qemu-user)
dpkg-deb --fsys-tarfile "$A"/debs/qemu-user_*.deb | tar -x -C "$A" ./usr/bin/qemu-i386
"$A/usr/bin/qemu-i386" --version
mv "$A/usr/bin/qemu-i386" "$DIR/qemu-i386"
rm -rf "$A"
