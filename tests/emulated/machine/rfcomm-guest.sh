#!/bin/bash
# Bluetooth RFCOMM without hardware: an x86-64 guest with Debian's kernel (its arm64 kernel has no hci_vhci), in
# which BlueZ's btvirt makes two controllers, hci0 and hci1, that are in each other's range.
#   rfcomm-guest.sh [--add FILE]... [--timeout S] COMMAND
#     COMMAND runs in the guest's busybox shell, with A0 and A1 the two controllers' addresses and the added files
#     (static, or with the host's libraries, which are brought along) in /t. Exit status 0 when it returned 0.
# Needs the packages qemu-system-x86, seabios, busybox-static, kmod and cpio.
. "$(dirname "$0")/common.sh"
ADDS=() TIMEOUT=180
while [ $# -gt 1 ]; do case $1 in
    --add) ADDS+=("$2"); shift 2 ;; --timeout) TIMEOUT=$2; shift 2 ;; *) die "unknown option $1" ;; esac; done
COMMAND=${1:?see the head of this file}
need qemu-system-x86_64 modprobe depmod cpio apt-get dpkg-deb
[ -x /bin/busybox ] || die "needs Debian's busybox-static"
X=$CACHE/x86; L=$X/root
if [ ! -f "$X/.ready" ]; then
    rm -rf "$X"; mkdir -p "$X/debs" "$L"
    K=$(apt-cache show linux-image-amd64 | awk '/^Depends: linux-image-/ && !seen { sub(/,$/, "", $2); print $2; seen = 1 }')
    [ -n "$K" ] || die "apt knows no linux-image-amd64 (apt-get update?)"
    (cd "$X/debs" && apt-get -q -o APT::Sandbox::User=root download "$K" bluez bluez-test-tools)
    for d in "$X"/debs/*.deb; do dpkg-deb -x "$d" "$L"; done
    V=${K#linux-image-}
    [ -d "$L/lib/modules/$V" ] || { mkdir -p "$L/lib"; ln -sfn ../usr/lib/modules "$L/lib/modules"; }
    depmod -b "$L" "$V"; echo "$V" >"$X/kernel-version"; rm -rf "$X/debs"; touch "$X/.ready"
fi
V=$(cat "$X/kernel-version"); R=$(mktemp -d); trap 'rm -rf "$R" "$R.gz"' EXIT
mkdir -p "$R"/{bin,usr/bin,t,proc,sys,dev,tmp,run,m}
cp /bin/busybox "$R/bin/"; for a in $(/bin/busybox --list | grep -vx busybox); do ln -sf busybox "$R/bin/$a"; done
for m in algif_skcipher algif_hash ecb cmac hci_vhci rfcomm; do modprobe -d "$L" -S "$V" --show-depends $m; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r f; do
        b=$(basename "$f"); cp "$f" "$R/m/"; case $b in *.xz) xz -d "$R/m/$b"; b=${b%.xz} ;; esac; echo "$b" >>"$R/m/order"; done
cp "$L/usr/bin/btvirt" "$R/usr/bin/"
find "$L" -name hciconfig -type f -exec cp {} "$R/usr/bin/" \;
for f in ${ADDS[@]+"${ADDS[@]}"}; do cp "$f" "$R/t/"; done
for b in "$R"/usr/bin/* "$R"/t/*; do ldd "$b" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*' || :; done | sort -u | while read -r l; do
    mkdir -p "$R$(dirname "$l")"; cp -L "$l" "$R$l"; done
printf '%s\n' "$COMMAND" >"$R/cmd"
cat >"$R/init" <<'S'
#!/bin/sh
export PATH=/t:/bin:/usr/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; ip link set lo up
for m in $(cat /m/order); do insmod /m/$m || echo "cannot load $m"; done
btvirt -l2 &
i=0; while [ ! -e /sys/class/bluetooth/hci1 ] && [ $i -lt 220 ]; do usleep 100000; i=$((i+1)); done
for h in hci0 hci1; do
    i=0; until hciconfig $h up piscan 2>/dev/null || [ $i -ge 100 ]; do usleep 100000; i=$((i+1)); done
done
A0=$(hciconfig hci0 | sed -n 's/.*BD Address: \([0-9A-F:]*\).*/\1/p'); A1=$(hciconfig hci1 | sed -n 's/.*BD Address: \([0-9A-F:]*\).*/\1/p')
export A0 A1; echo "hci0 $A0, hci1 $A1"
sh /cmd && echo "GUEST-RESULT=0" || echo "GUEST-RESULT=1"
poweroff -f
S
chmod +x "$R/init"; (cd "$R" && find . | cpio -o -H newc --quiet --owner=0:0 | gzip -1) >"$R.gz"
timeout "$TIMEOUT" qemu-system-x86_64 -M q35 -accel tcg -cpu max -smp 2 -m 512 -display none -monitor none -serial stdio \
    -no-reboot -nic none -kernel "$L/boot/vmlinuz-$V" -initrd "$R.gz" -append "console=ttyS0 panic=-1 quiet" </dev/null | tee "$R/console"
grep -q '^GUEST-RESULT=0' "$R/console"
