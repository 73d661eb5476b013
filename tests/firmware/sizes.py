#!/usr/bin/env python3
"""What each session costs on a microcontroller: flash, stack, the size of its future.

    sizes.py [--record]

Builds the programs of src/bin/size-*.rs for thumbv7em-none-eabihf at opt-level z, looks at their
sections and symbols, and runs each in QEMU (mps2-an386), where it measures its own stack. All figures
are differences to size-base, which has the same harness and no session. Fails if a figure is more than
5 % over what sizes.json has, which --record writes anew, and if a session can panic.

text     code, without the functions of the compiler's runtime that every program has (memcpy, memmove, memset,
         memcmp)
flash    text, constants and data
runtime  these
static   data and bss
stack    the deepest, with the session's future in it, without the caller's buffer
"""

import json
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
RECORD = os.path.join(HERE, "sizes.json")
TARGET = "thumbv7em-none-eabihf"
SESSIONS = ["install", "trusted", "transfer", "stream", "frames", "pickle", "postcard", "protected",
            "all-postcard", "all-pickle", "all-both"]
RUNTIME = re.compile(r"^compiler_builtins::mem::|^__aeabi_mem|^mem(cpy|move|set|cmp)$")
# What the compiler puts into every async function: a panic for a poll after its end. Drivers and
# executors do not poll what has ended.
RESUMED = "core::panicking::panic_const::panic_const_async_fn_resumed"
PANICS = re.compile(r"core::panicking::|core::(slice::index|str)::slice_\w*fail|core::(option|result)::\w+_failed")
OVER = 1.05


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build(names, *more):
    cross = subprocess.run(["cargo", "+cross", "--version"], capture_output=True).returncode == 0
    command = ["cargo"] + (["+cross"] if cross else [])
    command += ["build", "--quiet", "--locked", "--profile", "sizes", "--target", TARGET, "--target-dir", "target"]
    for name in names:
        command += ["--bin", f"size-{name}"]
    subprocess.run(command + list(more), check=True, cwd=HERE)


def program(name):
    return os.path.join(HERE, "target", TARGET, "sizes", f"size-{name}")


def symbols_of(elf):
    """Address, length and name of each."""
    for line in output("nm", "-C", "-S", elf).splitlines():
        words = line.split(None, 3)
        if len(words) == 4 and re.fullmatch("[0-9a-f]+", words[1]):
            yield int(words[0], 16) & ~1, int(words[1], 16), words[3]


def measure(name):
    elf = program(name)
    sections = {}
    for line in output("size", "-A", elf).splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            sections[words[0]] = int(words[1])
    runtime = sum(length for _, length, name in symbols_of(elf) if RUNTIME.search(name))
    run = subprocess.run(
        ["qemu-system-arm", "-machine", "mps2-an386", "-display", "none", "-monitor", "none", "-serial", "none",
         "-semihosting-config", "enable=on,target=native", "-kernel", elf],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    said = re.search(r"stack (\d+) future (\d+) wrote (\d+)", run.stdout)
    if run.returncode != 0 or not said:
        sys.exit(f"size-{name} failed in the emulator ({run.returncode}): {run.stdout}")
    return {
        "text": sections.get(".text", 0) - runtime,
        "flash": sum(sections.get(s, 0) for s in (".text", ".rodata", ".data")) - runtime,
        "runtime": runtime,
        "static": sections.get(".data", 0) + sections.get(".bss", 0),
        "stack": int(said[1]),
        "future": int(said[2]),
    }


def panics(elf):
    """Functions from which a panic can be reached, except by a poll after the end."""
    functions = sorted((at, at + length, name) for at, length, name in symbols_of(elf))
    starts = {at: name for at, _, name in functions}

    def inside(at):
        return next((name for begin, end, name in functions if begin <= at < end), "?")

    calls = set()
    for line in output(objdump(), "-d", elf).splitlines():
        if call := re.match(r"\s*([0-9a-f]+):.*\sb(?:l|\w\w|\.w)?\s+(?:0x)?([0-9a-f]+)", line):
            calls.add((inside(int(call[1], 16)), starts.get(int(call[2], 16), "")))
    # What the standard library calls on the way to a panic can panic, too.
    panicking, more = set(), {name for _, _, name in functions if PANICS.search(name)} - {RESUMED}
    while more - panicking:
        panicking |= more
        more = {a for a, b in calls if b in panicking and re.match("<?core::", a) and a != RESUMED}
    return sorted(f"{a} -> {b}" for a, b in calls if b in panicking and a not in panicking | {RESUMED})


def objdump():
    return next((p for p in ("arm-none-eabi-objdump", "llvm-objdump", "llvm-objdump-14") if shutil.which(p)),
                "llvm-objdump")


def main():
    build(["base", *SESSIONS])
    base = measure("base")
    figures, failed = {}, False
    print(f"{'session':12} {'text':>7} {'flash':>7} {'runtime':>8} {'static':>7} {'stack':>6} {'future':>7}   bytes, {TARGET}")
    for name in SESSIONS:
        got = measure(name)
        for key in ("text", "flash", "static"):
            got[key] -= base[key]
        figures[name] = got
        print(f"{name:12} {got['text']:7} {got['flash']:7} {got['runtime']:8} {got['static']:7} {got['stack']:6} {got['future']:7}")
    # In the place of the one that was measured: what both are made of is built once.
    build(["all-both"], "--features", "tell-panics")
    for call in panics(program("all-both")):
        print(f"can panic: {call}")
        failed = True
    if "--record" in sys.argv:
        with open(RECORD, "w") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")
    else:
        with open(RECORD) as file:
            recorded = json.load(file)
        for name, got in figures.items():
            for key, value in got.items():
                most = recorded[name][key] * OVER
                if value > most:
                    print(f"too much: {name} {key} {value}, at most {most:.0f}")
                    failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
