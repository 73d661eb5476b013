#!/usr/bin/env python3
"""Boots an emulated arm64 Pi without a display and prints its serial console, with the seconds since the start
before each line.

Exit status: 0 when --marker appeared, 1 after --timeout, a kernel panic or --fail, or when the machine went off
without the marker, 2 when it could not be started. At the marker the machine is cut off, as by pulling the plug."""
import argparse, os, re, selectors, shutil, signal, subprocess, sys, time

cache = os.environ.get("PIMAN_EMULATED_CACHE") or os.path.expanduser("~/.cache/piman-emulated")
a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
a.add_argument("--machine", choices=["virt", "raspi3b"], default="virt", help="virt is the faster one")
a.add_argument("--initrd", help="the initramfs (with --uboot it comes over the network)")
a.add_argument("--append", default="", help="added to the kernel command line")
a.add_argument("--cmdline", help="the whole kernel command line")
a.add_argument("--kernel", default=os.path.join(cache, "kernel8.img"))
a.add_argument("--dtb", default=os.path.join(cache, "raspi3b.dtb"), help="raspi3b only: the device tree")
a.add_argument("--marker", required=True, help="regular expression: seen on the console, it is a success")
a.add_argument("--fail", action="append", default=[], help="regular expression: seen, it is a failure; repeat")
a.add_argument("--type", action="append", default=[], nargs=2, metavar=("REGEX", "TEXT"),
               help="when the console shows that, type this and Enter; repeat: one after the other")
a.add_argument("--timeout", type=float, default=300)
a.add_argument("--sd", required=True, help="the card's image, made blank if it does not exist")
a.add_argument("--sd-size", default="2G", help="of a blank card: a power of two, such as 512M or 2G (sparse)")
a.add_argument("--net", default="user", help="user (the host's 127.0.0.1 is 10.0.2.2 inside) or tap:NAME")
a.add_argument("--uboot", action="store_true", help="virt only: start U-Boot, which boots by DHCP and TFTP")
a.add_argument("--netns", help="run QEMU in this network namespace (for a tap there)")
o = a.parse_args()

def stop(why):
    print("emulated machine: " + why, file=sys.stderr)
    sys.exit(2)

def size(text):
    m = re.fullmatch(r"(\d+)([KMG])", text)
    if not m: stop("bad size " + text)
    n = int(m[1]) * 1024 ** " KMG".index(m[2])
    if n & (n - 1): stop("QEMU takes only cards whose size is a power of two, not " + text)
    return n

if not shutil.which("qemu-system-aarch64"): stop("qemu-system-aarch64 is not installed")
if not o.uboot and not o.initrd: stop("--initrd is needed")
if not os.path.exists(o.sd):
    with open(o.sd, "ab") as f: f.truncate(size(o.sd_size))

# A Pi's prefix: a network card on USB is named eth0 only without the locally administered bit.
mac = "b8:27:eb:00:00:01"
q = ["qemu-system-aarch64", "-M", o.machine, "-display", "none", "-monitor", "none", "-no-reboot"]
if o.machine == "virt":
    console = "ttyAMA0"
    q += ["-cpu", "cortex-a53", "-smp", "2", "-m", "1024", "-serial", "stdio", "-nic", "none",
          "-device", "virtio-rng-pci", "-device", "sdhci-pci", "-device", "sd-card,drive=card",
          "-drive", f"if=none,id=card,file={o.sd},format=raw,discard=unmap"]
    # From a card in legacy mode U-Boot reads a wrong address.
    nic = ["-device", f"virtio-net-pci,netdev=n0,mac={mac},romfile=,disable-legacy=on"]
else:
    # The first serial port is the Bluetooth chip's.
    console = "ttyS1,115200"
    q += ["-dtb", o.dtb, "-drive", f"if=sd,file={o.sd},format=raw",
          "-serial", "null", "-serial", "stdio"]
    nic = ["-device", f"usb-net,netdev=n0,mac={mac}"]
if o.net == "user": q += ["-netdev", "user,id=n0"] + nic
elif o.net.startswith("tap:"): q += ["-netdev", f"tap,id=n0,ifname={o.net[4:]},script=no,downscript=no"] + nic
else: stop("--net is user or tap:NAME")
if o.uboot: q += ["-bios", "/usr/lib/u-boot/qemu_arm64/u-boot.bin"]
else:
    ours = f"console={console} rdinit=/init panic=-1 quiet {o.append}"
    q += ["-kernel", o.kernel, "-initrd", o.initrd, "-append", ours if o.cmdline is None else o.cmdline]
if o.netns: q = ["ip", "netns", "exec", o.netns] + q

good = re.compile(o.marker.encode())
bad = [re.compile(x.encode()) for x in [r"Kernel panic - not syncing", r"end Kernel panic"] + o.fail]
types = [(re.compile(x.encode()), text.encode() + b"\n") for x, text in o.type]
start = time.monotonic()
p = subprocess.Popen(q, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
def end(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
os.set_blocking(p.stdout.fileno(), False)
sel = selectors.DefaultSelector()
sel.register(p.stdout, selectors.EVENT_READ)
line = window = b""
rc, why = 1, "timeout"
def show(raw):
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", raw).decode("utf8", "replace").replace("\r", "")
    print(f"[{time.monotonic() - start:8.3f}] {text}", flush=True)
try:
    while True:
        left = o.timeout - (time.monotonic() - start)
        if left <= 0: break
        if not sel.select(left): continue
        d = os.read(p.stdout.fileno(), 65536)
        if not d:
            why = "the machine went off"
            break
        line += d
        window = (window + d)[-20000:]
        *whole, line = line.split(b"\n")
        for w in whole: show(w)
        if types and (asked := types[0][0].search(window)):
            # What was asked before is answered: only what comes from now on is looked at.
            window = window[asked.end():]
            p.stdin.write(types.pop(0)[1])
            continue
        if not types and good.search(window):
            rc, why = 0, "marker seen"
            break
        if any(b.search(window) for b in bad):
            why = "failure seen"
            break
except KeyboardInterrupt:
    why = "interrupted"
finally:
    if line.strip(): show(line)
    p.terminate()
    try: p.wait(3)
    except subprocess.TimeoutExpired:
        p.kill()
        p.wait()
print(f"emulated machine: {why} after {time.monotonic() - start:.1f} s", flush=True)
sys.exit(rc)
