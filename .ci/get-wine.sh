#!/usr/bin/env bash
# Private Wine 10 (Debian trixie) to run windows/amd64 test binaries on a bookworm host.
# Installs nothing but patchelf on the host; DIR gets root/ (Wine + its libc), prefix/ and
# two wrappers, wine and wineserver. A DIR that is whole is kept as it is.
# usage: get-wine.sh DIR [386]
set -euo pipefail
DIR=$(realpath -m "$1"); WITH386=${2:-}; ROOT=$DIR/root; A=$DIR/apt
# One process at a time makes the folder; the stamp says that it is whole.
if [ "${IPC_LOCKED:-}" != "$DIR" ]; then
  mkdir -p "$(dirname "$DIR")"
  IPC_LOCKED=$DIR exec flock -o "$DIR.lock" "$0" "$@"
fi
[ -e "$DIR/whole${WITH386:+-386}" ] && exit 0
command -v patchelf >/dev/null || { apt-get -qq -o DPkg::Lock::Timeout=300 update; apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends patchelf; }
[ -x "$DIR/wineserver" ] && { "$DIR/wineserver" -k || true; }
rm -rf "$ROOT" "$A" "$DIR/prefix" "$DIR/wine" "$DIR/wineserver"
mkdir -p "$ROOT/usr/lib" "$ROOT/usr/lib64" "$A/debs"
ln -sfn usr/lib "$ROOT/lib"; ln -sfn usr/lib64 "$ROOT/lib64"
# shellcheck source=.ci/trixie.sh
. "$(dirname "$0")/trixie.sh"
trixie "$A"
PKGS=(libwine wine64 libc6 libunwind8 liblzma5 libz-mingw-w64)
if [ "$WITH386" ]; then APT+=(-o APT::Architectures::=amd64 -o APT::Architectures::=i386); PKGS+=(libwine:i386); fi
"${APT[@]}" update
(cd "$A/debs" && "${APT[@]}" download "${PKGS[@]}")
# graphics, sound, scripting and C++ runtimes: never loaded by console programs
SKIP=()
for p in d3d d2d d3 ddraw dsound dxdiag dxgi dplay dmusic dmime dmloader dmsynth dmstyle dmband dmscript dmcompos \
         mf mshtml msxml msvcp msvcr1 msvcr7 msvcr8 msvcr9 wined3d winevulkan vulkan opengl x3daudio xactengine \
         xapofx xaudio xinput jscript vbscript quartz qedit qasf gdiplus windowscodecs wmp wmvcore wmadvdmod \
         msi. ieframe inetcpl concrt vcomp vcruntime1 atl winedbg light. amstream evr. windows. twinapi \
         gphoto2 sane winegstreamer wmiutils taskschd wbemprox explorerframe appwiz uiautomation dwrite winhttp. \
         mscms icm qmgr winex11 winewayland opencl wineps winspool.drv notepad wordpad winemine winhlp iexplore regedit; do
  SKIP+=(--exclude="*/wine/*-windows/$p*" --exclude="*/wine/*-unix/$p*")
done
SKIP+=(--exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/lib/wine/wineserver')
for d in "$A"/debs/*_i386.deb; do
  [ -e "$d" ] && dpkg-deb --fsys-tarfile "$d" | tar -x -C "$ROOT" --keep-directory-symlink "${SKIP[@]}" --wildcards './usr/lib/i386-linux-gnu/wine/i386-windows*'
done
for d in "$A"/debs/*_amd64.deb "$A"/debs/*_all.deb; do
  dpkg-deb --fsys-tarfile "$d" | tar -x -C "$ROOT" --keep-directory-symlink "${SKIP[@]}"
done
rm -rf "$A"
W=$ROOT/usr/lib/x86_64-linux-gnu/wine; Z64=$ROOT/usr/x86_64-w64-mingw32/lib/zlib1.dll; Z32=$ROOT/usr/i686-w64-mingw32/lib/zlib1.dll
cp "$Z64" "$W/x86_64-windows/"
if [ "$WITH386" ]; then rmdir "$W/i386-windows"; mv "$ROOT/usr/lib/i386-linux-gnu/wine/i386-windows" "$W/"; cp "$Z32" "$W/i386-windows/"; fi
ln -sfn . "$ROOT/usr/share/wine/wine"                  # where Debian's build looks for nls and wine.inf
ln -sfn wineserver64 "$ROOT/usr/lib/wine/wineserver"   # Debian's script here would start the host's one
for b in wine64 wineserver64; do
  patchelf --set-interpreter "$ROOT/usr/lib64/ld-linux-x86-64.so.2" \
           --force-rpath --set-rpath "$ROOT/usr/lib/x86_64-linux-gnu" "$ROOT/usr/lib/wine/$b"
done
cat >"$DIR/wine" <<X
#!/bin/sh
export WINEPREFIX="\${WINEPREFIX:-$DIR/prefix}" WINEDEBUG="\${WINEDEBUG:--all}"
export WINEDLLOVERRIDES="\${WINEDLLOVERRIDES-mscoree,mshtml,winex11.drv,winewayland.drv=}"
unset DISPLAY WAYLAND_DISPLAY TMPDIR # Debian's wineserver frees what getenv returns for TMPDIR, and aborts
exec $ROOT/usr/lib/wine/wine64 "\$@"
X
cat >"$DIR/wineserver" <<X
#!/bin/sh
export WINEPREFIX="\${WINEPREFIX:-$DIR/prefix}"
unset TMPDIR
exec $ROOT/usr/lib/wine/wineserver64 "\$@"
X
chmod +x "$DIR/wine" "$DIR/wineserver"
# What starts for 32 bits may hang where such programs do not run; the rest of the prefix is made all the same.
timeout 600 "$DIR/wine" wineboot -i >"$DIR/wineboot.log" 2>&1 </dev/null || true
timeout 120 "$DIR/wineserver" -w || "$DIR/wineserver" -k || true
if [ "$WITH386" ]; then
  cp "$Z64" "$DIR/prefix/drive_c/windows/system32/"
  [ ! -d "$DIR/prefix/drive_c/windows/syswow64" ] || cp "$Z32" "$DIR/prefix/drive_c/windows/syswow64/"
fi
touch "$DIR/whole" ${WITH386:+"$DIR/whole-386"}
