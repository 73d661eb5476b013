#!/bin/bash
# Makes an arm64 root filesystem as an archive.
#   mkrootfs.sh --tiny OUT.tgz MIB   busybox and as many MiB that do not compress, in a second; its init compares
#                                    them with their checksum and prints EMU-ROOTFS-UP
#   mkrootfs.sh --debian OUT.tgz RECIPE   Debian by the commands in RECIPE, which make rootfs.tgz by mmdebstrap, as root
. "$(dirname "$0")/common.sh"
KIND=${1:-} OUT=${2:-}
case $KIND in
--tiny)
    [ -f "$CACHE/.ready" ] || die "nothing is fetched yet: run $HERE/fetch.sh"
    R=$(mktemp -d); trap 'rm -rf "$R"' EXIT
    mkdir -p "$R"/{bin,sbin,proc,sys,dev,etc,tmp,root,usr/bin,usr/sbin,var}; chmod 1777 "$R/tmp"
    cp -L "$SYSROOT/bin/busybox" "$R/bin/busybox"; ln -s busybox "$R/bin/sh"; ln -s ../bin/busybox "$R/sbin/init"
    printf 'root::0:0:root:/root:/bin/sh\n' >"$R/etc/passwd"; echo emulated-pi >"$R/etc/hostname"
    printf '%s\n' '::sysinit:/etc/rc' '::askfirst:-/bin/sh' >"$R/etc/inittab"
    cat >"$R/etc/rc" <<'S'
#!/bin/sh
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
hostname -F /etc/hostname
(cd /var && md5sum -c pad.sum)
echo EMU-ROOTFS-UP
S
    chmod +x "$R/etc/rc"
    head -c "${3}M" /dev/urandom >"$R/var/pad"; (cd "$R/var" && md5sum pad >pad.sum)
    tar -C "$R" --owner=0 --group=0 -czf "$OUT" . ;;
--debian)
    need mmdebstrap
    use_foreign_programs
    RECIPE=$(realpath "$3") OUT=$(realpath -m "$OUT")
    T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
    cd "$T"
    # In place of the Pi's modules a few of the kernel that is booted here, under a name that the recipe looks for.
    V=$(cat "$CACHE/kernel-version"); M="$T/firmware/modules/$V-v8+"
    mkdir -p "$M/kernel/fs"; cp "$SYSROOT/lib/modules/$V"/modules.* "$M/"; cp -r "$SYSROOT/lib/modules/$V/kernel/fs/autofs" "$M/kernel/fs/"
    # Debian from where this machine has its own.
    MIRROR=$(mirror)
    mmdebstrap() { command mmdebstrap --aptopt='Acquire::Languages "none"' "$@" "$MIRROR"; }
    . "$RECIPE"
    mv rootfs.tgz "$OUT" ;;
*) die "see the head of $0" ;;
esac
echo "$OUT: $(stat -c %s "$OUT") bytes"
