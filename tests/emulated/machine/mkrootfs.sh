#!/bin/bash
# Makes an arm64 root filesystem as an archive.
#   mkrootfs.sh --tiny OUT.tgz MIB   busybox and as many MiB that do not compress, in a second; its init compares
#                                    them with their checksum and prints EMU-ROOTFS-UP
#   mkrootfs.sh --debian OUT.tgz     Debian with systemd, by mmdebstrap, as root; root's password is 'root'
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
    if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
        [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
        update-binfmts --enable qemu-aarch64
    fi
    mmdebstrap --architectures=arm64 --variant=minbase --aptopt='Acquire::Languages "none"' \
        --include=systemd-sysv,udev,iproute2,kmod,openssh-server \
        --customize-hook='echo root:root | chroot "$1" chpasswd' \
        --customize-hook='echo emulated-pi >"$1/etc/hostname"' \
        "$(suite)" "$OUT.tmp.tar" "$(mirror)"
    gzip -c "$OUT.tmp.tar" >"$OUT"; rm -f "$OUT.tmp.tar" ;;
*) die "see the head of $0" ;;
esac
echo "$OUT: $(stat -c %s "$OUT") bytes"
