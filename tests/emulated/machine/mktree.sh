#!/bin/bash
# Makes the root filesystems that mkdisk.sh lays out, by mmdebstrap: Debian arm64 with its own kernel, an initramfs and the
# Pi's firmware, as Debian makes its images for Pis. Nothing is done if they are there and were made by this recipe.
#
#   mktree.sh plain|cloud   writes CACHE/disks/{plain,cloud}.tar and prints that path; cloud has cloud-init in addition
#
# As root; it takes some minutes, most of them for programs of another processor.
. "$(dirname "$0")/common.sh"
KIND=${1:-}

# What mmdebstrap calls this script for, with the folder of the tree.
case $KIND in
--before-packages)
    # What the initramfs has: so little that it is loaded quickly.
    mkdir -p "$2/etc/initramfs-tools/conf.d" "$2/usr/share/initramfs-tools/modules.d" "$2/boot/firmware"
    printf 'MODULES=list\nCOMPRESS=gzip\nCOMPRESSLEVEL=1\n' >"$2/etc/initramfs-tools/conf.d/small"
    printf '%s\n' crc32c_generic ext4 bcm2835 sdhci-iproc mmc_block phy-generic >"$2/usr/share/initramfs-tools/modules.d/pi"
    exit 0 ;;
--after-packages)
    rm -rf "$2"/var/lib/apt/lists/* "$2"/var/cache/apt/* "$2"/var/cache/debconf/*-old "$2"/var/log/*.log "$2/etc/dpkg/dpkg.cfg.d"/*
    printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' >"$2/etc/systemd/network/wired.network"
    chroot "$2" systemctl --quiet enable systemd-networkd ssh
    chroot "$2" systemctl --quiet disable systemd-networkd-wait-online e2scrub_reap \
        apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer
    printf '127.0.0.1\tlocalhost\n127.0.1.1\traspberrypi\n' >"$2/etc/hosts"
    echo raspberrypi >"$2/etc/hostname"
    exit 0 ;;
esac

case $KIND in plain) OTHERS=() ;; cloud) OTHERS=(cloud-init cloud-guest-utils) ;; *) die "see the head of $0" ;; esac
need mmdebstrap sha256sum
OUT=$CACHE/disks/$KIND.tar
RECIPE=$({ suite; cat "$0"; } | sha256sum)
[ ! -f "$OUT" ] || [ "$(cat "$OUT.by" 2>/dev/null)" != "$RECIPE" ] || { echo "$OUT"; exit 0; }
use_foreign_programs
MIRROR=$(mirror)
[ -n "$MIRROR" ] || die "apt has no source for $(suite) here"
mkdir -p "$CACHE/disks"
rm -f "$OUT.by"

# Of the kernel's modules only what a Pi's card, its wired network and what systemd looks for need: 20 MB of 300.
MODULES=(
    'crypto/*' 'lib/*' 'arch/*' 'net/core/*' 'fs/mbcache.ko*' fs/{ext4,jbd2,fat,nls,autofs,configfs,fuse}'/*'
    'drivers/mmc/*' 'drivers/char/hw_random/*' drivers/usb/{common,core,roles,dwc2,phy}'/*' 'drivers/usb/gadget/udc/udc-core.ko*'
    'drivers/net/mii.ko*' drivers/net/{usb,phy,mdio}'/*' 'drivers/net/ethernet/broadcom/genet/*'
)
DPKG=(--dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/lib/modules/*/kernel/*' --dpkgopt='path-exclude=/lib/modules/*/kernel/*')
for module in "${MODULES[@]}"; do
    DPKG+=(--dpkgopt="path-include=/usr/lib/modules/*/kernel/$module" --dpkgopt="path-include=/lib/modules/*/kernel/$module")
done
for folder in man doc locale info lintian bash-completion zoneinfo/right; do DPKG+=(--dpkgopt="path-exclude=/usr/share/$folder/*"); done

nice -n 5 mmdebstrap --quiet --architectures=arm64 --variant=minbase --components=main,non-free-firmware --format=tar \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' "${DPKG[@]}" \
    --include="systemd-sysv dbus udev kmod iproute2 openssh-server sudo e2fsprogs fdisk util-linux dosfstools tzdata" \
    --include="linux-image-arm64 initramfs-tools busybox raspi-firmware ${OTHERS[*]-}" \
    --essential-hook="'$HERE/mktree.sh' --before-packages \"\$1\"" --customize-hook="'$HERE/mktree.sh' --after-packages \"\$1\"" \
    "$(suite)" "$OUT.new" "$MIRROR" >&2
mv "$OUT.new" "$OUT"
echo "$RECIPE" >"$OUT.by"
echo "$OUT"
