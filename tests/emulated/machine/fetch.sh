#!/bin/bash
# Brings into the cache what the emulated Pi boots: Debian's arm64 kernel with its modules and device trees, and a
# static arm64 busybox. Nothing is installed for it, it is only unpacked; nothing is done if it is there.
#
#   PIMAN_EMULATED_CACHE   the cache  (~/.cache/piman-emulated)
. "$(dirname "$0")/common.sh"
[ ! -f "$CACHE/.ready" ] || exit 0
need apt-get dpkg-deb depmod
MIRROR=$(mirror)
[ -n "$MIRROR" ] || die "apt has no source for $(suite) here"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
A=$CACHE/apt
mkdir -p "$A"/{lists/partial,archives/partial,state,parts} "$SYSROOT"
: >"$A/status"
echo "deb [signed-by=$KEYRING] $MIRROR $(suite) main" >"$A/sources.list"
# An apt of its own, so that this machine gets no foreign architecture.
cat >"$A/apt.conf" <<C
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::Etc::sourcelist "$A/sources.list";
Dir::Etc::sourceparts "$A/parts";
Dir::Etc::preferencesparts "$A/parts";
Dir::Etc::parts "$A/parts";
Dir::State "$A/state";
Dir::State::lists "$A/lists";
Dir::State::status "$A/status";
Dir::Cache "$A";
Dir::Cache::archives "$A/archives";
Debug::NoLocking "true";
C
export APT_CONFIG=$A/apt.conf
apt-get -q update
KERNEL=$(apt-cache show linux-image-arm64 | awk '/^Depends: linux-image-/ && !seen { sub(/,$/, "", $2); print $2; seen = 1 }')
[ -n "$KERNEL" ] || die "no arm64 kernel in $(suite)"
(cd "$A/archives" && apt-get -q download "$KERNEL" busybox-static)
for d in "$A"/archives/*.deb; do dpkg-deb -x "$d" "$SYSROOT"; done
V=${KERNEL#linux-image-}
[ -d "$SYSROOT/lib/modules/$V" ] || { mkdir -p "$SYSROOT/lib"; ln -sfn ../usr/lib/modules "$SYSROOT/lib/modules"; }
[ -e "$SYSROOT/bin/busybox" ] || { mkdir -p "$SYSROOT/bin"; ln -sfn ../usr/bin/busybox "$SYSROOT/bin/busybox"; }
depmod -b "$SYSROOT" "$V"
cp "$SYSROOT/boot/vmlinuz-$V" "$CACHE/kernel8.img"
cp "$SYSROOT/usr/lib/linux-image-$V/broadcom/bcm2837-rpi-3-b.dtb" "$CACHE/raspi3b.dtb"
rm -f "$A"/archives/*.deb
echo "$V" >"$CACHE/kernel-version"
touch "$CACHE/.ready"
echo "filled $CACHE (kernel $V): $(du -sh "$CACHE" | cut -f1)"
